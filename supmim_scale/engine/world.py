"""Who this process is among the ranks: read from torchrun, Slurm, DeepSpeed, or nobody."""

import os
import socket
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed as dist

from supmim_scale.errors import RankError, UserError

_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_SLURM = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_JOB_ID", "SLURM_STEP_NODELIST")
_TIMEOUT = timedelta(minutes=30)  # of a collective between devices
_PATIENCE = timedelta(hours=24)  # of the hosts: one may be indexing for all

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process's place; `device` is where its model lives."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device
    launcher: str
    control: Any = None  # process group of the hosts, for words between them

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and prints."""
        return self.rank == 0

    def barrier(self) -> None:
        """Collective: wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Collective: the sum over ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def max(self, values: torch.Tensor) -> torch.Tensor:
        """Collective: the maximum over ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return values

    def any(self, flag: bool) -> bool:
        """Collective of the hosts: whether it is so on any rank; does not wait for devices."""
        if self.world_size == 1:
            return flag
        flags = torch.tensor([int(flag)])
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self.control)
        return bool(flags.item())

    def all(self, flag: bool) -> bool:
        """Collective of the hosts: whether it is so on every rank."""
        return not self.any(not flag)

    def gather(self, value: T) -> list[T]:
        """Collective of the hosts: every rank's value, in order of ranks."""
        values: list[Any] = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value, group=self.control)
        return values

    def main_first(self, make: Callable[[], T]) -> T:
        """Collective of the hosts: run `make` on rank 0, then on one rank of each other node, then
        on the rest, which find the files of those before them.

        A `UserError` of one rank is raised on every rank, so that none waits for ever.
        """
        result, error = None, None
        turn = 0 if self.is_main else 1 if self.local_rank == 0 else 2
        for number in range(3):
            if number == turn:
                try:
                    result = make()
                except UserError as raised:
                    error = raised
            first = next((found for found in self.gather(error) if found), None)
            if first is not None:
                raise UserError(*first.args)
        return result  # type: ignore[return-value]


def join_world() -> World:
    """Find this process's rank, join the process group and choose the device.

    Raises `UserError` where a launcher set only some of its variables or there are more ranks
    than GPUs on this node.
    """
    variables = launch_variables(os.environ)
    launcher = variables.pop("launcher")
    os.environ.update(variables)
    rank, world_size = int(variables["RANK"]), int(variables["WORLD_SIZE"])
    device = _device(int(variables["LOCAL_RANK"]))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=_TIMEOUT)
    control = dist.new_group(backend="gloo", timeout=_PATIENCE) if world_size > 1 else None
    return World(rank, int(variables["LOCAL_RANK"]), world_size, device, launcher, control)


def leave_world(world: World) -> None:
    """Collective: end the process group; without it a rank may abort while others tear down."""
    if dist.is_initialized():
        world.barrier()
        dist.destroy_process_group()


def launch_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """torch.distributed's five variables, and `launcher`, from what started this process."""
    found = [name for name in _LAUNCHER if name in environ]
    if len(found) == len(_LAUNCHER):
        return {name: environ[name] for name in _LAUNCHER} | {"launcher": "torchrun or deepspeed"}
    if all(name in environ for name in _SLURM):
        return _from_slurm(environ) | {"launcher": "srun"}
    partial = [name for name in found if not name.startswith("MASTER")]
    if partial:
        missing = ", ".join(name for name in _LAUNCHER if name not in environ)
        raise UserError(
            "environment",
            f"{', '.join(partial)} without {missing}",
            "all five or none",
            "start with torchrun, srun or deepspeed, or unset them",
        )
    return {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "launcher": "none",
    }


def _from_slurm(environ: Mapping[str, str]) -> dict[str, str]:
    """A task of an srun step: the job's first host, a port of the job's own."""
    host = environ.get("MASTER_ADDR") or _first_host(environ["SLURM_STEP_NODELIST"])
    # Below Linux's ephemeral range (32768 on), so that no client socket holds it.
    port = 10_000 + int(environ["SLURM_JOB_ID"]) % 15_000
    return {
        "RANK": environ["SLURM_PROCID"],
        "WORLD_SIZE": environ["SLURM_NTASKS"],
        "LOCAL_RANK": environ["SLURM_LOCALID"],
        "MASTER_ADDR": host,
        "MASTER_PORT": environ.get("MASTER_PORT", str(port)),
    }


def _first_host(node_list: str) -> str:
    """An address of the list's first node that this node can reach: its name if it resolves,
    else the address that Slurm itself uses."""
    name = _scontrol("hostnames", node_list).split()[0]
    try:
        socket.getaddrinfo(name, None)
    except socket.gaierror:
        fields = dict(word.split("=", 1) for word in _scontrol("node", name).split() if "=" in word)
        return fields.get("NodeAddr", name)
    return name


def _scontrol(kind: str, name: str) -> str:
    try:
        answer = subprocess.run(
            ["scontrol", "show", kind, name], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(
            f"scontrol show {kind} {name}", str(error), "the node", "export MASTER_ADDR=FIRST_HOST"
        ) from None
    return answer.stdout


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    if visible == 1:  # the launcher bound one GPU to each task
        return torch.device("cuda", 0)
    if local_rank >= visible:
        raise RankError(
            f"local rank {local_rank}",
            f"{visible} visible GPUs",
            "a GPU a rank",
            "start as many tasks a node as it has GPUs",
        )
    return torch.device("cuda", local_rank)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

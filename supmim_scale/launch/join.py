"""How a process becomes a rank: read from torchrun, Slurm, DeepSpeed, or nobody."""

import os
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Literal

import torch
from torch import distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from supmim_scale.errors import RankError, UserError
from supmim_scale.launch.world import World
from supmim_scale.slurm.allocation import Allocation, node_name, read_allocation

_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_TIMEOUT = timedelta(minutes=30)  # of a collective between devices
_PATIENCE = timedelta(hours=24)  # of the hosts: one may be indexing for all
_GATHERING = timedelta(minutes=10)  # until all ranks are there: a cold file system is slow
_LOOK_EVERY_S = 0.2


def join_world(kind: Literal["auto", "cpu"] = "auto") -> World:
    """Find this process's rank, join the process group and choose the device; `cpu` takes no GPU
    even where there are some.

    Raises `UserError` where a launcher set only some of its variables, there are more ranks than
    GPUs on this node, or a node does not come.
    """
    if kind == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for DeepSpeed and every other reader too
    variables = launch_variables(os.environ)
    launcher = variables.pop("launcher")
    os.environ.update(variables)
    rank, world_size = int(variables["RANK"]), int(variables["WORLD_SIZE"])
    device = _device(int(variables["LOCAL_RANK"]))
    _use(device)
    if device.type == "cuda":
        # DeepSpeed takes LOCAL_RANK for the GPU's number, which it is not where every task sees
        # its own GPU alone (0.19, DeepSpeedEngine._set_distributed_vars).
        os.environ["LOCAL_RANK"] = str(device.index)
    backend, store = "nccl" if device.type == "cuda" else "gloo", None
    if launcher == "srun" and world_size > 1:
        given = read_allocation(os.environ)
        assert given is not None
        address, port = variables["MASTER_ADDR"], int(variables["MASTER_PORT"])
        store = meet(given, address, port, _name_of(device))
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=_TIMEOUT
    )
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
    given = read_allocation(environ)
    if given is not None:
        return {
            "RANK": str(given.rank),
            "WORLD_SIZE": str(given.num_tasks),
            "LOCAL_RANK": str(given.local_rank),
            "MASTER_ADDR": environ.get("MASTER_ADDR") or given.first_address(),
            "MASTER_PORT": environ.get("MASTER_PORT") or str(given.port()),
            "launcher": "srun",
        }
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


def meet(
    given: Allocation, address: str, port: int, device: str, within: timedelta = _GATHERING
) -> Store:
    """Collective: a store that every rank of the job has come to, each with a device of its own.

    Raises `RankError` on rank 0 with the nodes whose ranks did not come in time or came with
    another kind of device, on the others where rank 0 cannot be reached.
    """
    is_first, where = given.rank == 0, f"{address}:{port}"
    try:
        store = TCPStore(
            address, port, given.num_tasks, is_first, timeout=within, wait_for_workers=False
        )
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        found = f"port {port} taken" if "EADDRINUSE" in str(error) else f"no answer from {where}"
        raise RankError(
            f"{node_name()}, rank {given.rank}",
            found,
            f"rank 0 on {address}",
            "look at that node and the network, or export MASTER_ADDR and MASTER_PORT",
        ) from None
    store.set(f"come/{given.rank}", f"{node_name()} {device}")
    if is_first:
        _require_all(store, given, within)
        words = [store.get(f"come/{rank}").decode() for rank in range(given.num_tasks)]
        require_own_devices(words)
    store.set_timeout(_TIMEOUT)
    return PrefixStore("world", store)


def _require_all(store: Store, given: Allocation, within: timedelta) -> None:
    """Raise `RankError` with the nodes whose ranks have not come in time."""
    deadline, missing = time.monotonic() + within.total_seconds(), list(range(given.num_tasks))
    while missing := [rank for rank in missing if not store.check([f"come/{rank}"])]:
        if time.monotonic() > deadline:
            late = given.node_names(missing)
            raise RankError(
                ", ".join(late),
                f"{len(missing)} of {given.num_tasks} ranks not there after "
                f"{within.total_seconds():.0f} s",
                "all ranks",
                f"look at these nodes, or submit with --exclude={','.join(late)}",
            )
        time.sleep(_LOOK_EVERY_S)


def require_own_devices(words: Sequence[str]) -> None:
    """Raise `RankError` unless all ranks have one kind of device, and no two the same GPU.

    `words` are `NODE cpu` or `NODE cuda ID` in order of ranks.
    """
    kinds = [word.split()[1] for word in words]
    most = Counter(kinds).most_common(1)[0][0]
    for rank, word in enumerate(words):
        node, kind, *_ = word.split()
        if kind != most:
            raise RankError(
                f"{node}, rank {rank}",
                kind,
                f"{most}, as most ranks have",
                f"try nvidia-smi there, or submit with --exclude={node}",
            )
        if kind == "cuda" and words.index(word) != rank:
            raise RankError(
                f"{node}, rank {rank}",
                f"the GPU of rank {words.index(word)}",
                "a GPU a rank",
                "unset CUDA_VISIBLE_DEVICES in the shell that submits",
            )


def _use(device: torch.device) -> None:
    """Make it this process's device. Raises `RankError` for a GPU that does not start."""
    if device.type != "cuda":
        return
    try:
        torch.cuda.set_device(device)
        torch.zeros(1, device=device)
    except RuntimeError as error:
        raise RankError(
            f"{node_name()}, {device}",
            str(error).splitlines()[0],
            "a GPU that works",
            f"try nvidia-smi there, or submit with --exclude={node_name()}",
        ) from None


def _name_of(device: torch.device) -> str:
    """`cpu`, or `cuda` and what tells this GPU from the node's others."""
    if device.type != "cuda":
        return "cpu"
    return f"cuda {torch.cuda.get_device_properties(device).uuid}"


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    if visible == 1:  # the launcher bound one GPU to each task
        return torch.device("cuda", 0)
    if local_rank >= visible:
        raise RankError(
            f"{node_name()}, local rank {local_rank}",
            f"{visible} visible GPUs",
            "a GPU a rank",
            "start as many tasks a node as it has GPUs",
        )
    return torch.device("cuda", local_rank)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

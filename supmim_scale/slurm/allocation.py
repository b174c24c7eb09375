"""What Slurm gave this task: its place among the ranks, its node's GPUs and cores.

Variables are those that srun sets for every task (man srun, OUTPUT ENVIRONMENT VARIABLES).
"""

import os
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from supmim_scale.errors import RankError, UserError
from supmim_scale.slurm import commands

_NEEDED = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_JOB_ID", "SLURM_STEP_NODELIST")
# Below Linux's ephemeral range (32768 on), so that no client socket holds it.
_FIRST_PORT, _PORTS = 10_000, 15_000


@dataclass(frozen=True)
class Allocation:
    """A task of an srun step. `gpus_on_node` is 0 where the job asked for none."""

    job: str
    restart: int
    rank: int
    local_rank: int
    num_tasks: int
    node_list: str
    node_index: int
    tasks_per_node: tuple[int, ...]
    gpus_on_node: int
    cpus_per_task: int

    @property
    def tasks_on_node(self) -> int:
        """Tasks beside this one on its node, itself included."""
        return self.tasks_per_node[self.node_index]

    def node_index_of(self, rank: int) -> int:
        """Place in the node list of a rank's node; srun deals ranks out in blocks."""
        for index, tasks in enumerate(self.tasks_per_node):
            rank -= tasks
            if rank < 0:
                return index
        raise IndexError(rank)

    def node_names(self, ranks: Iterable[int]) -> list[str]:
        """Nodes of these ranks, sorted; by their place where there is no scontrol to name them."""
        places = sorted({self.node_index_of(rank) for rank in ranks})
        try:
            names = commands.host_names(self.node_list)
        except UserError:
            return [f"node {place + 1} of {self.node_list}" for place in places]
        return [names[place] for place in places]

    def port(self) -> int:
        """A port of the job's own, so that two jobs on a host do not meet."""
        return _FIRST_PORT + int(self.job) % _PORTS

    def first_address(self) -> str:
        """An address of the first node that this one can reach: its name if it resolves, else
        the address that Slurm itself uses."""
        try:
            name = commands.host_names(self.node_list)[0]
        except UserError as error:
            raise UserError(
                f"first node of {self.node_list}",
                error.found,
                "scontrol, to name it",
                "export MASTER_ADDR=FIRST_NODE, as the templates do",
            ) from None
        try:
            socket.getaddrinfo(name, None)
        except socket.gaierror:
            return commands.node_address(name)
        return name


def read_allocation(environ: Mapping[str, str]) -> Allocation | None:
    """The task's allocation; None outside an srun step (a batch shell is outside)."""
    if not all(name in environ for name in _NEEDED):
        return None
    num_tasks = int(environ["SLURM_NTASKS"])
    return Allocation(
        job=environ["SLURM_JOB_ID"],
        restart=int(environ.get("SLURM_RESTART_COUNT", 0)),
        rank=int(environ["SLURM_PROCID"]),
        local_rank=int(environ["SLURM_LOCALID"]),
        num_tasks=num_tasks,
        node_list=environ["SLURM_STEP_NODELIST"],
        node_index=int(environ.get("SLURM_NODEID", 0)),
        tasks_per_node=_counts(environ.get("SLURM_STEP_TASKS_PER_NODE", str(num_tasks))),
        gpus_on_node=int(environ.get("SLURM_GPUS_ON_NODE", 0)),
        cpus_per_task=int(environ.get("SLURM_CPUS_PER_TASK", 1)),
    )


def require_geometry(given: Allocation, threads: int, use_gpus: bool, visible_gpus: int) -> None:
    """Raise where a job's shape cannot feed its GPUs: `threads` decode for every rank, and
    `visible_gpus` is what this task sees of its node's.

    What is wrong is a node's own (`RankError`), and its first task says it for the node.
    """
    kind = RankError if given.local_rank == 0 else UserError
    if use_gpus and given.gpus_on_node and given.tasks_on_node != given.gpus_on_node:
        raise kind(
            f"--ntasks-per-node on {node_name()}",
            f"{given.tasks_on_node} tasks and {given.gpus_on_node} GPUs",
            "a task a GPU",
            f"submit with --ntasks-per-node={given.gpus_on_node}, or set engine.device=cpu",
        )
    require_cpus(given.cpus_per_task, threads)
    if use_gpus and given.gpus_on_node and not visible_gpus:
        raise kind(
            f"{node_name()}, rank {given.rank}",
            f"no GPU that torch can use; Slurm gave the node {given.gpus_on_node}",
            "a CUDA build of torch and a driver that works",
            f"try nvidia-smi there, submit with --exclude={node_name()}, or set engine.device=cpu",
        )


def require_cpus(cpus_per_task: int, threads: int) -> None:
    """Raise `UserError` where a task has too few cores for the threads that decode for it."""
    if cpus_per_task < threads + 1:
        raise UserError(
            "--cpus-per-task",
            f"{cpus_per_task}",
            f"{threads + 1}: input.threads={threads} that decode and one that trains",
            f"submit with --cpus-per-task={threads + 1} or set input.threads lower",
        )


def job_label(environ: Mapping[str, str]) -> str | None:
    """The job's name for Slurm's commands: `12`, or `12_3` for an element of an array, whose own
    id may be that of the whole array; None outside Slurm."""
    if "SLURM_ARRAY_TASK_ID" in environ and "SLURM_ARRAY_JOB_ID" in environ:
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    return environ.get("SLURM_JOB_ID")


def node_name() -> str:
    """Slurm's name of this node, or the host's outside Slurm."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _counts(text: str) -> tuple[int, ...]:
    """`2(x3),1` as 2, 2, 2, 1."""
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(count)] * int(times or 1)
    return tuple(counts)

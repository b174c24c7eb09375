"""Before the first step: every rank shows that it can do its part, or its node is named."""

import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
import uuid
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed as dist

from supmim_scale import __version__
from supmim_scale.config.schema import RunConfig
from supmim_scale.errors import EXIT_USER_ERROR, UserError
from supmim_scale.launch.provenance import versions
from supmim_scale.launch.world import World
from supmim_scale.slurm.allocation import node_name, read_allocation, require_geometry
from supmim_scale.units import si

_SHARED_WITHIN_S = 90  # man nfs: directories are looked at anew after up to acdirmax, 60 s
_ANSWER_WITHIN = timedelta(minutes=5)  # for a rank to look at itself; a dead mount never answers
_NVIDIA_SMI_S = 60
_SLOW = 0.5  # share of the median rate below which a rank is reported
_MATMUL = {"cuda": 4096, "cpu": 128}
_REDUCED_BYTES = {"cuda": 64 * 2**20, "cpu": 2**20}


def require_shape(config: RunConfig) -> None:
    """Raise `UserError` where the Slurm job's shape does not fit the recipe; before ranks meet."""
    given = read_allocation(os.environ)
    if given is not None:
        use_gpus = config.engine.device != "cpu"
        require_geometry(given, config.input.threads, use_gpus, torch.cuda.device_count())


def inspect_nodes(world: World, data_root: Path, run_dir: Path) -> str:
    """Collective, waits: one line about the nodes, once all of them can do their part.

    Every rank multiplies matrices on its device, names its versions and looks at the data; every
    node reads and writes the run folder; then all reduce together. Raises `UserError` with the
    nodes that cannot, or that do not answer.
    """
    nodes = world.gather(node_name())
    token = world.main_first(lambda: _leave_token(run_dir) if world.is_main else None)
    token = world.gather(token)[0]
    problem, rate = _problem_here(world, data_root, token)
    _require_answers(world, nodes)
    problems, rates, found = zip(*world.gather((problem, rate, _versions())), strict=True)
    if world.is_main and token is not None:
        token.unlink(missing_ok=True)
    _require_none(nodes, list(problems))
    require_equal_versions(nodes, list(found))
    if world.device.type == "cuda":
        _warn(world, nodes, list(rates))
    size, seconds = _all_reduce(world, nodes)
    bus = size / seconds * 2 * (world.world_size - 1) / world.world_size
    reduced = f"; all-reduce of {si(size, 'B')} at {si(bus, 'B/s')} (bus bandwidth as nccl-tests)"
    return (
        f"{len(set(nodes))} nodes, {world.world_size} ranks: devices, versions, data, run folder "
        f"fine{reduced if world.world_size > 1 else ''}"
    )


def require_equal_versions(nodes: list[str], found: list[dict[str, str]]) -> None:
    """Raise `UserError` with the first node whose packages are not those of rank 0."""
    for node, theirs in zip(nodes, found, strict=True):
        for name in sorted(found[0].keys() | theirs.keys()):
            if found[0].get(name) != theirs.get(name):
                raise UserError(
                    f"{node}",
                    f"{name} {theirs.get(name, 'missing')}",
                    f"{found[0].get(name, 'none')} as on {nodes[0]}",
                    "use one installation on all nodes",
                )


def slow_ranks(nodes: list[str], rates: list[float]) -> list[str]:
    """A line for every rank whose device computes far below the median of all."""
    middle = statistics.median(rates)
    return [
        f"{node}, rank {rank} computes at {rate / middle:.2f} of the median: a GPU that throttles?"
        for rank, (node, rate) in enumerate(zip(nodes, rates, strict=True))
        if rate < _SLOW * middle
    ]


def ecc_problem(answer: str) -> str:
    """What nvidia-smi's count of uncorrected memory errors says; GPUs without ECC say [N/A]."""
    counts = [int(word) for word in answer.split() if word.isdigit()]
    return f"{sum(counts)} uncorrected memory errors (ECC)" if sum(counts) else ""


def _problem_here(world: World, data_root: Path, token: Path | None) -> tuple[str, float]:
    """What this rank cannot do, and the FLOP/s of its matrix products."""
    problem, rate = _device_problem(world.device)
    if not problem:
        problem = _data_problem(data_root)
    if not problem and token is not None and world.local_rank == 0:
        problem = _run_folder_problem(token)
    return problem, rate


def _device_problem(device: torch.device) -> tuple[str, float]:
    """Products of small whole numbers are exact: another result is a broken device."""
    size = _MATMUL[device.type]
    try:
        left = (torch.arange(size, device=device) % 3).float().expand(size, size)
        right = torch.ones(size, size, device=device)
        is_right = bool((left @ right == left[0].sum()).all())  # warms up too
        began = time.perf_counter()
        is_right &= bool((left @ right == left[0].sum()).all())
        rate = 2 * size**3 / (time.perf_counter() - began)
    except RuntimeError as error:
        return f"{device}: {str(error).splitlines()[0]}", 0.0
    if not is_right:
        return f"{device} multiplies wrongly", rate
    return "", rate


def _warn(world: World, nodes: list[str], rates: list[float]) -> None:
    """Collective: print what does not keep a rank from training, but should be known."""
    errors = world.gather(_ecc_here(world.device))
    told = [f"{nodes[rank]}, rank {rank}: {line}" for rank, line in enumerate(errors) if line]
    for line in [*slow_ranks(nodes, rates), *told] if world.is_main else []:
        print(f"warning: {line}", flush=True)


def _ecc_here(device: torch.device) -> str:
    """The ECC state of this rank's GPU, or why nvidia-smi does not give it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    query = "--query-gpu=ecc.errors.uncorrected.volatile.total"
    which = f"--id=GPU-{torch.cuda.get_device_properties(device).uuid}"
    try:
        done = subprocess.run(
            [program, which, query, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=_NVIDIA_SMI_S,
        )
    except (subprocess.SubprocessError, OSError) as error:
        return f"nvidia-smi: {error}"
    return ecc_problem(done.stdout)


def _require_answers(world: World, nodes: list[str]) -> None:
    """Collective. Raises `UserError`, on rank 0 with the nodes that do not answer in time."""
    if world.world_size == 1:
        return
    try:
        dist.monitored_barrier(world.control, _ANSWER_WITHIN, wait_all_ranks=True)
    except RuntimeError as error:
        ranks = [int(word) for word in re.findall(r"\d+", str(error).partition("Ranks")[2])]
        late = sorted({nodes[rank] for rank in ranks if rank < len(nodes)}) or ["a node"]
        raise UserError(
            f"preflight, {', '.join(late)}",
            f"no answer in {_ANSWER_WITHIN.total_seconds():.0f} s",
            "a device, data and a run folder that answer",
            f"look for a dead mount or GPU, or submit with --exclude={','.join(late)}",
        ) from None


def _data_problem(root: Path) -> str:
    try:
        with os.scandir(root) as entries:
            return "" if next(entries, None) is not None else f"{root} is empty"
    except OSError as error:
        return f"input.root: {error}"


def _leave_token(run_dir: Path) -> Path:
    """A file by which other nodes see that the run folder is the same one."""
    token = run_dir.resolve() / f"preflight-{uuid.uuid4().hex[:12]}"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        token.write_text("seen from every node\n")
    except OSError as error:
        raise UserError("log.run_dir", str(error), "a writable folder", "name another") from None
    return token


def _run_folder_problem(token: Path) -> str:
    """What keeps this node from the run folder that rank 0 writes in."""
    deadline, mine = time.monotonic() + _SHARED_WITHIN_S, token.with_suffix(f".{node_name()}")
    if not token.parent.is_dir():
        return f"log.run_dir: no folder {token.parent}, which rank 0 has made: not a shared one"
    while token.name not in os.listdir(token.parent):  # asks anew where exists() remembers
        if time.monotonic() > deadline:
            return f"{token.parent} is not the folder that rank 0 writes in: not a shared one"
        time.sleep(0.5)
    try:
        mine.write_text("written\n")
        mine.unlink()
    except OSError as error:
        return f"log.run_dir: {error}"
    return ""


def _require_none(nodes: list[str], problems: list[str]) -> None:
    bad = {node: problem for node, problem in zip(nodes, problems, strict=True) if problem}
    if bad:
        raise UserError(
            f"preflight, {', '.join(bad)}",
            "; ".join(dict.fromkeys(bad.values())),
            "a node that can do its part",
            f"fix it or submit with --exclude={','.join(bad)}",
        )


def _versions() -> dict[str, str]:
    cuda = {"CUDA": torch.version.cuda} if torch.version.cuda else {}
    return {"python": platform.python_version(), "supmim_scale": __version__, **versions(), **cuda}


def _all_reduce(world: World, nodes: list[str]) -> tuple[int, float]:
    """Collective: bytes, and the best time of three. A network that lets nothing through ends the
    process with a line."""
    size, times = _REDUCED_BYTES[world.device.type], list[float]()
    watch = threading.Timer(_ANSWER_WITHIN.total_seconds(), _give_up, [world, nodes])
    watch.daemon = True
    watch.start()
    values = torch.zeros(size // 4, device=world.device)
    for _ in range(4):
        began = time.perf_counter()
        dist.all_reduce(values)
        if values.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    watch.cancel()
    return size, min(times[1:])


def _give_up(world: World, nodes: list[str]) -> None:
    if world.is_main:
        print(
            f"error: preflight: found no all-reduce among {', '.join(dict.fromkeys(nodes))} in "
            f"{_ANSWER_WITHIN.total_seconds():.0f} s; expected one; look at the network, set "
            "NCCL_SOCKET_IFNAME and NCCL_DEBUG=INFO",
            file=sys.stderr,
            flush=True,
        )
        os._exit(EXIT_USER_ERROR)  # a thread cannot end a collective

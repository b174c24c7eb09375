"""Clocks, roofs and counters of a measured step; a column without a value has its reason."""

import math
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.rows.ranks import Row
from benchmarks.speed.steps import Step
from supmim_scale.build.model import joint_shape
from supmim_scale.config import RunConfig
from supmim_scale.hardware.gpus import gpu_of_device
from supmim_scale.launch.provenance import device_name, peak_memory_bytes
from supmim_scale.launch.world import World
from supmim_scale.planner.cluster import cluster_of
from supmim_scale.planner.setting import RecipeMemory
from supmim_scale.planner.speed import Assumed, step_time
from supmim_scale.training.profile import read_profile, timed, write_profile

PHASES = ("forward", "backward", "optimizer")
_ROOF_SIDE = {"cuda": 8192, "cpu": 2048}
_ROOF_REPEATS = 5
_GPU_COLUMNS = {  # of nvidia-smi, with their unit in the row's name
    "clocks.sm": "sm_clock_mhz",
    "clocks.mem": "memory_clock_mhz",
    "power.draw": "power_w",
    "power.limit": "power_limit_w",
    "temperature.gpu": "temperature_c",
}


class PhaseClock:
    """Seconds of forward, backward and optimizer of every step.

    On a GPU by CUDA events, read once at the end, so that the host runs ahead as in training; on a
    CPU by the wall clock.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._marks: list[list[Any]] = []
        self.waits: list[float] = []  # seconds of every step
        self._hook = module.register_forward_hook(lambda *_: self._mark())

    def step(self, step: Step) -> torch.Tensor:
        """Run and time one step; its loss."""
        self._marks.append([])
        self._mark()
        self.waits.append(step.fetch())
        self._mark()
        loss = step.forward_backward()
        self._mark()
        step.apply()
        self._mark()
        return loss

    def read(self) -> tuple[list[float], dict[str, list[float]]]:
        """Waits: (seconds of every step, seconds of every phase). On a GPU a step reaches from the
        end of the one before."""
        self._hook.remove()
        if self._is_cuda:
            torch.cuda.synchronize()
        steps = self._marks
        phases: dict[str, list[float]] = {
            name: [self._between(marks[i + 1], marks[i + 2]) for marks in steps]
            for i, name in enumerate(PHASES)
        }
        starts = (
            [steps[0][0], *(marks[-1] for marks in steps[:-1])]
            if self._is_cuda
            else [marks[0] for marks in steps]
        )
        whole = [self._between(a, marks[-1]) for a, marks in zip(starts, steps, strict=True)]
        return whole, phases

    def _mark(self) -> None:
        if not self._is_cuda:
            self._marks[-1].append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks[-1].append(event)

    def _between(self, first: Any, second: Any) -> float:
        if self._is_cuda:
            return float(first.elapsed_time(second)) / 1e3
        return float(second - first)


def time_steps(step: Step, world: World, warmup: int, count: int) -> Row:
    """Collective: loss after `warmup` + `count` steps, and how long the last `count` took."""
    loss = torch.zeros((), device=world.device)
    for _ in range(warmup):
        loss = step.run()
    if world.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    world.barrier()
    clock = PhaseClock(step.module, world.device)
    with machine_state(world.device) as state:
        for _ in range(count):
            loss = clock.step(step)
        times, phases = clock.read()
    mean_loss = world.sum(loss.double()).item() / world.world_size
    split = {f"{name}_s": statistics.median(seconds) for name, seconds in phases.items()}
    return {
        "loss": mean_loss,
        "step_time_median_s": statistics.median(times),
        "step_time_p95_s": float(np.percentile(times, 95)),
        **split,
        "data_wait_s": statistics.median(clock.waits) if step.feed else None,
        "data_wait_reason": None if step.feed else "the batch is fixed: --data feeds samples",
        "steps_warmup": warmup,
        "steps_measured": count,
        **state,
    }


def speed(row: Row, step: Step, world: World, precision: str, roof: float) -> Row:
    """Rates of a timed step. MFU is null with its reason where the vendor's peak is unknown;
    `roof_share` is of the `roof` of a matmul measured beside it, FLOP/s over all ranks."""
    rate, flops = step.images / row["step_time_median_s"], step.flops
    gpu = gpu_of_device(device_name())
    peak = gpu.bf16_flops_per_s if gpu and precision == "bf16" else None
    reason = None if peak else f"no sourced {precision} peak for {device_name()}"
    vendor = world.world_size * peak if peak else None
    return {
        "images_per_s": rate,
        "images_per_s_per_rank": rate / world.world_size,
        "train_flops_per_image": flops.model,
        "hardware_flops_per_image": flops.hardware,
        "achieved_flops_per_s": rate * flops.model,
        "mfu": rate * flops.model / vendor if vendor else None,
        "hfu": rate * flops.hardware / vendor if vendor else None,
        "mfu_reason": reason,
        "roof_flops_per_s": roof,
        "roof_share": rate * flops.model / roof,
        "roof_share_hardware": rate * flops.hardware / roof,
    }


def planned(
    config: RunConfig, world: World, images_per_s: float | None, expected_mfu: float | None
) -> Row:
    """What `supmim-scale plan --mfu EXPECTED` says of our step's images/s, and its error; with no
    expectation at what the planner assumes. No `images_per_s`: a baseline, or a step that is fed,
    whose host the planner does not know."""
    gpu, reason = gpu_of_device(device_name()), f"no datasheet of {device_name()}"
    if images_per_s is None or gpu is None:
        reason = reason if images_per_s else "the planner knows our step alone, not fed"
        return {
            "planned_images_per_s": None,
            "planned_error": None,
            "planned_mfu": None,
            "planned_reason": reason,
        }
    known, cluster = RecipeMemory(config), cluster_of(gpu.name, 1, world.world_size)
    setting = known.setting(config, world.world_size, pool=False)
    shape = joint_shape(config, known.out_features)
    assumed = Assumed(decoded_per_s=math.inf)
    if expected_mfu is not None:
        assumed = replace(assumed, mfu=expected_mfu)
    rate = step_time(setting, cluster, known.size, shape, assumed).images_per_s
    error = rate / images_per_s - 1
    return {
        "planned_images_per_s": rate,
        "planned_error": error,
        "planned_mfu": assumed.mfu,
        "planned_reason": None,
    }


def memory(world: World) -> Row:
    """Collective: peaks of the fullest rank since warm-up."""
    is_cuda = world.device.type == "cuda"
    peaks = [float(peak_memory_bytes()), float(torch.cuda.max_memory_reserved()) if is_cuda else 0]
    allocated, reserved = world.max(torch.tensor(peaks, device=world.device)).tolist()
    return {
        "peak_memory_bytes": allocated,
        "peak_reserved_bytes": reserved if is_cuda else None,
        "memory_reason": None if is_cuda else "the process's resident set: no caching allocator",
    }


def one_profiled_step(
    run: Callable[[], Any], folder: Path | None = None, waited_s: float = 0.0
) -> Row:
    """Collective: the attention kernels that a step runs, its seconds in collectives, and what
    binds, from the profiler, where a step waits `waited_s` for its input; trace and table go to
    `folder` on the rank that names one."""
    profiler, wall_s = timed(run)
    found = read_profile(profiler, 1, wall_s, min(waited_s, wall_s))
    if folder is not None:
        write_profile(profiler, found, folder)
    return {
        "attention": list(found.attention),
        "communication_s": found.communication_s,
        "communication_exposed_s": found.exposed_s,
        "binds": found.line,
    }


def matmul_roof(world: World, precision: str) -> float:
    """Collective: FLOP/s of a large square product in the step's type, all ranks at once."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    side = _ROOF_SIDE[world.device.type]
    a, b = (torch.randn(side, side, device=world.device).to(dtype) for _ in range(2))
    world.barrier()
    rate = 2 * side**3 / fastest(lambda: a @ b, world.device, _ROOF_REPEATS)
    return float(world.sum(torch.tensor(rate, device=world.device, dtype=torch.float64)))


def fastest(call: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Seconds of the fastest of some calls, after one that does not count; waits."""
    seconds = []
    for _ in range(repeats + 1):
        if device.type == "cuda":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            call()
            last.record()
            torch.cuda.synchronize()
            seconds.append(first.elapsed_time(last) / 1e3)
        else:
            started = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


@contextmanager
def machine_state(device: torch.device) -> Iterator[Row]:
    """A row's clocks and power: asked for as the steps inside begin, filled in at their end."""
    row: Row = dict.fromkeys(_GPU_COLUMNS.values())
    if device.type != "cuda":
        yield row | {"cpu_clock_mhz": cpu_clock_mhz(), "power_reason": "no GPU"}
        return
    query = [
        "nvidia-smi",
        f"--query-gpu={','.join(_GPU_COLUMNS)}",
        "--format=csv,noheader,nounits",
        "-i",
        f"GPU-{torch.cuda.get_device_properties(device).uuid}",
    ]
    try:
        pipe = subprocess.PIPE
        asking = subprocess.Popen(query, stdout=pipe, stderr=pipe, text=True)
    except OSError as error:
        yield row | {"power_reason": f"nvidia-smi: {error.strerror}"}
        return
    yield row
    row |= gpu_columns(asking.communicate(), asking.returncode)


def gpu_columns(told: tuple[str, str], code: int) -> Row:
    """The columns in nvidia-smi's (output, errors), and in `power_reason` why some are null."""
    if code:
        lines = [line for text in reversed(told) for line in text.splitlines() if line.strip()]
        why = lines[0].strip() if lines else f"exit code {code}"
        return dict.fromkeys(_GPU_COLUMNS.values()) | {"power_reason": f"nvidia-smi: {why}"}
    words = [word.strip() for word in told[0].split(",")]
    words += ["nothing"] * (len(_GPU_COLUMNS) - len(words))
    row = dict(zip(_GPU_COLUMNS.values(), map(_number, words), strict=True))
    missing = [
        f"{word} of {name}"
        for (name, value), word in zip(row.items(), words, strict=True)
        if value is None
    ]
    return row | {"power_reason": f"nvidia-smi says {', '.join(missing)}" if missing else None}


def cpu_clock_mhz() -> float | None:
    """Mean over the cores, as Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    return statistics.mean(found) if found else None


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:  # nvidia-smi says [N/A]
        return None

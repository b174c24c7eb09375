"""Where the time of a few steps goes: the top kernels, and what binds."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

from supmim_scale.training.meters import ClockMark, StepClock

TOP = 25  # kernels in the table
# Families by words in a kernel's or an operator's name; the first that fits counts.
FAMILIES = (
    ("fused element-wise", ("triton_",)),  # inductor's, whatever they fuse into their names
    ("communication", ("nccl", "gloo:", "c10d::", "record_param_comms")),
    ("attention", ("scaled_dot_product", "flash", "fmha", "attention", "sdpa")),
    ("convolution", ("conv",)),
    ("matrix products", ("gemm", "nvjet", "cutlass", "addmm", "::mm", "::bmm", "baddbmm")),
    ("norms", ("norm",)),
    ("copies and casts", ("copy", "memcpy", "memset", "::cat", "catarray")),
    ("optimizer", ("adam", "multi_tensor", "foreach")),
)
REST = "element-wise and others"
# Operators that only hand over to the one that has the kernel's name.
_OUTER_ATTENTION = ("aten::scaled_dot_product_attention", "aten::_fused_sdp_choice")


@dataclass(frozen=True)
class Kernel:
    """A kernel of the GPU, or an operator's own time on a CPU, over all profiled steps."""

    name: str
    calls: int
    total_s: float


@dataclass(frozen=True)
class Profile:
    """Seconds of `steps` steps: `busy_s` with a kernel at work, `communication_s` in collectives,
    hidden behind compute or not, `exposed_s` of it not hidden, `waited_s` for input."""

    steps: int
    wall_s: float
    waited_s: float
    busy_s: float
    communication_s: float
    exposed_s: float
    kernels: tuple[Kernel, ...]
    attention: tuple[str, ...]

    def families(self) -> dict[str, float]:
        """Seconds of kernels by family, the largest first; communication left out."""
        sums: Counter[str] = Counter()
        for kernel in self.kernels:
            sums[family_of(kernel.name)] += kernel.total_s  # type: ignore[assignment]
        del sums["communication"]
        return dict(sums.most_common())

    def shares(self) -> dict[str, float]:
        """Shares of the wall clock of what a step can wait for."""
        compute = max(0.0, self.busy_s - self.exposed_s)
        host = max(0.0, self.wall_s - self.busy_s - self.waited_s)
        parts = {"compute": compute, "communication": self.exposed_s}
        parts |= {"data wait": self.waited_s, "host launches": host}
        return {name: seconds / self.wall_s for name, seconds in parts.items()}

    @property
    def line(self) -> str:
        """What binds, in one line."""
        shares, families = self.shares(), self.families()
        binds = max(shares, key=lambda name: shares[name])
        rest = ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if name != binds)
        most = ""
        if binds == "compute" and families:
            name, spent = next(iter(families.items()))
            most = f", most of it {name} ({spent / max(1e-12, sum(families.values())):.0%})"
        return (
            f"{binds} binds: {shares[binds]:.0%} of a step of {self.wall_s / self.steps:.3f} s"
            f"{most}; {rest}"
        )

    def table(self) -> str:
        """The top kernels as Markdown."""
        total = max(1e-12, sum(kernel.total_s for kernel in self.kernels))
        lines = [
            f"{self.line}.\n",
            "| kernel | family | calls a step | total a step | share |",
            "|---|---|---|---|---|",
        ]
        for kernel in self.kernels[:TOP]:
            name = kernel.name.replace("|", "\\|")[:120]
            lines.append(
                f"| `{name}` | {family_of(kernel.name)} | {kernel.calls / self.steps:g} "
                f"| {kernel.total_s / self.steps * 1e3:.3f} ms | {kernel.total_s / total:.1%} |"
            )
        return "\n".join(lines) + "\n"


def family_of(name: str) -> str:
    """The family that a kernel's name speaks of."""
    lower = name.lower()
    found = (family for family, words in FAMILIES if any(word in lower for word in words))
    return next(found, REST)


def start_profiler() -> profile:
    """A running profiler of the host, and of the GPU where there is one; waits for the device."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    _wait_for_device()
    profiler = profile(activities=activities, acc_events=True)
    profiler.start()
    return profiler


def read_profile(profiler: profile, steps: int, wall_s: float, waited_s: float) -> Profile:
    """What a stopped profiler saw."""
    events = list(profiler.events() or [])
    on_gpu = [
        event
        for event in events
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]
    kernels = _kernels(profiler, on_gpu)
    collectives = _spans(
        event for event in (on_gpu or events) if event.name.lower().startswith(("gloo:", "nccl"))
    )
    working = _spans(event for event in on_gpu if family_of(event.name) != "communication")
    communication, compute = _covered(collectives), _covered(working)
    if on_gpu:
        busy = _covered([*collectives, *working])
        exposed = busy - compute
    else:  # gloo's threads run beside the one that computes, which mostly waits for them
        own = sum(k.total_s for k in kernels if family_of(k.name) != "communication")
        exposed = min(communication, max(0.0, wall_s - waited_s - own))
        busy = min(wall_s - waited_s, own + exposed)
    return Profile(
        steps, wall_s, waited_s, busy, communication, exposed, kernels, attention_of(events)
    )


def write_profile(profiler: profile, found: Profile, folder: Path) -> None:
    """`trace.json.gz` for chrome://tracing or Perfetto, and `kernels.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(folder / "trace.json.gz"))
    (folder / "kernels.md").write_text(found.table())


def attention_of(events: Iterable[Any]) -> tuple[str, ...]:
    """Names of the attention operators and kernels that ran, forward and backward."""
    names = {event.name for event in events if family_of(event.name) == "attention"}
    outer = (*_OUTER_ATTENTION, *(name for name in names if "Backward0" in name))
    return tuple(sorted(names.difference(outer)))


class StepProfiler:
    """Profiles some steps of a run once they are warm, and takes them out of its clock.

    `start`: steps done before the first profiled one. Without a folder it does nothing.
    """

    def __init__(self, folder: Path | None, start: int, steps: int) -> None:
        self._folder, self._start, self._steps = folder, start, steps
        self._running: tuple[profile, ClockMark, float] | None = None

    def step(self, steps_done: int, clock: StepClock) -> Profile | None:
        """Begin or end where it is time; what was found, once its files are written.

        Waits for the device where it begins and ends. Between lies no log line (`profiled_from`),
        where the clock is read and a run may be rolled back.
        """
        if self._folder is None or steps_done < self._start:
            return None
        if self._running is None:
            _wait_for_device()
            mark = clock.mark()
            self._running = start_profiler(), mark, time.perf_counter()
            self._start = steps_done + self._steps
            return None
        profiler, mark, begun = self._running
        _wait_for_device()
        ended = time.perf_counter()
        waited_s, paused_s = clock.go_back(mark)
        profiler.stop()
        found = read_profile(profiler, self._steps, ended - begun - paused_s, waited_s)
        write_profile(profiler, found, self._folder)
        self._folder = None
        clock.paused(time.perf_counter() - ended)
        return found


def profiled_from(begun: int, num_steps: int, every: int, steps: int) -> int | None:
    """Steps done where a run profiles `steps` of its own: at its first log line, or after its
    first step where it is too short for that; None: it is too short for either before the next
    line."""
    at_line = (begun // every + 1) * every
    if at_line + steps < num_steps:
        return at_line
    ended = begun + 1 + steps
    return begun + 1 if ended < min(num_steps, at_line) else None


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _kernels(profiler: profile, on_gpu: Sequence[Any]) -> tuple[Kernel, ...]:
    if on_gpu:
        calls: Counter[str] = Counter(event.name for event in on_gpu)
        spent: Counter[str] = Counter()
        for event in on_gpu:
            spent[event.name] += event.time_range.elapsed_us()
        found = [Kernel(name, calls[name], us / 1e6) for name, us in spent.items()]
    else:
        found = [
            Kernel(average.key, average.count, average.self_cpu_time_total / 1e6)
            for average in profiler.key_averages()
        ]
    return tuple(sorted(found, key=lambda kernel: -kernel.total_s))


def _spans(events: Iterable[Any]) -> list[tuple[float, float]]:
    return [(event.time_range.start, event.time_range.end) for event in events]


def _covered(spans: Sequence[tuple[float, float]]) -> float:
    """Seconds that at least one of the spans of microseconds covers."""
    covered, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        covered += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return covered / 1e6


def timed(step: Callable[[], Any]) -> tuple[profile, float]:
    """A stopped profiler of the second of two calls of `step`, and the seconds it took; waits for
    the device. The first is thrown away: a process's first profiler sets itself up meanwhile."""
    warming = start_profiler()
    step()
    _wait_for_device()
    warming.stop()
    profiler = start_profiler()
    started = time.perf_counter()
    step()
    _wait_for_device()
    wall_s = time.perf_counter() - started
    profiler.stop()
    return profiler, wall_s

"""Ratios of two steps that live in one process and take turns, A B B A and so on.

What disturbs a machine disturbs both, so that the ratio of a round can be trusted where the times
cannot. The figure is the median of the rounds' ratios; its interval is that of order statistics.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy import stats

from benchmarks.rows.ranks import Job, Row
from benchmarks.speed.baselines import SIDES
from benchmarks.speed.measuring import one_profiled_step
from benchmarks.speed.pairs import ALL, DS_CONFIGS
from benchmarks.speed.steps import Step, our_step, recipe_of
from supmim_scale.config import digest
from supmim_scale.engine.settings import resolve_precision
from supmim_scale.launch.provenance import peak_memory_bytes
from supmim_scale.launch.world import World

COVERAGE = 0.95
_TORCHS_LINEAR = torch.nn.functional.linear
# Relative, after the same number of steps from the same weights on the same batch.
LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}


def measure_pair(job: Job, world: World) -> Row:
    """Rounds of a pair in this one process, its ratio and what was promised of it.

    Where both sides learn the same their losses after the same number of steps must agree, else
    the row is an error.
    """
    pair = ALL[job["pair"]]
    first, second = (Side.built(side, job, world) for side in (pair.first, pair.second))
    losses = [0.0, 0.0]
    for _ in range(job["warmup"]):
        losses = [float(step.run()) for step in (first, second)]
    rounds = take_turns(first, second, job["rounds"], job["steps"], world.device)
    config = recipe_of(job)
    precision = resolve_precision(config.engine.precision, world.device)
    flop_ratio = first.step.flops.model / second.step.flops.model
    is_cuda = world.device.type == "cuda"
    row = {
        "kind": "pair",
        "pair": job["pair"],
        "what": pair.what,
        "ratio_of": pair.kind,
        **{name: job[name] for name in ("model", "image_size", "policy", "overrides")},
        "engine": f"zero{job['stage']}" if job["stage"] else "plain",
        "first": pair.first,
        "second": pair.second,
        "precision": precision,
        "images": first.step.images,
        "threads": torch.get_num_threads(),
        "rounds": job["rounds"],
        "steps_a_round": job["steps"],
        "steps_warmup": job["warmup"],
        "digest": digest(config),
        "losses": losses,
        "flop_ratio": flop_ratio,
        "peak_memory_bytes": peak_memory_bytes(),
        "first_s": statistics.median(a for a, _ in rounds) / job["steps"],
        "second_s": statistics.median(b for _, b in rounds) / job["steps"],
        "attention": one_profiled_step(first.run)["attention"],
    }
    gap = abs(losses[0] - losses[1]) / abs(losses[1])
    row["loss_gap"] = gap
    if pair.same_loss and not gap <= LOSS_TOLERANCE[precision]:
        return row | {"error": f"loss {losses[0]:.6f} where {pair.second} has {losses[1]:.6f}"}
    scale = flop_ratio if pair.per_flop else 1.0
    ratios = [a / b / scale if pair.kind == "time" else b / a for a, b in rounds]
    bound = pair.bound_gpu if is_cuda else pair.bound_cpu
    return row | verdict(ratios, bound, pair.kind) | {"round_ratios": ratios}


@dataclass(frozen=True)
class Side:
    """A step with the linear function it was built under.

    DeepSpeed's stage 3 puts its own in torch's place for the whole process (0.19,
    partition_parameters.py), where it would slow the other side down too.
    """

    step: Step
    linear: Callable[..., torch.Tensor]

    @classmethod
    def built(cls, side: str, job: Job, world: World) -> "Side":
        """The side that a pair names."""
        torch.nn.functional.linear = _TORCHS_LINEAR
        step = side_step(side, job, world)
        return cls(step, torch.nn.functional.linear)

    def run(self) -> torch.Tensor:
        """One whole step; its loss."""
        torch.nn.functional.linear = self.linear
        return self.step.run()


def side_step(side: str, job: Job, world: World) -> Step:
    """The step that a side names, under the job's engine unless it names its own."""
    name, *words = side.split()
    stage, colon, layout = name.rpartition(":")
    if layout in SIDES:
        # The plain recipe: overrides say how our engine runs, of which a baseline knows nothing.
        return SIDES[layout](recipe_of({**job, "stage": None, "overrides": []}), world)
    own = int(stage.removeprefix("zero")) if colon else job["stage"]
    words = [word.replace("engine.ds_config=", f"engine.ds_config={DS_CONFIGS}/") for word in words]
    given = {**job, "layout": layout, "stage": own, "overrides": [*job["overrides"], *words]}
    return our_step(recipe_of(given), world)


def take_turns(
    first: Side, second: Side, rounds: int, count: int, device: torch.device
) -> list[tuple[float, float]]:
    """Seconds of `count` steps of each in every round; who begins changes from round to round."""
    found = []
    for number in range(rounds):
        if number % 2:
            b, a = (_seconds(step.run, count, device) for step in (second, first))
        else:
            a, b = (_seconds(step.run, count, device) for step in (first, second))
        found.append((a, b))
    return found


def verdict(ratios: list[float], bound: float | None, kind: str) -> Row:
    """Median and interval of rounds' ratios, and whether the median keeps the bound."""
    low, high = median_interval(ratios)
    median = statistics.median(ratios)
    row: Row = {"ratio": median, "ratio_low": low, "ratio_high": high, "bound": bound}
    if bound is None:
        return row | {"verdict": None, "verdict_reason": "no bound is stated for this device"}
    is_kept = median <= bound if kind == "time" else median >= bound
    is_clear = high <= bound or low > bound if kind == "time" else low >= bound or high < bound
    return row | {"verdict": "PASS" if is_kept else "FAIL", "is_clear": is_clear}


def median_interval(values: list[float], coverage: float = COVERAGE) -> tuple[float, float]:
    """The narrowest symmetric pair of order statistics that holds the median with at least
    `coverage` (the ends where so few values cannot)."""
    ordered, count = sorted(values), len(values)
    for k in range((count - 1) // 2, -1, -1):
        if 1 - 2 * stats.binom.cdf(k, count, 0.5) >= coverage:
            return ordered[k], ordered[count - 1 - k]
    return ordered[0], ordered[-1]


def _seconds(call: Callable[[], object], count: int, device: torch.device) -> float:
    """Waits: wall seconds of some calls."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(count):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started

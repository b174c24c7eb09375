"""Two arms of a study side by side: supervised against supervised + MIM, and the gap between."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from supmim_scale.scaling.analysis import Analysis
from supmim_scale.scaling.bootstrap import Replicates
from supmim_scale.scaling.budget import frontier
from supmim_scale.scaling.fit import Fit
from supmim_scale.scaling.laws import Array

_GRID = 40
BASELINE = "supervised"


@dataclass(frozen=True)
class Gap:
    """The baseline's metric less the other's at equal compute, with its interval: above 0 the
    other is better. `compute` spans what both arms have measured."""

    baseline: str
    other: str
    compute: Array
    gap: Array
    low: Array | None
    high: Array | None


def baseline_of(arms: list[str]) -> str:
    """The arm that others are compared to: the supervised one, else the first by name."""
    return BASELINE if BASELINE in arms else arms[0]


def gap_between(
    baseline: tuple[Fit, Replicates | None],
    other: tuple[Fit, Replicates | None],
    factors: tuple[float, float],
) -> Gap:
    """The gap along the compute that both arms span.

    Arms are drawn apart from each other, so replicates of the one meet any of the other's.
    """
    (fit_0, draws_0), (fit_1, draws_1) = baseline, other
    costs = fit_0.points.column("compute"), fit_1.points.column("compute")
    grid = np.geomspace(max(c.min() for c in costs), min(c.max() for c in costs), _GRID)

    def difference(theta_0: Array, theta_1: Array) -> Array:
        metric_0 = frontier(fit_0, grid, factors[0], theta_0)
        return metric_0 - frontier(fit_1, grid, factors[1], theta_1)

    low = high = None
    if draws_0 and draws_1:
        pairs = zip(draws_0.thetas, draws_1.thetas, strict=True)
        curves = np.stack([difference(*pair) for pair in pairs])
        wider = max((draws_0, draws_1), key=lambda draws: draws.widening)
        low, high = wider.interval(curves, difference(fit_0.theta, fit_1.theta))
    names = fit_0.points.arms[0], fit_1.points.arms[0]
    return Gap(*names, grid, difference(fit_0.theta, fit_1.theta), low, high)


def gaps_of(analyses: Sequence[Analysis]) -> list[Gap]:
    """Every other arm that shares some compute with the baseline, against it."""
    by_name = {analysis.arm: analysis for analysis in analyses}
    base = by_name.pop(baseline_of(sorted(by_name)))
    return [
        gap_between((base.fit, base.replicates), (a.fit, a.replicates), (base.factor, a.factor))
        for a in by_name.values()
        if _overlap(base.points.compute, a.points.compute)
    ]


def _overlap(one: Array, other: Array) -> bool:
    """Whether two arms span some compute together; not where either has no compute."""
    if not len(one) or not len(other):
        return False
    return bool(max(one.min(), other.min()) < min(one.max(), other.max()))

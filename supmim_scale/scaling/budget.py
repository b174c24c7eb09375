"""What a budget would buy: the best metric, and for the parametric law the sizes that give it."""

from dataclasses import dataclass

import numpy as np

from supmim_scale.scaling.bootstrap import Replicates
from supmim_scale.scaling.chinchilla import Allocation, approach_3
from supmim_scale.scaling.fit import Fit, of_theta
from supmim_scale.scaling.laws import Array

Interval = tuple[float, float]


@dataclass(frozen=True)
class Purchase:
    """What training FLOPs would buy. Sizes where an approach gives them; intervals where there
    are replicates; `beyond` is the budget over the most expensive point's."""

    compute: float
    metric: float
    metric_interval: Interval | None
    params: float | None
    params_interval: Interval | None
    data: float | None
    data_interval: Interval | None
    beyond: float


def frontier(fit: Fit, compute: Array, flops_factor: float, theta: Array | None = None) -> Array:
    """The law's metric at budgets; the parametric law is asked at its compute-optimal sizes."""
    if fit.law.inputs == ("compute",):
        return fit.predict(compute[:, None], theta)
    at = fit if theta is None else of_theta(fit, theta)
    sizes = approach_3(at, None, flops_factor).curve(compute)
    return fit.predict(np.stack(sizes, axis=1), theta)


def frontier_band(
    replicates: Replicates, compute: Array, flops_factor: float
) -> tuple[Array, Array]:
    """The interval of `frontier` at every budget."""
    curves = np.stack(
        [frontier(replicates.fit, compute, flops_factor, t) for t in replicates.thetas]
    )
    return replicates.interval(curves, frontier(replicates.fit, compute, flops_factor))


def buy(
    fit: Fit,
    replicates: Replicates | None,
    allocation: Allocation | None,
    flops_factor: float,
    compute: float,
) -> Purchase:
    """What `compute` would buy by this fit, with sizes by `allocation`."""
    at = np.array([compute])
    band = frontier_band(replicates, at, flops_factor) if replicates else None
    n, d = allocation.sizes(compute) if allocation else (None, None)
    intervals = allocation.size_intervals(compute) if allocation else None
    return Purchase(
        compute,
        float(frontier(fit, at, flops_factor)[0]),
        (float(band[0][0]), float(band[1][0])) if band else None,
        n,
        intervals[0] if intervals else None,
        d,
        intervals[1] if intervals else None,
        compute / float(fit.points.column("compute").max()),
    )

"""Compute-optimal sizes by the three approaches of Hoffmann et al. 2022 (arXiv 2203.15556).

Each gives N_opt = n_at_1 C^a and D_opt = d_at_1 C^b with replicates for intervals: approach 1
from the best run of every compute bin, approach 2 from the minima of iso-FLOP parabolas, approach
3 from the parametric law.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from supmim_scale.errors import UserError
from supmim_scale.scaling.bootstrap import TAILS, Replicates, draw_weights
from supmim_scale.scaling.fit import Fit
from supmim_scale.scaling.laws import Array
from supmim_scale.scaling.points import Points
from supmim_scale.units import si

_LEAST_RUNGS = 3  # two make a line whatever they hold
_LEAST_SIZES = 4  # on a rung: one more than a parabola takes
_SAME_BUDGET = 1.25  # runs whose compute differs by less than this factor share a budget
_BINS_PER_DECADE = 4
_NAMED = 3  # rungs in a refusal
_TRIES = 10  # draws a replicate, at most


@dataclass(frozen=True)
class Rung:
    """One budget's minimum; for approach 2 with the parabola of the metric in log N."""

    compute: float
    params: float
    data: float
    metric: float
    members: tuple[int, ...]
    parabola: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Allocation:
    """Compute-optimal sizes. `lines` holds log n_at_1, a, log d_at_1, b about `log_centre`."""

    approach: int
    log_centre: float
    lines: Array
    replicates: Array
    rungs: tuple[Rung, ...] = ()
    left_out: tuple[str, ...] = ()
    widening: float = 1.0  # of intervals about `lines`, for few clusters

    @property
    def exponents(self) -> tuple[float, float]:
        """(a, b): N_opt grows as C^a, D_opt as C^b."""
        return float(self.lines[1]), float(self.lines[3])

    def sizes(self, compute: float) -> tuple[float, float]:
        """(N_opt, D_opt) for a budget."""
        n, d = self.curve(np.array([compute]))
        return float(n[0]), float(d[0])

    def curve(self, compute: Array) -> tuple[Array, Array]:
        """(N_opt, D_opt) for every budget."""
        return _sizes(self.lines, np.log(compute) - self.log_centre)

    def exponent_intervals(self) -> tuple[tuple[float, float], tuple[float, float]] | None:
        """Intervals of (a, b); None without replicates."""
        if not len(self.replicates):
            return None
        a, b = self.exponents
        return self._middle(self.replicates[:, 1], a), self._middle(self.replicates[:, 3], b)

    def size_intervals(
        self, compute: float
    ) -> tuple[tuple[float, float], tuple[float, float]] | None:
        """Intervals of (N_opt, D_opt) for a budget; None without replicates."""
        if not len(self.replicates):
            return None
        drawn = _sizes(self.replicates.T, np.log(compute) - self.log_centre)
        n, d = (
            np.exp(self._middle(np.log(column), float(np.log(at))))
            for column, at in zip(drawn, self.sizes(compute), strict=True)
        )
        return (float(n[0]), float(n[1])), (float(d[0]), float(d[1]))

    def _middle(self, samples: Array, at: float) -> tuple[float, float]:
        low, high = np.quantile(samples, TAILS)
        return float(at + self.widening * (low - at)), float(at + self.widening * (high - at))


def _sizes(lines: Array, x: Array | float) -> tuple[Array, Array]:
    return np.exp(lines[0] + lines[1] * x), np.exp(lines[2] + lines[3] * x)


def approach_1(points: Points, num: int = 0, *, seed: int = 0) -> Allocation:
    """From the lowest metric in every bin of compute, four bins a decade.

    A bin whose best run is its smallest or its largest shows no minimum and is left out by name.
    Raises `UserError` where fewer than three remain.
    """
    bins = np.floor(np.log10(points.column("compute")) * _BINS_PER_DECADE).astype(np.int64)

    def best_of(weights: Array) -> list[tuple[Rung, bool]]:
        drawn = np.flatnonzero(weights)
        return [_best_run(points, drawn[bins[drawn] == b]) for b in np.unique(bins[drawn])]

    def minima(weights: Array) -> list[Rung]:
        return [rung for rung, is_inside in best_of(weights) if is_inside]

    rungs = minima(np.ones(len(points)))
    left_out = tuple(
        f"{rung.compute:.3g}: its best run, {si(rung.params)}, is its smallest or largest"
        for rung, is_inside in best_of(np.ones(len(points)))
        if not is_inside
    )
    if len(rungs) < _LEAST_RUNGS:
        missing = first_few(left_out) or "runs at more budgets"
        raise _too_few_rungs(1, [rung.compute for rung in rungs], missing)
    return _allocate(1, points, minima, rungs, num, seed, left_out)


def _best_run(points: Points, members: Array) -> tuple[Rung, bool]:
    """The run of lowest metric, and whether smaller and larger ones stand beside it."""
    n, d = points.column("params"), points.column("data")
    i = int(members[np.argmin(points.metric[members])])
    rung = Rung(float(points.compute[i]), float(n[i]), float(d[i]), float(points.metric[i]), (i,))
    return rung, bool(n[members].min() < n[i] < n[members].max())


def approach_2(points: Points, num: int = 0, *, seed: int = 0) -> Allocation:
    """From parabolas of the metric in log N and in log D, a budget each.

    A rung whose minimum lies at its edge is left out by name. Raises `UserError` where fewer than
    three remain.
    """
    groups = iso_flop_groups(points)
    left_out = [
        f"{points.compute[group].mean():.3g}: {why}"
        for group in groups
        if (why := _unusable(points, group))
    ]
    usable = [group for group in groups if not _unusable(points, group)]
    if len(usable) < _LEAST_RUNGS:
        raise _too_few_rungs(
            2,
            [float(points.compute[g].mean()) for g in usable],
            first_few(left_out) or "runs of four sizes or more at more budgets",
        )

    def minima(weights: Array) -> list[Rung]:
        rungs = (_parabola_rung(points, group, weights[group]) for group in usable)
        return [rung for rung in rungs if rung is not None]

    rungs = minima(np.ones(len(points)))
    return _allocate(2, points, minima, rungs, num, seed, tuple(left_out))


def iso_flop_groups(points: Points) -> list[Array]:
    """Indices of the points of each budget, cheapest first."""
    compute = points.column("compute")
    order = np.argsort(compute, kind="stable")
    gaps = np.flatnonzero(np.diff(np.log(compute[order])) > np.log(_SAME_BUDGET)) + 1
    return list(np.split(order, gaps))


def _unusable(points: Points, group: Array) -> str | None:
    """Why a budget gives no minimum, and which sizes it wants."""
    n, compute = points.column("params")[group], points.compute[group]
    if compute.max() > _SAME_BUDGET * compute.min():
        return f"no one budget, its runs go on to {compute.max():.3g}"
    if len(np.unique(n)) < _LEAST_SIZES:
        return f"{len(np.unique(n))} sizes, {_LEAST_SIZES} or more are needed"
    if _parabola_rung(points, group, np.ones(len(group))) is not None:
        return None
    if points.metric[group][np.argmin(n)] < points.metric[group][np.argmax(n)]:
        return f"no minimum between its sizes, missing: params below {si(float(n.min()))}"
    return f"no minimum between its sizes, missing: params above {si(float(n.max()))}"


def _parabola_rung(points: Points, group: Array, weights: Array) -> Rung | None:
    """The minimum of a budget's parabola; None where it is none, or outside the sizes."""
    kept = weights > 0
    if len(np.unique(points.params[group][kept])) < 3:
        return None
    vertices = []
    for column in (points.params, points.column("data")):
        x = np.log(column[group][kept])
        middle = x.mean()
        curve = np.polyfit(x - middle, points.metric[group][kept], 2, w=np.sqrt(weights[kept]))
        vertex = -curve[1] / (2 * curve[0]) if curve[0] > 0 else np.inf
        if not x.min() - middle < vertex < x.max() - middle:
            return None
        vertices.append((middle + vertex, curve, vertex, middle))
    (log_n, curve, vertex, middle), (log_d, *_) = vertices
    a, b, c = (float(v) for v in curve)
    shifted = (a, b - 2 * a * middle, c - b * middle + a * middle**2)
    return Rung(
        float(np.exp(np.log(points.compute[group]).mean())),
        float(np.exp(log_n)),
        float(np.exp(log_d)),
        float(np.polyval(curve, vertex)),
        tuple(int(i) for i in group),
        shifted,
    )


def approach_3(fit: Fit, replicates: Replicates | None, flops_factor: float) -> Allocation:
    """From the parametric law under C = K N D, in closed form (their equation 4)."""
    centre = float(np.log(fit.points.column("compute")).mean())
    thetas = replicates.thetas if replicates else np.empty((0, len(fit.theta)))

    def lines(theta: Array) -> Array:
        a0, alpha, b0, beta, _ = np.moveaxis(theta, -1, 0)
        n0, d0 = fit.centre
        total = alpha + beta
        # log G, of amplitudes in the columns' units
        log_g = (np.log(alpha / beta) + a0 + alpha * n0 - b0 - beta * d0) / total
        a, b = beta / total, alpha / total
        budget = centre - np.log(flops_factor)
        return np.stack([log_g + a * budget, a, b * budget - log_g, b], axis=-1)

    widening = replicates.widening if replicates else 1.0
    return Allocation(3, centre, lines(fit.theta), lines(thetas), widening=widening)


def flops_factor(points: Points) -> tuple[float, float]:
    """(K of C = K N D, the factor over which it varies among the points)."""
    ratio = points.column("compute") / points.column("params") / points.column("data")
    return float(np.exp(np.median(np.log(ratio)))), float(ratio.max() / ratio.min())


def _allocate(
    approach: int,
    points: Points,
    minima: Callable[[Array], list[Rung]],
    rungs: list[Rung],
    num: int,
    seed: int,
    left_out: tuple[str, ...] = (),
) -> Allocation:
    """Lines through the minima, and through those of drawn clusters."""
    centre = float(np.log(points.compute).mean())
    rng = np.random.default_rng([seed, 2])
    replicates: list[Array] = []
    for _ in range(_TRIES * num):  # a draw may leave too few minima for a line
        drawn = minima(draw_weights(points.clusters, rng))
        if len(drawn) >= _LEAST_RUNGS:
            replicates.append(_lines(drawn, centre))
        if len(replicates) == num:
            break
    return Allocation(
        approach,
        centre,
        _lines(rungs, centre),
        np.array(replicates).reshape(-1, 4),
        tuple(rungs),
        left_out,
    )


def _lines(rungs: list[Rung], centre: float) -> Array:
    x = np.log([rung.compute for rung in rungs]) - centre
    a, n0 = np.polyfit(x, np.log([rung.params for rung in rungs]), 1)
    b, d0 = np.polyfit(x, np.log([rung.data for rung in rungs]), 1)
    return np.array([n0, a, d0, b])


def first_few(texts: Sequence[str]) -> str:
    """The first few, and how many more."""
    more = [f"and {len(texts) - _NAMED} more"] if len(texts) > _NAMED else []
    return "; ".join([*texts[:_NAMED], *more])


def _too_few_rungs(approach: int, computes: list[float], missing: str) -> UserError:
    found = ", ".join(f"{compute:.3g}" for compute in computes) or "none"
    return UserError(
        f"approach {approach}",
        f"{len(computes)} usable budgets ({found})",
        f"{_LEAST_RUNGS} or more",
        f"missing: {missing}",
    )

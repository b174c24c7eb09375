"""Which few points decide a parameter: those at an end of the table without which it moves.

Points are left out one by one from the ends where runs are unlike the rest: the highest metric,
the least of a size, the largest residuals. Leaving out whatever moves a parameter most would
always find something; the ends do not.
"""

from dataclasses import dataclass

import numpy as np

from supmim_scale.scaling.fit import Fit, of_theta, refit, standard_errors
from supmim_scale.scaling.laws import Array
from supmim_scale.scaling.points import Ints

_MOST_SHARE = 0.03  # of the points: more are not a few
_MOVED = 3.0  # standard errors: a parameter that moves so far was decided by what is left out
_SETTLED = 0.1  # standard errors: the next point moves it less than this


@dataclass(frozen=True)
class Decisive:
    """Few points at one end of the table that decide a parameter."""

    parameter: str
    end: str
    labels: tuple[str, ...]
    metrics: tuple[float, ...]
    num_points: int
    with_them: float
    without: float
    standard_errors: float  # how far the parameter moves

    def __str__(self) -> str:
        which = ", ".join(
            f"{label} ({metric:.3g})"
            for label, metric in zip(self.labels, self.metrics, strict=True)
        )
        return (
            f"{len(self.labels)} of {self.num_points} points, those with {self.end}, decide "
            f"{self.parameter}: {self.with_them:.4f} with them, {self.without:.4f} without: {which}"
        )


def decisive_points(fit: Fit) -> list[Decisive]:
    """For every exponent, the few points that move it most, where a few do."""
    paths = {end: _path(fit, order) for end, order in _ends(fit).items()}
    chosen = []
    for name in fit.law.exponents:
        found = [_decisive(fit, name, end, *path) for end, path in paths.items()]
        decisive = [one for one in found if one is not None]
        if decisive:
            chosen.append(max(decisive, key=lambda one: one.standard_errors))
    return chosen


def _ends(fit: Fit) -> dict[str, Ints]:
    """Orders in which points are left out."""
    points = fit.points
    ends = {f"the highest {points.metric_name}": np.argsort(-points.metric, kind="stable")}
    for name in fit.law.inputs:
        ends[f"the least {name}"] = np.argsort(points.column(name), kind="stable")
    ends["the largest residuals"] = np.argsort(-np.abs(fit.residuals), kind="stable")
    return ends


def _path(fit: Fit, order: Ints) -> tuple[Ints, Array]:
    """(points left out, theta without the first 0, 1, 2, ... of them)."""
    most = max(1, int(_MOST_SHARE * len(fit.points)))
    most = min(most + 1, len(fit.points) - len(fit.theta) - 1)
    weights, thetas = np.ones(len(fit.points)), [fit.theta]
    for point in order[:most]:
        weights[point] = 0.0
        thetas.append(refit(fit, weights, from_theta=thetas[-1]))
    return order[:most], np.stack(thetas)


def _decisive(fit: Fit, name: str, end: str, order: Ints, thetas: Array) -> Decisive | None:
    """The first place on a path where the parameter has moved, and the next point moves it no
    more."""
    at = fit.law.parameters.index(name)
    for left_out in range(1, len(order)):
        # The smaller of the errors with and without them: either makes the move a large one.
        error = min(float(standard_errors(of_theta(fit, t))[at]) for t in thetas[[0, left_out]])
        moved = abs(thetas[left_out, at] - fit.theta[at]) / error
        if abs(thetas[left_out + 1, at] - thetas[left_out, at]) > _SETTLED * error:
            continue
        if moved < _MOVED:
            return None
        points = order[:left_out]
        return Decisive(
            name,
            end,
            tuple(fit.points.labels[i] for i in points),
            tuple(float(fit.points.metric[i]) for i in points),
            len(fit.points),
            float(fit.theta[at]),
            float(thetas[left_out, at]),
            float(moved),
        )
    return None

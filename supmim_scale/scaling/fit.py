"""Fits of a law to points: Huber's loss on log residuals, bounds, exact gradients, many starts."""

from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize

from supmim_scale.errors import UserError
from supmim_scale.scaling.laws import Array, Law
from supmim_scale.scaling.points import Points

NUM_STARTS = 24
HOFFMANN_DELTA = 1e-3  # arXiv 2203.15556, appendix D.2
# Of the normal's standard deviation: 95 % efficiency under normal noise (Huber 1964).
_HUBER_SIGMAS = 1.345
_MAD_TO_SIGMA = 1.4826
_LEAST_DELTA = 1e-9  # points on the curve itself
_TIGHT = {"maxiter": 5000, "maxfun": 10_000, "ftol": 1e-15, "gtol": 1e-9, "maxcor": 20}
_QUICK = {**_TIGHT, "ftol": 1e-11, "gtol": 1e-6}  # of replicates, which spread far wider
_ROUGH = {**_TIGHT, "ftol": 1e-5, "maxiter": 100}  # of starts, before the best are polished
_POLISHED = 3
_SAME_OPTIMUM = 1e-2  # relative, of the cost at the end of a rough descent


@dataclass(frozen=True)
class Fit:
    """A fitted law. `theta` is in the law's inner coordinates, `values` as published."""

    law: Law
    points: Points
    theta: Array
    centre: Array
    delta: float
    objective: float
    starts: int
    starts_agreeing: int

    @property
    def values(self) -> dict[str, float]:
        """Parameters by name, in the columns' units."""
        published = self.law.published(self.theta, self.centre)
        return dict(zip(self.law.parameters, published.tolist(), strict=True))

    @property
    def residuals(self) -> Array:
        """Log of measured over predicted, a point each."""
        return np.log(self.points.metric) - np.log(self.predict(self.points.inputs(self.law)))

    @property
    def sigma(self) -> float:
        """Robust standard deviation of the log residuals."""
        return _robust_sigma(self.residuals)

    def predict(self, inputs: Array, theta: Array | None = None) -> Array:
        """The law at raw inputs (points, inputs), of this fit or of another `theta`."""
        chosen = self.theta if theta is None else theta
        return np.exp(self.law.log_value(chosen, np.log(inputs) - self.centre)[0])

    def at_bounds(self) -> list[str]:
        """Parameters that ended at a bound: what the data pushed as far as it was allowed."""
        lower, upper, *_ = self.law.box(*centred(self.law, self.points)[:2])
        stuck = np.isclose(self.theta, lower, atol=1e-6) | np.isclose(self.theta, upper, atol=1e-6)
        return [name for name, is_stuck in zip(self.law.parameters, stuck, strict=True) if is_stuck]


def fit_law(
    law: Law, points: Points, *, delta: float | None = None, seed: int = 0, starts: int = NUM_STARTS
) -> Fit:
    """The best fit over many starts.

    `delta` is Huber's threshold on log residuals. By default it follows them, 1.345 robust
    standard deviations of a first fit's: far below the noise, as with the 1e-3 of Hoffmann et al.
    2022, intervals come out too wide.
    """
    x, log_y, centre = centred(law, points)
    *_, first, last = law.box(x, log_y)
    drawn = np.random.default_rng(seed).uniform(first, last, (starts, len(first)))
    tried = delta if delta is not None else HOFFMANN_DELTA
    ends, agreeing = _explore(law, points, tried, drawn)
    if delta is None:
        rough = _polish(law, points, tried, ends[:1])[0]
        residuals = log_y - law.log_value(rough, x)[0]
        delta = max(_LEAST_DELTA, _HUBER_SIGMAS * _robust_sigma(residuals))
    theta, cost = _polish(law, points, delta, ends)
    return Fit(law, points, theta, centre, delta, cost * delta, starts, agreeing)


def centred(law: Law, points: Points) -> tuple[Array, Array, Array]:
    """(inputs as centred logarithms, log metric, the centre)."""
    x = np.log(points.inputs(law))
    centre = x.mean(axis=0)
    return x - centre, np.log(points.metric), centre


def refit(fit: Fit, weights: Array, *, from_theta: Array | None = None) -> Array:
    """`theta` of the same points under other weights, starting where `fit` ended."""
    x, log_y, _ = centred(fit.law, fit.points)
    start = fit.theta if from_theta is None else from_theta
    return _descend(fit.law, x, log_y, weights, fit.delta, start, _QUICK)[0]


def covariance(fit: Fit) -> Array:
    """The covariance of `theta`, by the sandwich of a robust fit: slopes, weighted as Huber's loss
    weighs them, about the spread that each residual brings.

    To first order: it says what is hardly determined; intervals are the bootstrap's.
    """
    x, _, _ = centred(fit.law, fit.points)
    slopes = fit.law.log_value(fit.theta, x)[1]
    pull = np.clip(fit.residuals, -fit.delta, fit.delta)
    weights = np.minimum(1, fit.delta / np.maximum(np.abs(fit.residuals), fit.delta))
    inverse = np.linalg.pinv((slopes.T * weights) @ slopes, rcond=1e-14, hermitian=True)
    num, free = len(pull), max(1, len(pull) - len(fit.theta))
    middle = (slopes.T * pull**2) @ slopes * (num / free)
    return np.asarray(inverse @ middle @ inverse, dtype=np.float64)


def standard_errors(fit: Fit) -> Array:
    """Standard errors of `theta`: exponents as they are, all others as logarithms."""
    errors: Array = np.sqrt(np.diag(covariance(fit)))
    return errors


def _explore(law: Law, points: Points, delta: float, starts: Array) -> tuple[list[Array], int]:
    """(the best ends of rough descents, how many of them are as good as the best)."""
    x, log_y, _ = centred(law, points)
    ones = np.ones(len(log_y))
    found = [_descend(law, x, log_y, ones, delta, start, _ROUGH) for start in starts]
    ends = sorted((end for end in found if np.isfinite(end[1])), key=lambda end: end[1])
    if not ends:
        raise UserError(
            f"law {law.name}", "no start that converged", "a finite fit", "check the columns"
        )
    agreeing = sum(cost <= ends[0][1] * (1 + _SAME_OPTIMUM) + 1e-12 for _, cost in ends)
    return [theta for theta, _ in ends[:_POLISHED]], agreeing


def _polish(law: Law, points: Points, delta: float, ends: list[Array]) -> tuple[Array, float]:
    """(theta, cost) of the best of some ends, descended to the bottom."""
    x, log_y, _ = centred(law, points)
    ones = np.ones(len(log_y))
    found = [_descend(law, x, log_y, ones, delta, end, _TIGHT) for end in ends]
    return min(found, key=lambda end: end[1])


def _descend(
    law: Law,
    x: Array,
    log_y: Array,
    weights: Array,
    delta: float,
    start: Array,
    options: dict[str, float],
) -> tuple[Array, float]:
    """(theta, cost) from one start.

    The cost is Huber's, summed and over `delta`. Averaged it is so small that L-BFGS stops early,
    as the first published fit did (Besiroglu et al. 2024, arXiv 2404.10102).
    """
    lower, upper, *_ = law.box(x, log_y)

    def cost(theta: Array) -> tuple[float, Array]:
        predicted, gradient = law.log_value(theta, x)
        residual = predicted - log_y
        size = np.abs(residual)
        loss = np.where(size <= delta, residual**2 / (2 * delta), size - delta / 2)
        slope = weights * np.clip(residual / delta, -1, 1)
        return float(weights @ loss), gradient.T @ slope

    bounds = list(zip(lower, upper, strict=True))
    start = np.clip(start, lower, upper)
    found = minimize(cost, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return found.x, float(found.fun)


def _robust_sigma(residuals: Array) -> float:
    return float(_MAD_TO_SIGMA * np.median(np.abs(residuals)))


def of_theta(fit: Fit, theta: Array) -> Fit:
    """The same fit with other parameters, for what is computed of a replicate."""
    return replace(fit, theta=theta)

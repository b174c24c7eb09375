"""Intervals by the bootstrap: whole clusters are drawn, the law is fitted again, many times.

Drawn from few clusters, replicates spread too little: by sqrt((G - p) / G) for G clusters and p
parameters, and Student's quantile belongs to G - p degrees where a normal one is implied. Both
factors, exact for a linear law with normal noise, widen every interval about the fit's figure.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from supmim_scale.files.progress import progress
from supmim_scale.scaling.fit import Fit, refit
from supmim_scale.scaling.laws import Array
from supmim_scale.scaling.points import Ints

LEVEL = 0.9
TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)


@dataclass(frozen=True)
class Replicates:
    """Fits of drawn clusters: `thetas` (replicates, parameters)."""

    fit: Fit
    thetas: Array

    @property
    def values(self) -> Array:
        """Parameters as published, (replicates, parameters)."""
        return self.fit.law.published(self.thetas, self.fit.centre)

    @property
    def widening(self) -> float:
        """By how much the replicates' quantiles are moved away from the fit."""
        return widening(int(self.fit.points.clusters.max()) + 1, len(self.fit.theta))

    def interval(self, samples: Array, at: Array) -> tuple[Array, Array]:
        """The 90 % interval of figures that are `at` in the fit and `samples` (replicates, ...)
        in the replicates."""
        low, high = np.quantile(samples, TAILS, axis=0)
        return at + self.widening * (low - at), at + self.widening * (high - at)

    def intervals(self) -> dict[str, tuple[float, float]]:
        """An interval a parameter; what cannot be negative ends at 0."""
        at = self.fit.law.published(self.fit.theta, self.fit.centre)
        low, high = self.interval(self.values, at)
        low = np.where(self.values.min(axis=0) >= 0, np.maximum(low, 0), low)
        ends = zip(low.tolist(), high.tolist(), strict=True)
        return dict(zip(self.fit.law.parameters, ends, strict=True))

    def band(self, inputs: Array) -> tuple[Array, Array]:
        """The interval of the law at raw inputs (points, inputs)."""
        curves = np.stack([self.fit.predict(inputs, theta) for theta in self.thetas])
        return self.interval(curves, self.fit.predict(inputs))

    def covariance(self) -> Array:
        """The covariance of the parameters as published."""
        return np.atleast_2d(np.cov(self.values, rowvar=False))


def bootstrap(fit: Fit, num: int, *, seed: int = 0, shown: bool = False) -> Replicates:
    """`num` fits of clusters drawn with replacement."""
    rng = np.random.default_rng([seed, 1])
    thetas = np.empty((num, len(fit.theta)))
    with progress("bootstrap", num, "fit", shown=shown) as bar:
        for i in range(num):
            thetas[i] = refit(fit, draw_weights(fit.points.clusters, rng))
            bar.update()
    return Replicates(fit, thetas)


def widening(num_clusters: int, num_parameters: int) -> float:
    """What few clusters do to an interval: a factor, 1 for many."""
    free = max(1, num_clusters - num_parameters)
    student = stats.t.ppf(TAILS[1], free) / stats.norm.ppf(TAILS[1])
    return float(np.sqrt(num_clusters / free) * student)


def draw_weights(clusters: Ints, rng: np.random.Generator) -> Array:
    """How often each point's cluster is drawn."""
    num = int(clusters.max()) + 1
    counts = np.bincount(rng.integers(num, size=num), minlength=num)
    return counts[clusters].astype(np.float64)

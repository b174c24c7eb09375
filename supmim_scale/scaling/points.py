"""The points that laws are fitted to: one a run, in one order whatever the file's."""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from supmim_scale.errors import UserError
from supmim_scale.scaling.laws import Array, Law

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Points:
    """Columns of the points. A column that the table lacks is empty.

    `clusters` numbers what a bootstrap draws together.
    """

    metric_name: str
    params: Array
    data: Array
    compute: Array
    metric: Array
    clusters: Ints
    arms: tuple[str, ...]
    labels: tuple[str, ...]
    # How the runs ran, as fractions: waiting for input, and of the device's peak.
    data_wait: Array = field(default_factory=lambda: np.empty(0))
    mfu: Array = field(default_factory=lambda: np.empty(0))

    def __len__(self) -> int:
        return len(self.metric)

    def inputs(self, law: Law) -> Array:
        """The law's input columns, (points, inputs). Raises `UserError` where one is missing."""
        return np.stack([self.column(name) for name in law.inputs], axis=1)

    def column(self, name: str) -> Array:
        """`params`, `data` or `compute`. Raises `UserError` where the table has none."""
        values: Array = getattr(self, name)
        if not len(values):
            raise UserError("table", f"no {name} column", f"one of {name}", f"name it by --{name}")
        return values

    def take(self, rows: NDArray[np.bool_] | Ints) -> "Points":
        """Some of the points."""
        kept = np.arange(len(self))[rows]
        columns = (self.params, self.data, self.compute, self.data_wait, self.mfu)
        params, data, compute, waits, mfu = (c[kept] if len(c) else c for c in columns)
        return Points(
            self.metric_name,
            params,
            data,
            compute,
            self.metric[kept],
            np.unique(self.clusters[kept], return_inverse=True)[1],
            tuple(self.arms[i] for i in kept),
            tuple(self.labels[i] for i in kept),
            waits,
            mfu,
        )

    def arm(self, name: str) -> "Points":
        """The points of one arm."""
        return self.take(np.array([arm == name for arm in self.arms]))

    def frontier(self) -> "Points":
        """The points that no cheaper one beats."""
        self.column("compute")  # in whose order the points are
        best = np.minimum.accumulate(np.append(np.inf, self.metric[:-1]))
        return self.take(self.metric < best)

    @property
    def arm_names(self) -> list[str]:
        """Arms in the order of their names."""
        return sorted(set(self.arms))


def make_points(
    metric: Array,
    *,
    params: Array | None = None,
    data: Array | None = None,
    compute: Array | None = None,
    clusters: Ints | None = None,
    arms: tuple[str, ...] | None = None,
    labels: tuple[str, ...] | None = None,
    metric_name: str = "loss",
    data_wait: Array | None = None,
    mfu: Array | None = None,
) -> Points:
    """Points in their one order: by compute, size, data, arm, metric, label."""
    num = len(metric)
    n, d, c = (_floats(column) for column in (params, data, compute))
    arms = arms or ("",) * num
    labels = labels or tuple(f"point {i + 1}" for i in range(num))
    clusters = np.arange(num) if clusters is None else clusters
    # np.lexsort sorts by the last key first.
    keys = [
        np.array(labels),
        metric,
        np.array(arms),
        *(column for column in (d, n, c) if len(column)),
    ]
    order = np.lexsort(keys)
    points = Points(
        metric_name,
        n,
        d,
        c,
        _floats(metric),
        clusters,
        arms,
        labels,
        _floats(data_wait),
        _floats(mfu),
    ).take(order)
    return replace(points, clusters=_as_they_come(points.clusters))


def _floats(column: Array | None) -> Array:
    return np.empty(0) if column is None else np.asarray(column, dtype=np.float64)


def _as_they_come(clusters: Ints) -> Ints:
    """Clusters numbered in the points' order, so that the file's does not reach the draws."""
    _, firsts, inverse = np.unique(clusters, return_index=True, return_inverse=True)
    ranks: Ints = np.argsort(np.argsort(firsts))
    return ranks[inverse]

"""How a law predicts what it has not seen: fitted on the cheap part, asked for the dear part."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from supmim_scale.errors import UserError
from supmim_scale.scaling.fit import Fit, fit_law
from supmim_scale.scaling.identify import require_identifiable, require_identified
from supmim_scale.scaling.laws import Array, Law
from supmim_scale.scaling.points import Points

DEAR_SHARE = 0.25


@dataclass(frozen=True)
class HeldOut:
    """A law's fit on the cheap points and its error on the dear ones."""

    fit: Fit
    dear: Points

    @property
    def predicted(self) -> Array:
        """The law at the dear points."""
        return self.fit.predict(self.dear.inputs(self.fit.law))

    @property
    def errors(self) -> Array:
        """Predicted over measured, less one, a dear point each."""
        return self.predicted / self.dear.metric - 1

    @property
    def rms(self) -> float:
        """Root mean square of the errors: what laws are compared by."""
        return float(np.sqrt(np.mean(self.errors**2)))

    @property
    def bias(self) -> float:
        """Mean of the errors; above 0 the law promised too much loss."""
        return float(np.mean(self.errors))


def split(points: Points, dear_share: float) -> tuple[Points, Points]:
    """(cheap, dear): the dearest share by compute, points of equal cost on one side.

    Raises `UserError` where a side would be empty.
    """
    cost = (
        points.compute if len(points.compute) else points.column("params") * points.column("data")
    )
    cut = float(np.quantile(cost, 1 - dear_share, method="lower")) if 0 < dear_share < 1 else 0.0
    is_dear = cost > cut
    if not is_dear.any() or is_dear.all():
        raise UserError(
            "--hold-out",
            f"{dear_share:g} of {len(points)} points",
            "a share between 0 and 1 that leaves cheap and dear points",
            "try --hold-out 0.25",
        )
    return points.take(~is_dear), points.take(is_dear)


def hold_out(
    law: Law, points: Points, dear_share: float, *, delta: float | None = None, seed: int = 0
) -> HeldOut:
    """Fit on the cheap points. Raises `UserError` where they do not identify the law."""
    cheap, dear = split(points, dear_share)
    require_identifiable(law, cheap)
    fit = fit_law(law, cheap, delta=delta, seed=seed)
    require_identified(fit)
    return HeldOut(fit, dear)


def compare(
    laws: Sequence[Law], points: Points, dear_share: float, *, seed: int = 0
) -> tuple[list[HeldOut], dict[str, UserError]]:
    """Laws by their error on the dear points, best first, and why the others could not be asked."""
    done, refused = [], {}
    for law in laws:
        try:
            done.append(hold_out(law, points, dear_share, seed=seed))
        except UserError as error:
            refused[law.name] = error
    return sorted(done, key=lambda held: held.rms), refused

"""How a law predicts held-out points: fitted on the cheap part, tested on the expensive part."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from supmim_scale.errors import UserError
from supmim_scale.scaling.fit import Fit, fit_law
from supmim_scale.scaling.identify import require_identifiable, require_identified
from supmim_scale.scaling.laws import Array, Law
from supmim_scale.scaling.points import Points

HELD_OUT_SHARE = 0.25


@dataclass(frozen=True)
class HeldOut:
    """A law's fit on the cheap points and its error on the held-out, expensive ones."""

    fit: Fit
    held_out: Points

    @property
    def predicted(self) -> Array:
        """The law's prediction at the held-out points."""
        return self.fit.predict(self.held_out.inputs(self.fit.law))

    @property
    def errors(self) -> Array:
        """Predicted over measured, less one, for each held-out point."""
        return self.predicted / self.held_out.metric - 1

    @property
    def rms(self) -> float:
        """Root mean square of the errors: what laws are compared by."""
        return float(np.sqrt(np.mean(self.errors**2)))

    @property
    def bias(self) -> float:
        """Mean of the errors; above 0 the law promised too much loss."""
        return float(np.mean(self.errors))


def split(points: Points, held_out_share: float) -> tuple[Points, Points]:
    """(cheap, held out): the most expensive share by compute; points of equal cost stay together.

    Raises `UserError` if a side would be empty.
    """
    cost = (
        points.compute if len(points.compute) else points.column("params") * points.column("data")
    )
    cut = (
        float(np.quantile(cost, 1 - held_out_share, method="lower"))
        if 0 < held_out_share < 1
        else 0.0
    )
    is_costly = cost > cut
    if not is_costly.any() or is_costly.all():
        raise UserError(
            "--hold-out",
            f"{held_out_share:g} of {len(points)} points",
            "a share between 0 and 1 that leaves points on both sides",
            "try --hold-out 0.25",
        )
    return points.take(~is_costly), points.take(is_costly)


def hold_out(
    law: Law, points: Points, held_out_share: float, *, delta: float | None = None, seed: int = 0
) -> HeldOut:
    """Fit on the cheap points. Raises `UserError` where they do not identify the law."""
    cheap, held_out = split(points, held_out_share)
    require_identifiable(law, cheap)
    fit = fit_law(law, cheap, delta=delta, seed=seed)
    require_identified(fit)
    return HeldOut(fit, held_out)


def compare(
    laws: Sequence[Law], points: Points, held_out_share: float, *, seed: int = 0
) -> tuple[list[HeldOut], dict[str, UserError]]:
    """Laws by their error on the held-out points, best first, and why others were not tested."""
    done, refused = [], {}
    for law in laws:
        try:
            done.append(hold_out(law, points, held_out_share, seed=seed))
        except UserError as error:
            refused[law.name] = error
    return sorted(done, key=lambda held: held.rms), refused

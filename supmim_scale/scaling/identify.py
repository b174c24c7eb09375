"""What the data cannot tell is refused, with the rungs that are missing.

The limits are ours: below them a fit returns numbers that depend on its starting points.
"""

import numpy as np

from supmim_scale.errors import UserError
from supmim_scale.scaling.fit import Fit, standard_errors
from supmim_scale.scaling.laws import Array, Law
from supmim_scale.scaling.points import Points
from supmim_scale.units import si

SAME_LEVEL = 1.05  # values closer than this factor are one level
_LEAST_LEVELS = 3  # of sizes, of data sizes: an amplitude, an exponent and a floor to tell apart
_LEAST_SPAN = {
    "power": 10.0,
    "power_floor": 30.0,
    "saturating": 30.0,
    "broken": 100.0,
    "parametric": 4.0,
}
_OFF_LINE = 2.0  # a factor, of data at one size: less, and N and D are one variable
_UNKNOWN_FACTOR = 10.0  # an inner scale known no better than this is not known
_NEEDED = ("alpha", "beta", "b")  # exponents that must not be zero within their error
_BENDS = ("d", "d1")  # where a law bends


def require_identifiable(law: Law, points: Points) -> None:
    """Raise `UserError` where the points' design cannot identify the law, naming missing rungs."""
    inputs = points.inputs(law)
    _require_points(law, inputs)
    for i, name in enumerate(law.inputs):
        _require_levels(law, name, inputs[:, i])
    if law.inputs == ("params", "data"):
        _require_off_line(law, inputs)


def require_identified(fit: Fit) -> None:
    """Raise `UserError` where a fit's exponents or bends are not determined by its points.

    A floor that cannot be told from zero is an answer; `unsure` says it.
    """
    errors, values = standard_errors(fit), fit.values
    for i, name in enumerate(fit.law.parameters):
        if name in _BENDS:
            _require_bend(fit, name, values[name], float(errors[i]))
        elif name in _NEEDED and name in fit.law.exponents and errors[i] > fit.theta[i]:
            which = 1 if name == "beta" else 0
            column = fit.points.inputs(fit.law)[:, which]
            raise _unidentified(
                fit,
                f"{name} = {fit.theta[i]:.3g} +- {errors[i]:.2g}",
                f"{fit.law.inputs[which]} below {_n(column.min())} or above {_n(column.max())}, "
                "or more seeds",
            )


def _require_bend(fit: Fit, name: str, bend: float, error: float) -> None:
    """A bend must be known within a factor, and not lie far below the cheapest point."""
    compute = fit.points.inputs(fit.law)[:, 0]
    is_outside = bend < compute.min() / _UNKNOWN_FACTOR or name in fit.at_bounds()
    if is_outside or error > np.log(_UNKNOWN_FACTOR):
        found = (
            f"{name} outside of what was run"
            if is_outside
            else (f"{name} anywhere within a factor {np.exp(error):.2g}")
        )
        raise _unidentified(
            fit,
            found,
            f"more runs on both sides of the bend, some below {_n(compute.min())} and above "
            f"{_n(compute.max())} {fit.law.inputs[0]}; or take a law without it",
        )


def unsure(fit: Fit) -> list[str]:
    """What a reader should know of a fit that is not refused."""
    found = [f"{name} ended at its bound" for name in fit.at_bounds() if name != _floor_name(fit)]
    floor = _floor_name(fit)
    if floor and (standard_errors(fit)[-1] > 1 or floor in fit.at_bounds()):
        found.append(f"the floor {floor} cannot be told from zero: nothing here has come near it")
    if "f1" in fit.law.parameters and "f1" not in fit.at_bounds():
        at = fit.law.parameters.index("f1")
        if standard_errors(fit)[at] > np.log(_UNKNOWN_FACTOR):
            found.append("how sharply the law bends, f1, cannot be told")
    if fit.starts_agreeing == 1:
        found.append(f"only one of {fit.starts} starts reached this optimum")
    return found


def _floor_name(fit: Fit) -> str | None:
    return fit.law.parameters[-1] if fit.law.has_floor else None


def _unidentified(fit: Fit, found: str, fix: str) -> UserError:
    return UserError(
        f"law {fit.law.name}",
        f"data that leave {found}",
        "data that determine every parameter",
        f"missing: {fix}",
    )


def levels(values: Array) -> Array:
    """Distinct values, those within a few per cent being one."""
    ordered = np.sort(values)
    starts = np.concatenate([[True], ordered[1:] > SAME_LEVEL * ordered[:-1]])
    means: Array = np.array(
        [group.mean() for group in np.split(ordered, np.flatnonzero(starts)[1:])]
    )
    return means


def _require_points(law: Law, inputs: Array) -> None:
    distinct = len(np.unique(np.round(np.log(inputs) / np.log(SAME_LEVEL)), axis=0))
    wanted = len(law.parameters) + 1
    if distinct < wanted:
        raise UserError(
            f"law {law.name}",
            f"{distinct} distinct {' x '.join(law.inputs)}",
            f"at least {wanted}, one more than its {len(law.parameters)} parameters",
            f"missing: {wanted - distinct} more rungs, for instance {_more(law, inputs)}",
        )


def _more(law: Law, inputs: Array) -> str:
    top = inputs.max(axis=0)
    return " with ".join(f"{name} {_n(3 * v)}" for name, v in zip(law.inputs, top, strict=True))


def _require_levels(law: Law, name: str, values: Array) -> None:
    found, span = levels(values), float(values.max() / values.min())
    if len(found) < _LEAST_LEVELS:
        low, high = _n(values.min() / 3), _n(values.max() * 3)
        raise UserError(
            f"law {law.name}",
            f"{len(found)} distinct {name} ({', '.join(map(_n, found))})",
            f"at least {_LEAST_LEVELS}",
            f"missing: runs at {name} about {low} or {high}",
        )
    least = _LEAST_SPAN[law.name]
    if span < least:
        low, high = _n(values.max() / least), _n(values.min() * least)
        raise UserError(
            f"law {law.name}",
            f"{name} over a factor {span:.3g}",
            f"a factor {least:g} or more",
            f"missing: runs at {name} of {low} or below, or of {high} or above",
        )


def _require_off_line(law: Law, inputs: Array) -> None:
    """N and D must not be one variable, as with a fixed number of samples a parameter."""
    n, d = np.log(inputs).T
    slope, offset = np.polyfit(n, d, 1)
    off = d - offset - slope * n
    spread = float(np.exp(off.max() - off.min()))
    if spread < _OFF_LINE:
        small, large = float(np.exp(n.min())), float(np.exp(n.max()))
        few, many = float(np.exp(d.min())), float(np.exp(d.max()))
        if slope < 0:
            few, many = many, few
        raise UserError(
            f"law {law.name}",
            f"params and data on one line (data within a factor {spread:.3g} at any size)",
            f"data that differ by a factor {_OFF_LINE:g} or more at one size",
            f"missing: params {_n(small)} with data {_n(many)}, params {_n(large)} with data "
            f"{_n(few)}",
        )


def _n(value: float) -> str:
    rounded = float(f"{value:.3g}")
    return si(rounded) if 1 <= rounded < 1e15 else f"{rounded:.3g}"

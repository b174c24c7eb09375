"""How figures look and are written: one style file, log axes with readable ticks, three formats."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from supmim_scale.scaling.laws import Array
from supmim_scale.units import si

FORMATS = ("png", "pdf", "svg")
GREY = "#777777"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
_STYLE = Path(__file__).with_name("figures.mplstyle")
_MOST_TICKS = 7


@contextmanager
def house_style() -> Iterator[None]:
    """Figures made inside look alike."""
    with matplotlib.rc_context(fname=str(_STYLE)):
        yield


def save(figure: Figure, folder: Path, name: str) -> Path:
    """Write PNG, PDF and SVG, the same for the same figure; the SVG's path."""
    for kind in FORMATS:
        dated = {"pdf": "CreationDate", "svg": "Date"}.get(kind)
        with matplotlib.rc_context({"svg.hashsalt": name}):
            figure.savefig(folder / f"{name}.{kind}", metadata={dated: None} if dated else None)
    return folder / f"{name}.svg"


def log_axis(axes: Axes, which: str, values: Array, *, unit: str = "power") -> None:
    """A log axis over `values` with a handful of ticks.

    `unit`: `power` writes 10 to the n, `si` 10 M, `plain` the number.
    """
    low, high = float(np.min(values)), float(np.max(values))
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    margin = (high / low) ** 0.05
    (axes.set_xlim if which == "x" else axes.set_ylim)(low / margin, high * margin)
    axis.set_major_locator(FixedLocator(ticks(low / margin, high * margin)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value, unit)))


def ticks(low: float, high: float) -> list[float]:
    """At most seven round values between two positive ends."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for digits in (_FINE, _FEW, (1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1, 3), (1,)):
        inside = [d * 10.0**k for k in decades for d in digits if low <= d * 10.0**k <= high]
        if len(inside) <= _MOST_TICKS:
            return inside if len(inside) > 1 else _even(low, high)
    step = -(-len(inside) // _MOST_TICKS)
    return inside[::step]


_FINE = tuple(np.arange(10, 100) / 10)  # two digits
_FEW = (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8)


def _even(low: float, high: float) -> list[float]:
    """Round steps where the span is a few per cent."""
    step = 10 ** np.floor(np.log10((high - low) / 2))
    first = int(np.ceil(low / step))
    values = [step * k for k in range(first, int(high / step) + 1)]
    return values[:: -(-len(values) // _MOST_TICKS)]


def tick_text(value: float, unit: str) -> str:
    """A tick's label."""
    if unit == "si":
        return si(value)
    if unit == "plain":
        return f"{value:.3g}"
    exponent = int(np.floor(np.log10(value) + 1e-9))
    digit = value / 10.0**exponent
    power = f"10^{{{exponent}}}"
    return f"${power}$" if abs(digit - 1) < 1e-6 else f"${digit:g}\\times{power}$"

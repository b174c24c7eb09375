"""The laws that can be fitted, as sums of exponentials of centred logarithms.

Inside a fit every input is the logarithm of a column less its mean, every amplitude and floor is
a logarithm, and a prediction is log(sum_k exp(term_k)). So exponents and amplitudes are nearly
uncorrelated, nothing overflows, and a change of units moves amplitudes alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from supmim_scale.errors import UserError, did_you_mean

Array = NDArray[np.float64]

_LEAST_FLOOR = 12.0  # log units below the smallest metric: a floor there is no floor
_STEEPEST = 4.0  # no exponent of a published law comes near


@dataclass(frozen=True)
class Law(ABC):
    """A law's name, its inputs, its parameters as they are published, and its arithmetic."""

    name: str
    formula: str
    source: str
    inputs: tuple[str, ...]
    parameters: tuple[str, ...]

    @abstractmethod
    def terms(self, theta: Array, x: Array) -> tuple[Array, Array]:
        """Terms (k, points) and their derivatives (k, points, parameters) at inputs (points, i)."""

    @abstractmethod
    def box(self, x: Array, log_y: Array) -> tuple[Array, Array, Array, Array]:
        """Lower and upper bounds of `theta`, and the part of them where starts are drawn."""

    @abstractmethod
    def published(self, theta: Array, centre: Array) -> Array:
        """Parameters in the columns' units, for `theta` of shape (..., parameters)."""

    def log_value(self, theta: Array, x: Array) -> tuple[Array, Array]:
        """Log of the prediction, and its derivative (points, parameters)."""
        terms, slopes = self.terms(theta, x)
        top = terms.max(axis=0)
        shares = np.exp(terms - top)
        total = shares.sum(axis=0)
        gradient = ((shares / total)[:, :, None] * slopes).sum(axis=0)
        return top + np.log(total), gradient

    @property
    def exponents(self) -> tuple[str, ...]:
        """The parameters that are exponents; `b` of the broken law is an amplitude."""
        names = ("c0", "c1") if self.name == "broken" else ("alpha", "beta", "b")
        return tuple(name for name in self.parameters if name in names)

    @property
    def has_floor(self) -> bool:
        """Whether the law tends to a constant; the floor is then theta's last entry."""
        return self.parameters[-1] in ("E", "c", "a0")


def _slopes(x: Array, num_terms: int, num_parameters: int) -> Array:
    return np.zeros((num_terms, len(x), num_parameters))


def _boxes(rows: Sequence[tuple[float, float, float, float]]) -> tuple[Array, Array, Array, Array]:
    lower, upper, first, last = np.array(rows, dtype=np.float64).T
    return lower, upper, first, last


def _amplitude(log_y: Array) -> tuple[float, float, float, float]:
    """The box of a term at the centre of the data."""
    low, high = float(log_y.min()), float(log_y.max())
    return low - 25.0, high + 25.0, low - 3.0, high


def _exponent() -> tuple[float, float, float, float]:
    return 0.0, _STEEPEST, 0.02, 1.0


def _floor(log_y: Array) -> tuple[float, float, float, float]:
    low, high = float(log_y.min()), float(log_y.max())
    return low - _LEAST_FLOOR, high, low - 2.0, low


class _Power(Law):
    def terms(self, theta: Array, x: Array) -> tuple[Array, Array]:
        slopes = _slopes(x, 1, 2)
        slopes[0, :, 0], slopes[0, :, 1] = 1.0, -x[:, 0]
        return theta[0] - theta[1] * x.T, slopes

    def box(self, x: Array, log_y: Array) -> tuple[Array, Array, Array, Array]:
        return _boxes([_amplitude(log_y), _exponent()])

    def published(self, theta: Array, centre: Array) -> Array:
        a, b = np.moveaxis(theta, -1, 0)
        return np.stack([np.exp(a + b * centre[0]), b], axis=-1)


class _PowerFloor(Law):
    def terms(self, theta: Array, x: Array) -> tuple[Array, Array]:
        slopes = _slopes(x, 2, 3)
        slopes[0, :, 0], slopes[0, :, 1], slopes[1, :, 2] = 1.0, -x[:, 0], 1.0
        return np.stack([theta[0] - theta[1] * x[:, 0], np.full(len(x), theta[2])]), slopes

    def box(self, x: Array, log_y: Array) -> tuple[Array, Array, Array, Array]:
        return _boxes([_amplitude(log_y), _exponent(), _floor(log_y)])

    def published(self, theta: Array, centre: Array) -> Array:
        a, b, e = np.moveaxis(theta, -1, 0)
        return np.stack([np.exp(a + b * centre[0]), b, np.exp(e)], axis=-1)


class _Saturating(Law):
    def terms(self, theta: Array, x: Array) -> tuple[Array, Array]:
        a, b, d, c = theta
        shifted = np.logaddexp(x[:, 0], d)
        slopes = _slopes(x, 2, 4)
        slopes[0, :, 0], slopes[0, :, 1], slopes[1, :, 3] = 1.0, -shifted, 1.0
        slopes[0, :, 2] = -b * np.exp(d - shifted)
        return np.stack([a - b * shifted, np.full(len(x), c)]), slopes

    def box(self, x: Array, log_y: Array) -> tuple[Array, Array, Array, Array]:
        low, high = float(x.min()), float(x.max())
        shift = (low - 7.0, high + 2.0, low - 2.0, (low + high) / 2)  # 7: a thousandth of the least
        return _boxes([_amplitude(log_y), _exponent(), shift, _floor(log_y)])

    def published(self, theta: Array, centre: Array) -> Array:
        a, b, d, c = np.moveaxis(theta, -1, 0)
        return np.stack([np.exp(a + b * centre[0]), b, np.exp(d + centre[0]), np.exp(c)], axis=-1)


class _Parametric(Law):
    def terms(self, theta: Array, x: Array) -> tuple[Array, Array]:
        a, alpha, b, beta, e = theta
        slopes = _slopes(x, 3, 5)
        slopes[0, :, 0], slopes[0, :, 1] = 1.0, -x[:, 0]
        slopes[1, :, 2], slopes[1, :, 3], slopes[2, :, 4] = 1.0, -x[:, 1], 1.0
        terms = [a - alpha * x[:, 0], b - beta * x[:, 1], np.full(len(x), e)]
        return np.stack(terms), slopes

    def box(self, x: Array, log_y: Array) -> tuple[Array, Array, Array, Array]:
        amplitude, exponent = _amplitude(log_y), _exponent()
        return _boxes([amplitude, exponent, amplitude, exponent, _floor(log_y)])

    def published(self, theta: Array, centre: Array) -> Array:
        a, alpha, b, beta, e = np.moveaxis(theta, -1, 0)
        amplitudes = np.exp(a + alpha * centre[0]), np.exp(b + beta * centre[1])
        return np.stack([amplitudes[0], alpha, amplitudes[1], beta, np.exp(e)], axis=-1)


class _Broken(Law):
    def terms(self, theta: Array, x: Array) -> tuple[Array, Array]:
        b, c0, c1, log_d, log_f, a0 = theta
        width = np.exp(log_f)
        z = (x[:, 0] - log_d) / width
        bend, after = width * np.logaddexp(0.0, z), 1 / (1 + np.exp(-np.clip(z, -60, 60)))
        slopes = _slopes(x, 2, 6)
        slopes[0, :, 0], slopes[0, :, 1], slopes[0, :, 2] = 1.0, -x[:, 0], -bend
        slopes[0, :, 3], slopes[0, :, 4] = c1 * after, -c1 * (bend - after * z * width)
        slopes[1, :, 5] = 1.0
        return np.stack([b - c0 * x[:, 0] - c1 * bend, np.full(len(x), a0)]), slopes

    def box(self, x: Array, log_y: Array) -> tuple[Array, Array, Array, Array]:
        low, high = float(x.min()), float(x.max())
        third = (high - low) / 3
        return _boxes(
            [
                _amplitude(log_y),
                (-1.0, _STEEPEST, 0.0, 0.5),
                (-_STEEPEST, _STEEPEST, -0.5, 1.0),
                (low, high, low + third, high - third),
                (-3.0, 1.5, -2.0, 0.5),
                _floor(log_y),
            ]
        )

    def published(self, theta: Array, centre: Array) -> Array:
        b, c0, c1, log_d, log_f, a0 = np.moveaxis(theta, -1, 0)
        return np.stack(
            [
                np.exp(b + c0 * centre[0]),
                c0,
                c1,
                np.exp(log_d + centre[0]),
                np.exp(log_f),
                np.exp(a0),
            ],
            axis=-1,
        )


LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        _Power("power", "A C^-alpha", "a straight line in log-log", ("compute",), ("A", "alpha")),
        _PowerFloor(
            "power_floor",
            "A C^-alpha + E",
            "Henighan et al. 2020 (arXiv 2010.14701), eq. 1.1",
            ("compute",),
            ("A", "alpha", "E"),
        ),
        _Saturating(
            "saturating",
            "a (C + d)^-b + c",
            "Zhai et al. 2022 (arXiv 2106.04560)",
            ("compute",),
            ("a", "b", "d", "c"),
        ),
        _Parametric(
            "parametric",
            "E + A N^-alpha + B D^-beta",
            "Hoffmann et al. 2022 (arXiv 2203.15556), approach 3",
            ("params", "data"),
            ("A", "alpha", "B", "beta", "E"),
        ),
        _Broken(
            "broken",
            "a0 + b C^-c0 (1 + (C/d1)^(1/f1))^(-c1 f1)",
            "Caballero et al. 2023 (arXiv 2210.14891), one break",
            ("compute",),
            ("b", "c0", "c1", "d1", "f1", "a0"),
        ),
    )
}


def find_law(name: str) -> Law:
    """The law of that name. Raises `UserError` where there is none."""
    if name not in LAWS:
        raise UserError("--law", name, "a known law", did_you_mean(name, LAWS))
    return LAWS[name]

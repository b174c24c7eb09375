"""How a key of the recipe is written down: default, meaning, range and unit in one line."""

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Range:
    """The finite numbers that a key accepts, between two ends; an open end is excluded."""

    low: float
    high: float
    is_low_open: bool
    is_high_open: bool

    @staticmethod
    def of(interval: str) -> "Range":
        """From a mathematician's notation: `[0, 1)`, `(0, inf)`."""
        low, high = interval[1:-1].split(",")
        return Range(float(low), float(high), interval[0] == "(", interval[-1] == ")")

    def holds(self, value: float) -> bool:
        """Whether `value` is finite and inside."""
        above = value > self.low if self.is_low_open else value >= self.low
        below = value < self.high if self.is_high_open else value <= self.high
        return math.isfinite(value) and above and below

    def __str__(self) -> str:
        """The range in words."""
        low = f"above {self.low:g}" if self.is_low_open else f"{self.low:g} or more"
        if math.isinf(self.high):
            return "any" if math.isinf(self.low) else low
        if not self.is_low_open and not self.is_high_open:
            return f"from {self.low:g} to {self.high:g}"
        high = f"below {self.high:g}" if self.is_high_open else f"at most {self.high:g}"
        return f"{low}, {high}"


def key(default: Any, meaning: str, within: str | None = None, unit: str | None = None) -> Any:
    """A key with its default and its meaning; a number has a range `within`, as `Range.of` reads,
    and a unit if it counts something."""
    return field(default=default, metadata=_facts(meaning, within, unit))


def required(meaning: str, within: str | None = None, unit: str | None = None) -> Any:
    """A key that every recipe must set."""
    return field(metadata=_facts(meaning, within, unit))


def _facts(meaning: str, within: str | None, unit: str | None) -> dict[str, Any]:
    return {"meaning": meaning, "range": Range.of(within) if within else None, "unit": unit}

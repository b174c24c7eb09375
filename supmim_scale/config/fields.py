"""How a recipe's key is written down: its default and its meaning."""

from dataclasses import field
from typing import Any


def doc(default: Any, text: str) -> Any:
    """A dataclass field with its default and its meaning."""
    return field(default=default, metadata={"doc": text})


def required(text: str) -> Any:
    """A dataclass field that every recipe must set."""
    return field(metadata={"doc": text})

"""Every key of a recipe, as its section says: for people who choose one, and for a page."""

import dataclasses
import fnmatch
import textwrap
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from supmim_scale.config.fields import Range
from supmim_scale.config.schema import IDENTITY_SECTIONS, RunConfig
from supmim_scale.errors import UserError, did_you_mean

_KINDS = {int: "whole number", float: "number", bool: "true or false", str: "text"}


@dataclass(frozen=True)
class Key:
    """A key of the recipe. `default` is None where a recipe must set it; `allowed` and `default`
    are words for people, as the recipe would write them."""

    name: str
    default: str | None
    allowed: str
    unit: str | None
    meaning: str
    is_number: bool
    range: Range | None

    @property
    def changes_result(self) -> bool:
        """Whether it belongs to the half that may change the result."""
        return self.name.partition(".")[0] in IDENTITY_SECTIONS

    def __str__(self) -> str:
        """Two lines or more: what it takes, what it means."""
        default = "required" if self.default is None else f"default {self.default}"
        unit = f", {self.unit}" if self.unit else ""
        part = "  (may change the result)" if self.changes_result else ""
        text = textwrap.fill(self.meaning, 92, initial_indent="    ", subsequent_indent="    ")
        return f"{self.name}  {default}  [{self.allowed}{unit}]{part}\n{text}"


def all_keys() -> list[Key]:
    """The keys of a recipe, in the order of its sections; not those of its lab note."""
    return [key for section in _sections() for key in section]


def keys_like(pattern: str | None) -> list[Key]:
    """The keys that a pattern matches, as in `optim.*`, or that have it in their name or meaning.

    Raises `UserError` where there is none.
    """
    keys = all_keys()
    if pattern is None:
        return keys
    found = [key for key in keys if fnmatch.fnmatch(key.name, pattern)]
    found = found or [key for key in keys if pattern in key.name]
    found = found or [key for key in keys if pattern.lower() in key.meaning.lower()]
    if not found:
        names = [key.name for key in keys]
        raise UserError("--keys", f"'{pattern}'", "part of a key", did_you_mean(pattern, names))
    return found


def reference() -> str:
    """All keys as a page of Markdown."""
    lines = [
        "# Keys of a recipe",
        "",
        "Made from the sections' own source by `supmim-scale recipes --keys --markdown`; a test "
        "holds it current.",
        "The keys of `model`, `loss`, `mim`, `mask`, `optim`, `data`, `augment` and `seed` may "
        "change the result and",
        "make up the digest of an experiment; the others must not change it. *null* stands for no "
        "value. `about` is a",
        "lab note of four texts (`paper`, `command`, `hardware`, `expected`), which a recipe may "
        "leave out.",
    ]
    for spec in dataclasses.fields(RunConfig):
        own = [key for key in all_keys() if key.name.partition(".")[0] == spec.name]
        if not own:
            continue
        kind = get_type_hints(RunConfig)[spec.name]
        about = f"\n{kind.__doc__}\n" if dataclasses.is_dataclass(kind) else ""
        head = "| key | default | allowed | unit | meaning |\n|---|---|---|---|---|"
        lines += ["", f"## `{spec.name}`", about, head]
        lines += [
            f"| `{key.name}` | {_cell(key.default, 'required')} | {key.allowed} | "
            f"{key.unit or ''} | {key.meaning.replace('|', '/')} |"
            for key in own
        ]
    return "\n".join(lines) + "\n"


def _cell(text: str | None, otherwise: str) -> str:
    return otherwise if text is None else f"`{text}`"


def _sections() -> Iterator[list[Key]]:
    hints = get_type_hints(RunConfig)
    for spec in dataclasses.fields(RunConfig):
        kind = hints[spec.name]
        if not dataclasses.is_dataclass(kind):
            yield [_key(spec.name, kind, spec)]
        elif spec.name != "about":
            inner = get_type_hints(kind)
            yield [
                _key(f"{spec.name}.{one.name}", inner[one.name], one)
                for one in dataclasses.fields(kind)
            ]


def _key(name: str, hint: Any, spec: "dataclasses.Field[Any]") -> Key:
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    (kind,) = (option for option in options if option is not type(None))
    within: Range | None = spec.metadata["range"]
    is_number = kind in (int, float)
    if get_origin(kind) is Literal:
        allowed = ", ".join(get_args(kind))
    else:
        allowed = _KINDS[kind] + (f" {within}" if within else "")
    if type(None) in options:
        allowed += ", or null"
    default = None if spec.default is dataclasses.MISSING else _written(spec.default)
    return Key(
        name, default, allowed, spec.metadata["unit"], spec.metadata["meaning"], is_number, within
    )


def _written(value: Any) -> str:
    """As a recipe writes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)

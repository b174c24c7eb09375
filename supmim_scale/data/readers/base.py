"""What readers have in common: the layout a recipe names, finding sources, parsing labels."""

import hashlib
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Protocol

import pyarrow as pa

from supmim_scale.data.index_table import Defect
from supmim_scale.errors import UserError

INDEX_SUFFIX = ".index"
_NO_SOURCES = (INDEX_SUFFIX, ".part", "SHA256SUMS")
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp")
READERS = ("webdataset", "tfrecord", "folder", "list")
_MODULES = {"list": "listing"}  # a module called list would be confused with the builtin

NO_LABEL = "missing label"
BAD_LABEL = "label is no class id"
EMPTY = "zero bytes"
DUPLICATE = "duplicate key"
UNSAFE = "name leaves its folder"
DAMAGED = "damaged source"
NO_SAMPLE = "empty source"


@dataclass(frozen=True)
class SampleLayout:
    """How a recipe says its samples lie.

    `image`, `label`: names of the TFRecord features, of the list's columns, or of WebDataset's
    label extension; None for the reader's usual ones. `labelled`: whether labels are read at all.
    `classes`: class names in the order of their ids.
    """

    reader: str = "webdataset"
    image: str | None = None
    label: str | None = None
    labelled: bool = True
    classes: tuple[str, ...] | None = None

    @cached_property
    def stamp(self) -> dict[str, str]:
        """What an index depends on besides its source."""
        names = "\n".join(self.classes) if self.classes else ""
        return {
            "reader": self.reader,
            "image": self.image or "",
            "label": (self.label or "") if self.labelled else "none",
            "classes": hashlib.sha256(names.encode()).hexdigest()[:16] if names else "",
        }

    @cached_property
    def digest(self) -> str:
        """Eight hex digits of `stamp`: indexes of two readings of one source lie side by side."""
        return hashlib.sha256(json.dumps(self.stamp).encode()).hexdigest()[:8]


class Reader(Protocol):
    """One kind of source."""

    def find(self, root: Path, pattern: str, where: str) -> list[Path]:
        """Sources of a split. Raises `UserError` if there are none."""

    def stamp(self, source: Path) -> dict[str, str]:
        """What changes when the source does."""

    def scan(self, source: Path, name: str, layout: SampleLayout) -> tuple[pa.Table, list[Defect]]:
        """The table of a source and what could not be used of it; `name` is for messages."""


def reader_named(name: str) -> Reader:
    """The reader of a name of `READERS`."""
    if name not in READERS:
        raise UserError("reader", f"'{name}'", f"one of {', '.join(READERS)}", "choose one")
    module = importlib.import_module(f"supmim_scale.data.readers.{_MODULES.get(name, name)}")
    reader: Reader = module.READER
    return reader


def find_files(root: Path, pattern: str, where: str, names: tuple[str, ...]) -> list[Path]:
    """Files of a folder (by the globs `names`), or matches of a glob, under `root`, sorted."""
    target = locate(root, pattern, where)
    if target.is_dir():
        matches = {path for name in names for path in target.glob(name)}
    else:
        matches = set(root.glob(pattern))
    # What we write beside sources is none, and a link that leads nowhere must be told, not passed.
    found = sorted(p for p in matches if not p.is_dir() and not p.name.endswith(_NO_SOURCES))
    if not found:
        kind = f"no {' or '.join(names)} in it" if target.is_dir() else "no match"
        raise UserError(
            where, f"{target} ({kind})", "shards", f"set {where} to their folder under {root}"
        )
    return found


def locate(root: Path, pattern: str, where: str) -> Path:
    """`root`/`pattern`. Raises `UserError` without the root or for a path that leaves it."""
    if is_unsafe(pattern):
        raise UserError(where, f"'{pattern}'", "a path below input.root", "move input.root instead")
    if not root.is_dir():
        raise UserError(
            "input.root",
            f"no folder {root}",
            "the folder that holds the data set",
            f"set input.root=FOLDER, or make one: supmim-scale data synth {root}",
        )
    return root / pattern


def is_unsafe(name: str) -> bool:
    """Whether a name from outside would lead out of the folder it is joined to."""
    return name.startswith("/") or ".." in PurePosixPath(name).parts


def file_stamp(source: Path) -> dict[str, str]:
    """Size and time of a file."""
    stat = source.stat()
    return {"bytes": str(stat.st_size), "mtime_ns": str(stat.st_mtime_ns)}


def parse_labels(text: str, ids: Mapping[str, int] | None) -> list[int]:
    """Label ids from a text: numbers separated by blanks or commas, or names where the classes are
    known; a whole text that is a name is one, blanks and all.

    Raises `ValueError` naming the first word that is neither, or a negative id.
    """
    if ids is not None and text.strip() in ids:
        return [ids[text.strip()]]
    labels = []
    for word in text.replace(",", " ").split():
        if ids is not None and word in ids:
            labels.append(ids[word])
        elif word.isdecimal() and word.isascii() and int(word) < 2**31:
            labels.append(int(word))
        else:
            raise ValueError(f"'{word[:40]}'")
    return labels


@lru_cache(maxsize=4)
def class_ids(layout: SampleLayout) -> dict[str, int] | None:
    """Ids by class name."""
    return {name: i for i, name in enumerate(layout.classes)} if layout.classes else None

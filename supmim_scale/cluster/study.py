"""A study: one YAML file that becomes a list of runs, a line each in its manifest."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supmim_scale.config import load_config
from supmim_scale.config.load import read_yaml
from supmim_scale.config.schema import RunConfig
from supmim_scale.errors import UserError, did_you_mean

MANIFEST = "manifest.tsv"
_KEYS = ("name", "recipe", "overrides", "grid", "runs")
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")


@dataclass(frozen=True)
class StudyRun:
    """A run of a study; `name` is its folder's beside the manifest."""

    name: str
    recipe: str
    overrides: tuple[str, ...]

    def config(self) -> RunConfig:
        """The checked recipe. Raises `UserError` with the run's name in front."""
        try:
            return load_config(self.recipe, self.overrides)
        except UserError as error:
            where = f"run {self.name}: {error.where}"
            raise UserError(where, error.found, error.expected, error.fix) from None


@dataclass(frozen=True)
class Study:
    """The runs of a study, in the order of its manifest; an array element each."""

    name: str
    runs: tuple[StudyRun, ...]


def load_study(path: Path) -> Study:
    """A study from its YAML file: `name`, `recipe`, `overrides` for all runs, and the runs: every
    combination of `grid`, or `runs` by name with overrides of their own.

    Raises `UserError` for anything unknown or doubled, and for a run whose recipe is wrong.
    """
    tree = read_yaml(path)
    for key in tree:
        if key not in _KEYS:
            raise UserError(f"{path}: {key}", "an unknown key", "a study's key",
                            did_you_mean(str(key), _KEYS))  # fmt: skip
    name, recipe = (_text(tree, key, path) for key in ("name", "recipe"))
    shared = tuple(_words(tree.get("overrides", {}), f"{path}: overrides"))
    grid, named = tree.get("grid", {}), tree.get("runs", {})
    if bool(grid) == bool(named):
        raise UserError(
            str(path), "both grid and runs" if grid else "neither grid nor runs", "one of them",
            "write grid: {key: [values]} or runs: {name: {key: value}}",
        )  # fmt: skip
    if not isinstance(named, dict):
        raise UserError(f"{path}: runs", f"{named!r}", "name: {key: value} lines", "name the runs")
    pairs = (
        _combinations(grid, f"{path}: grid")
        if grid
        else [(str(n), _words(own, f"{path}: runs.{n}")) for n, own in named.items()]
    )
    runs = tuple(StudyRun(run, recipe, (*shared, *own)) for run, own in pairs)
    _require_names([name, *(run.name for run in runs)], path)
    for run in runs:
        run.config()
    return Study(name, runs)


def write_manifest(study: Study, folder: Path) -> Path:
    """The study's runs as lines of name, recipe and overrides, separated by tabs: what a batch
    script can read. Raises `UserError` where the folder holds runs of another study."""
    lines = ["\t".join([run.name, run.recipe, *run.overrides]) for run in study.runs]
    path, text = folder / MANIFEST, "\n".join(lines) + "\n"
    is_other = path.exists() and path.read_text() != text
    if is_other and any((folder / run.name).exists() for run in read_manifest(folder).runs):
        raise UserError(str(path), "the runs of another study", "these runs",
                        "give the study another name, or remove the folder")  # fmt: skip
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise UserError("study folder", str(error), "a writable folder",
                        "set SUPMIM_RUNS in slurm/site.sh") from None  # fmt: skip
    return path


def require_begun(folder: Path, is_begun: bool) -> None:
    """Raise `UserError` where a study is submitted twice, or resumed before it was begun."""
    if (folder / (MANIFEST if is_begun else "submitted.jsonl")).exists() == is_begun:
        return
    if is_begun:
        raise UserError(str(folder), "no study yet", "a study's folder", "use study submit")
    raise UserError(str(folder), "this study, submitted before", "a new study",
                    "use study resume for the runs that are not over, or another name")  # fmt: skip


def read_manifest(folder: Path) -> Study:
    """The study of a folder."""
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(
            str(folder), f"no {MANIFEST}", "a study's folder", "submit or run the study"
        )
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    return Study(folder.name, tuple(StudyRun(row[0], row[1], tuple(row[2:])) for row in rows))


def _combinations(grid: Any, where: str) -> list[tuple[str, list[str]]]:
    """(name, overrides) of every combination: `width32_seed0`."""
    if not isinstance(grid, dict) or not all(isinstance(v, list) and v for v in grid.values()):
        raise UserError(where, f"{grid!r}", "key: [value, ...] lines", "write a list for each key")
    runs = []
    for values in itertools.product(*grid.values()):
        own = dict(zip(grid, values, strict=True))
        name = "_".join(f"{str(key).rpartition('.')[2]}{value}" for key, value in own.items())
        runs.append((name, _words(own, where)))
    return runs


def _words(overrides: Any, where: str) -> list[str]:
    """`{key: value}` as `key=value` words."""
    if not isinstance(overrides, Mapping):
        raise UserError(where, f"{overrides!r}", "key: value lines", "write, say, optim.lr: 0.001")
    words = [f"{key}={_shown(value)}" for key, value in overrides.items()]
    for word in words:
        if "\t" in word or "\n" in word:
            raise UserError(where, f"{word!r}", "no tab or line break", "write it without")
    return words


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    return str(value)


def _text(tree: Mapping[str, Any], key: str, path: Path) -> str:
    if not isinstance(tree.get(key), str):
        raise UserError(f"{path}: {key}", f"{tree.get(key)!r}", "a word", f"write {key}: ...")
    return str(tree[key])


def _require_names(names: Sequence[str], path: Path) -> None:
    for place, name in enumerate(names):
        if not _NAME.fullmatch(name):
            raise UserError(f"{path}: {name}", "a name that no folder can have",
                            "letters, digits, . _ + -", "name the run under runs:")  # fmt: skip
        if name in names[1:place]:
            raise UserError(f"{path}: {name}", "two runs of this name", "one", "change the grid")

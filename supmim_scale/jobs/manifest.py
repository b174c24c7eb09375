"""A study's list of runs: a line each of its manifest, which a batch script can read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supmim_scale.config import load_config
from supmim_scale.config.schema import RunConfig
from supmim_scale.errors import UserError

MANIFEST, SUBMITTED, DESIGN = "manifest.tsv", "submitted.jsonl", "design.json"
_BRANCH = "--branch-from="


@dataclass(frozen=True)
class StudyRun:
    """A run of a study. `name` is its folder's beside the manifest, `parent` the run that it
    branches off from."""

    name: str
    recipe: str
    overrides: tuple[str, ...]
    parent: str | None = None

    def config(self) -> RunConfig:
        """The checked recipe. Raises `UserError` with the run's name in front."""
        try:
            return load_config(self.recipe, self.overrides)
        except UserError as error:
            where = f"run {self.name}: {error.where}"
            raise UserError(where, error.found, error.expected, error.fix) from None

    def words(self, folder: Path) -> list[str]:
        """Words of `train` but for the run's own folder."""
        branch = [f"{_BRANCH}{folder / self.parent}"] if self.parent else []
        return [self.recipe, *self.overrides, *branch]


@dataclass(frozen=True)
class Study:
    """The runs of a study, in the order of its manifest; an array element each."""

    name: str
    runs: tuple[StudyRun, ...]


def write_manifest(
    study: Study, folder: Path, text: str = "", facts: Mapping[str, Any] | None = None
) -> Path:
    """The runs as lines of name and words of `train`, separated by tabs; the study's own text and
    facts of its design beside it. Raises `UserError` where the folder has begun with other runs.
    """
    lines = ["\t".join([run.name, *run.words(folder)]) for run in study.runs]
    path, manifest = folder / MANIFEST, "\n".join(lines) + "\n"
    is_other = path.exists() and path.read_text() != manifest
    names = [run.name for run in read_manifest(folder).runs] if is_other else []
    if is_other and any((folder / name).exists() for name in (SUBMITTED, *names)):
        raise UserError(
            str(path),
            "the runs of another study",
            "these runs",
            "give the study another name, or remove the folder",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(manifest)
        (folder / "study.yaml").write_text(text)
        (folder / DESIGN).write_text(json.dumps(facts or {}, indent=1) + "\n")
    except OSError as error:
        raise UserError(
            "study folder", str(error), "a writable folder", "set SUPMIM_RUNS in slurm/site.sh"
        ) from None
    return path


def read_manifest(folder: Path) -> Study:
    """The study of a folder."""
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(
            str(folder), f"no {MANIFEST}", "a study's folder", "submit or run the study"
        )
    return Study(folder.name, tuple(_run(line) for line in path.read_text().splitlines()))


def read_design(folder: Path) -> dict[str, Any]:
    """The facts of the study's design: `law`, `metric`, and of every run `arm` and `trunk`."""
    path = folder / DESIGN
    facts: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return facts


def require_begun(folder: Path, is_begun: bool) -> None:
    """Raise `UserError` where a study is submitted twice, or resumed before it was begun."""
    if (folder / (MANIFEST if is_begun else SUBMITTED)).exists() == is_begun:
        return
    if is_begun:
        raise UserError(str(folder), "no study yet", "a study's folder", "use study submit")
    raise UserError(
        str(folder),
        "this study, submitted before",
        "a new study",
        "use study resume for the runs that are not over, or another name",
    )


def _run(line: str) -> StudyRun:
    name, recipe, *words = line.split("\t")
    parents = [Path(word.removeprefix(_BRANCH)).name for word in words if word.startswith(_BRANCH)]
    overrides = tuple(word for word in words if not word.startswith(_BRANCH))
    return StudyRun(name, recipe, overrides, parents[0] if parents else None)

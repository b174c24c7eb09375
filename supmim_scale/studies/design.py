"""A study's YAML file as runs, each with its size, its data and its compute, cheapest first."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from supmim_scale.build.model import encoder_params, joint_shape, target_features
from supmim_scale.config import RunConfig, digest
from supmim_scale.config.load import load_mapping
from supmim_scale.errors import UserError, did_you_mean
from supmim_scale.jobs.manifest import Study, StudyRun
from supmim_scale.models.flops import step_flops

BUDGETS = ("images", "flops", "images_per_param")
_AXES = ("sizes", "objectives", "schedules")  # NAME: {key: value} each
_KEYS = (
    "name",
    "recipe",
    "overrides",
    *_AXES,
    "grid",
    "seeds",
    "runs",
    *BUDGETS,
    "branch",
    "law",
    "metric",
    "cluster",
)
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
_APART = "\t"  # between the names of an arm's objective and its schedule
_RESERVED = ("report", "fit", "study.yaml", "manifest.tsv")
_LONGEST = 200  # letters of a folder's name, which file systems hold to 255
_ENDLESS = 10**9  # steps while a run's length is not known yet

Words = dict[str, str]  # overrides by key


@dataclass(frozen=True)
class DesignedRun:
    """A run and what it takes: `params` of the encoder without its head, `images` seen and
    `train_flops` without recomputation, of the whole run. `shared_images` of them were seen by the
    run that it branches off from; `trunk` is the first of those. Runs of one `arm` are fitted
    together."""

    run: StudyRun
    config: RunConfig
    arm: str
    params: int
    images: int
    train_flops: float
    shared_images: int = 0
    trunk: str = ""

    @property
    def own_flops(self) -> float:
        """FLOPs that this run itself has to do."""
        return self.train_flops * (1 - self.shared_images / self.images)


@dataclass(frozen=True)
class Design:
    """A study as it was written; `law` None: no law is to be fitted, and none is looked at."""

    name: str
    text: str
    runs: tuple[DesignedRun, ...]
    law: str | None
    metric: str
    cluster: Mapping[str, Any]

    @property
    def study(self) -> Study:
        """The runs as a manifest lists them."""
        return Study(self.name, tuple(one.run for one in self.runs))

    def facts(self) -> dict[str, Any]:
        """What the report needs to know of the design, as JSON."""
        runs = {one.run.name: {"arm": one.arm, "trunk": one.trunk} for one in self.runs}
        return {"law": self.law, "metric": self.metric, "runs": runs}


def load_design(path: Path) -> Design:
    """A study from its YAML file. slurm/README.md says what it may hold.

    Raises `UserError` for anything unknown or doubled, and for a run whose recipe is wrong.
    """
    tree = load_mapping(path)
    for key in tree:
        if key not in _KEYS:
            fix = did_you_mean(str(key), _KEYS)
            raise UserError(f"{path}: {key}", "an unknown key", "a study's key", fix)
    name, recipe = (_text(tree, key, path) for key in ("name", "recipe"))
    if recipe.endswith((".yaml", ".yml")):
        recipe = str(Path(recipe).resolve())  # tasks and later commands start elsewhere
    shared = _words(tree.get("overrides", {}), f"{path}: overrides")
    budget = _budget(tree, path)
    families = [
        _family(recipe, shared | own, run_name, arm, budget)
        for run_name, arm, own in _combinations(tree, path)
    ]
    if _flag(tree, "branch", path):
        families = [_branched(family) for family in families]
    runs = sorted((run for family in families for run in family), key=lambda run: run.train_flops)
    _require_names([name, *(one.run.name for one in runs)], path)
    _require_different(runs, path)
    sizes = {one.params for one in runs}, {one.images for one in runs}
    law = tree.get("law", "parametric" if min(map(len, sizes)) > 1 else None)
    cluster = tree.get("cluster", {})
    if not isinstance(cluster, dict):
        raise UserError(f"{path}: cluster", f"{cluster!r}", "key: value lines", "write gpu: h100")
    metric = _text({"metric": tree.get("metric", "error")}, "metric", path)
    return Design(name, path.read_text(), tuple(runs), law and str(law), metric, cluster)


def _combinations(tree: Mapping[str, Any], path: Path) -> Iterator[tuple[str, str, Words]]:
    """(name, arm, overrides) of every run but for its budget."""
    if "runs" in tree:
        others = [key for key in (*_AXES, "grid", "seeds", *BUDGETS) if key in tree]
        if others:
            raise UserError(
                f"{path}: runs",
                f"runs beside {others[0]}",
                "one of them",
                "name every run under runs:, or none",
            )
        for name, own in _mapping(tree["runs"], f"{path}: runs").items():
            yield str(name), "", _words(own, f"{path}: runs.{name}")
        return
    named = [key for key in _AXES if key in tree]
    axes = [_named_axis(tree, key, path) for key in named]
    for key, values in _mapping(tree.get("grid", {}), f"{path}: grid").items():
        short = str(key).rpartition(".")[2]
        values = _list(values, f"{path}: grid.{key}")
        axes.append([(f"{short}{_shown(v)}", {str(key): _shown(v)}) for v in values])
    if "seeds" in tree:
        seeds = _list(tree["seeds"], f"{path}: seeds")
        axes.append([(f"seed{_shown(v)}", {"seed": _shown(v)}) for v in seeds])
    if not axes and not any(key in tree for key in BUDGETS):
        raise UserError(
            str(path),
            "neither axes nor runs",
            "some",
            "write sizes:, grid:, images: and so on, or runs:",
        )
    for parts in itertools.product(*axes):
        keys = [key for _, words in parts for key in words]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise UserError(f"{path}: {twice}", "set by two axes", "by one", "leave one of them")
        own = {key: value for _, words in parts for key, value in words.items()}
        arms = {key: name for key, (name, _) in zip(named, parts, strict=False)}
        arm = _APART.join(arms.get(key, "") for key in ("objectives", "schedules"))
        yield "_".join(name for name, _ in parts), arm, own


def _named_axis(tree: Mapping[str, Any], key: str, path: Path) -> list[tuple[str, Words]]:
    where = f"{path}: {key}"
    choices = _mapping(tree[key], where)
    return [(str(name), _words(own, f"{where}.{name}")) for name, own in choices.items()]


def _budget(tree: Mapping[str, Any], path: Path) -> tuple[str, list[float]] | None:
    """How long runs are: a kind of `BUDGETS` and its values; None: as the recipe says."""
    given = [key for key in BUDGETS if key in tree]
    if len(given) > 1:
        raise UserError(str(path), " and ".join(given), "one of them", "leave one")
    if not given:
        return None
    values = _list(tree[given[0]], f"{path}: {given[0]}")
    for value in values:
        if not isinstance(value, int | float) or not 0 < value < math.inf:
            raise UserError(
                f"{path}: {given[0]}", f"{value!r}", "numbers above 0", "write, say, 1.0e+12"
            )
    return given[0], sorted(map(float, values))


def _family(
    recipe: str, words: Words, name: str, arm: str, budget: tuple[str, list[float]] | None
) -> list[DesignedRun]:
    """The runs of one combination, a run a budget."""
    if budget is None:
        run = StudyRun(name, recipe, _overrides(words))
        steps = run.config().optim.steps
        if steps is None:
            raise UserError(
                f"run {name}: optim.epochs",
                "a length in epochs",
                "optim.steps",
                "set overrides: {optim.epochs: null, optim.steps: N}, or a budget",
            )
        return [_designed(run, arm, steps)]
    kind, values = budget
    for key in ("optim.steps", "optim.epochs"):
        if words.get(key, "null") != "null":
            raise UserError(
                f"run {name or kind}: {key}",
                f"{words[key]} beside {kind}",
                "one length",
                f"leave {key} or {kind} out",
            )
    endless = words | {"optim.epochs": "null", "optim.steps": str(_ENDLESS)}
    config = StudyRun(name, recipe, _overrides(endless)).config()
    one_image = _designed(StudyRun(name, recipe, _overrides(endless)), arm, _ENDLESS)
    per_image = one_image.train_flops / one_image.images
    runs = []
    for value in values:
        images = {
            "images": value,
            "flops": value / per_image,
            "images_per_param": value * one_image.params,
        }[kind]
        steps = max(1, round(images / config.optim.global_batch))
        full = "_".join(part for part in (name, f"{kind}{value:g}") if part)
        own = _overrides(endless | {"optim.steps": str(steps)})
        runs.append(_designed(StudyRun(full, recipe, own), arm, steps))
    return runs


def _designed(run: StudyRun, arm: str, steps: int) -> DesignedRun:
    config = run.config()
    images = steps * config.optim.global_batch
    shape = joint_shape(config, target_features(config))
    flops = float(images * step_flops(shape).model)
    params, arm = encoder_params(config), _arm(config, arm)
    return DesignedRun(run, config, arm, params, images, flops, trunk=run.name)


def _arm(config: RunConfig, named: str) -> str:
    """What a run is compared as: names of its objective and schedule; without the MIM term it is
    the supervised arm, which others are held against."""
    objective, _, schedule = named.partition(_APART)
    if not config.mim.weight:
        objective = "supervised"
    objective = objective or f"supervised + MIM, {config.mim.layout}"
    return f"{objective}, {schedule}" if schedule else objective


def _branched(family: Sequence[DesignedRun]) -> list[DesignedRun]:
    """Runs of one length after the other, each going on from where the one before cooled down."""
    optim = family[0].config.optim
    if optim.schedule == "cosine" or not optim.cooldown_steps or len(family) < 2:
        return list(family)
    done: list[DesignedRun] = []
    for one in family:
        words = (*one.run.overrides, "checkpoint.before_cooldown=true")
        run, shared = replace(one.run, overrides=words), 0
        if done:
            shared = done[-1].images - optim.cooldown_steps * optim.global_batch
        if shared > 0:
            run = replace(run, parent=done[-1].run.name)
        trunk = done[-1].trunk if shared > 0 else run.name
        done.append(replace(one, run=run, config=run.config(), shared_images=shared, trunk=trunk))
    return done


def _overrides(words: Words) -> tuple[str, ...]:
    return tuple(f"{key}={value}" for key, value in words.items())


def _words(overrides: Any, where: str) -> Words:
    """`{key: value}` as they are typed on the command line."""
    words = {str(key): _shown(value) for key, value in _mapping(overrides, where).items()}
    for key, value in words.items():
        if "\t" in key + value or "\n" in key + value:
            raise UserError(
                f"{where}.{key}", f"{value!r}", "no tab or line break", "write it without"
            )
    return words


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    return str(value)


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(where, f"{value!r}", "key: value lines", "write, say, optim.lr: 0.001")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise UserError(where, f"{value!r}", "a list", "write [first, second]")
    return value


def _flag(tree: Mapping[str, Any], key: str, path: Path) -> bool:
    value = tree.get(key, True)
    if not isinstance(value, bool):
        raise UserError(f"{path}: {key}", f"{value!r}", "true or false", "write one of them")
    return value


def _text(tree: Mapping[str, Any], key: str, path: Path) -> str:
    if not isinstance(tree.get(key), str):
        raise UserError(f"{path}: {key}", f"{tree.get(key)!r}", "a word", f"write {key}: ...")
    return str(tree[key])


def _require_names(names: Sequence[str], path: Path) -> None:
    for place, name in enumerate(names):
        if not _NAME.fullmatch(name) or len(name) > _LONGEST or name in _RESERVED:
            raise UserError(
                f"{path}: {name[:80]}",
                "a name that no folder can have",
                f"letters, digits, . _ + -, at most {_LONGEST}",
                "name the run under runs:",
            )
        if name in names[1:place]:
            raise UserError(f"{path}: {name}", "two runs of this name", "one", "change an axis")


def _require_different(runs: Sequence[DesignedRun], path: Path) -> None:
    """Raise `UserError` for two names of one experiment: it would enter a fit twice."""
    seen: dict[str, DesignedRun] = {}
    for one in runs:
        other = seen.setdefault(digest(one.config), one)
        if other is not one:
            raise UserError(
                f"{path}: {one.run.name}",
                f"the same run as {other.run.name}, "
                f"{one.images // one.config.optim.global_batch} steps",
                "runs that differ",
                "leave one of the two values out",
            )

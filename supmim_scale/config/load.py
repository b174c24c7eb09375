"""From YAML text and `key=value` overrides to a checked `RunConfig`, and back to YAML."""

import dataclasses
import hashlib
import json
import types
from collections.abc import Hashable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from supmim_scale.config.checks import require_consistent
from supmim_scale.config.fields import Range
from supmim_scale.config.schema import IDENTITY_SECTIONS, RunConfig
from supmim_scale.errors import UserError, did_you_mean


class _UniqueKeyLoader(yaml.SafeLoader):
    """`safe_load` that refuses a key written twice instead of taking the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
        for key in keys:
            if keys.count(key) > 1:
                line = node.start_mark.line + 1
                raise UserError(
                    f"{node.start_mark.name}, mapping at line {line}",
                    f"key '{key}' twice",
                    "each key once",
                    "delete one of them",
                )
        return super().construct_mapping(node, deep)


def recipe_names() -> list[str]:
    """Names of the packaged recipes."""
    folder = resources.files("supmim_scale") / "recipes"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.suffix == ".yaml")  # type: ignore[attr-defined]


def find_recipe(recipe: str) -> Path:
    """Path of a packaged recipe's name or of a YAML file."""
    if recipe.endswith((".yaml", ".yml")):
        if not Path(recipe).is_file():
            raise UserError("recipe", f"no file {recipe}", "a YAML file", "check the path")
        return Path(recipe)
    if recipe not in recipe_names():
        fix = did_you_mean(recipe, recipe_names())
        raise UserError("recipe", f"'{recipe}'", "a packaged recipe or a path to a .yaml", fix)
    return Path(str(resources.files("supmim_scale") / "recipes" / f"{recipe}.yaml"))


def load_config(recipe: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The checked recipe. Raises `UserError` for anything unknown, mistyped or inconsistent."""
    path = find_recipe(recipe)
    return config_from(load_mapping(path), overrides, path.name)


def config_from(tree: dict[str, Any], overrides: Sequence[str], where: str) -> RunConfig:
    """The checked recipe of a mapping; `where` is for messages. Raises `UserError` as
    `load_config` does."""
    for override in overrides:
        _override(tree, override)
    config: RunConfig = _build(RunConfig, tree, where=where, prefix="")
    if config.data.name is None:
        name = Path(config.input.root).absolute().name
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, name=name))
    require_consistent(config)
    return config


def load_mapping(path: Path) -> dict[str, Any]:
    """A YAML file's mapping. Raises `UserError` if it has none, or a key twice."""
    try:
        loader = _UniqueKeyLoader(path.read_text())
        loader.name = str(path)
        tree = loader.get_single_data()
    except OSError as error:
        raise UserError(str(path), str(error), "a YAML file", "check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        what = " ".join(str(error).split())
        raise UserError(str(path), f"invalid YAML ({what})", "a mapping", "fix the file") from None
    if not isinstance(tree, dict):
        raise UserError(
            str(path), f"{type(tree).__name__}", "a mapping of sections", "see a recipe"
        )
    return tree


def resolved(config: RunConfig) -> dict[str, Any]:
    """The recipe as plain data, every default written out, plus its digest."""
    return {**dataclasses.asdict(config), "digest": digest(config)}


def digest(config: RunConfig) -> str:
    """Twelve hex digits naming the experiment: a hash of the half that may change the result."""
    whole = dataclasses.asdict(config)
    text = json.dumps({name: whole[name] for name in IDENTITY_SECTIONS}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def as_yaml(config: RunConfig) -> str:
    """The resolved recipe as text; a file of it loads as an equal recipe."""
    text: str = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)
    return f"# digest {digest(config)}\n{text}"


def _override(tree: dict[str, Any], override: str) -> None:
    """Set one `a.b=value` in the raw tree; the value is text, converted by the field's type."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(
            "command line",
            f"'{override}'",
            "section.key=value",
            "write, for example, optim.lr=0.001",
        )
    *sections, leaf = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise UserError(
                key, f"'{section}' is not a section", "section.key=value", "see a recipe"
            )
    tree[leaf] = _Text(text)


class _Text(str):
    """A value typed on the command line, where everything is text."""

    __slots__ = ()


def _build(cls: type, tree: Any, where: str, prefix: str) -> Any:
    if not isinstance(tree, dict):
        raise UserError(
            f"{where}: {prefix[:-1]}", _shown(tree), "a section of keys", "write key: value lines"
        )
    hints, specs = get_type_hints(cls), {spec.name: spec for spec in dataclasses.fields(cls)}
    values = {}
    for key, value in tree.items():
        name = f"{'command line' if isinstance(value, _Text) else where}: {prefix}{key}"
        if key not in hints:
            raise UserError(name, "an unknown key", "a recipe key", _meant(str(key), hints))
        if dataclasses.is_dataclass(hints[key]):
            values[key] = _build(hints[key], value, where, f"{prefix}{key}.")
        else:
            values[key] = _convert(hints[key], value, name)
            _require_within(specs[key].metadata["range"], values[key], name)
    for spec in specs.values():
        if spec.name not in values and spec.default is dataclasses.MISSING:
            meaning = spec.metadata.get("meaning", "a section")
            name = f"{where}: {prefix}{spec.name}"
            raise UserError(name, "nothing", meaning, "add the key to the recipe")
    return cls(**values)


def _require_within(wanted: Range | None, value: float | None, where: str) -> None:
    if wanted is not None and value is not None and not wanted.holds(value):
        key = where.rpartition(": ")[2]
        raise UserError(where, f"{value:g}", str(wanted), f"set {key} in that range")


def _meant(key: str, hints: dict[str, Any]) -> str:
    """Advice for an unknown key: the sections that have it, or else similar names."""
    full = [
        f"{section}.{key}"
        for section, hint in hints.items()
        if dataclasses.is_dataclass(hint) and key in get_type_hints(hint)
    ]
    return f"did you mean {' or '.join(full)}?" if full else did_you_mean(key, hints)


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the field's type, or `UserError`; only whole numbers are converted, to float."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if type(None) in options:
        if value is None or (isinstance(value, _Text) and value == "null"):
            return None
        options = tuple(option for option in options if option is not type(None))
    (kind,) = options
    if get_origin(kind) is Literal:
        if value not in get_args(kind) or isinstance(value, bool):
            fix = did_you_mean(str(value), get_args(kind))
            raise UserError(where, _shown(value), f"one of {', '.join(get_args(kind))}", fix)
        return str(value)
    if isinstance(value, _Text):
        return _from_text(kind, value, where)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise UserError(where, _shown(value), f"a {_KINDS[kind]}", _type_advice(kind, value))
    return value


_KINDS = {int: "whole number", float: "number", bool: "true or false", str: "text"}


def _from_text(kind: type, text: str, where: str) -> Any:
    if kind is bool:
        if text not in ("true", "false"):
            raise UserError(where, f"'{text}'", "true or false", "write true or false")
        return text == "true"
    try:
        return str(text) if kind is str else kind(text)
    except ValueError:
        fix = f"write {where.rpartition(': ')[2]}=<{_KINDS[kind]}>"
        raise UserError(where, f"'{text}'", f"a {_KINDS[kind]}", fix) from None


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return f"{str(value).lower()} (YAML reads yes/no/on/off as true/false)"
    return f"text '{value}'" if isinstance(value, str) else f"{value!r}"


def _type_advice(kind: type, value: Any) -> str:
    if kind is float and isinstance(value, str):
        return "YAML needs a dot in 1.0e-4 to read a number"
    if kind is str and isinstance(value, bool):
        return "put the word in quotes"
    return "change the value"

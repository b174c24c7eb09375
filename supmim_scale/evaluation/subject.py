"""What is evaluated: a run, its weights, a timm folder or file, or a name that timm knows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from supmim_scale.build.data import view_settings
from supmim_scale.build.model import recipe_encoder
from supmim_scale.config import RunConfig, config_from, load_config
from supmim_scale.data.loader import ViewSettings
from supmim_scale.engine.settings import resolve_precision
from supmim_scale.errors import UserError
from supmim_scale.evaluation.classify import autocast
from supmim_scale.models import timm_models
from supmim_scale.models.timm_models import Views
from supmim_scale.models.weights import load_encoder, read_weights
from supmim_scale.runs.weights import last_weights

_RECIPE = "recipe.yaml"
_ANY_CLASSES = 1 << 30  # of a model without a head: no label is too large for it


@dataclass(frozen=True)
class Subject:
    """An encoder with its head, in fp32, and the recipe that says which data it is measured on.

    `views`: how it wants its images, None for the recipe's way. `out`: where results lie unless
    another folder is named. `facts` go into the results. `run_dir`, `weights`: of a run.
    `says_classes`: the command line says `model.num_classes`.
    """

    name: str
    encoder: nn.Module
    config: RunConfig
    views: Views | None
    out: Path
    facts: dict[str, Any]
    run_dir: Path | None = None
    weights: Path | None = None
    says_classes: bool = False

    @property
    def num_classes(self) -> int:
        """Outputs of the head, 0 without one."""
        return int(self.encoder.num_classes)  # type: ignore[arg-type]

    def view_settings(self, device: torch.device) -> ViewSettings:
        """How held-out images are cut and decoded; `prepared` then normalises them."""
        settings = view_settings(self.config, device)
        if self.views is None:
            return settings
        spec = replace(settings.spec, cubic=self.views.interpolation == "bicubic")
        return replace(settings, spec=spec)

    def prepared(self, images_BCHW: Tensor) -> Tensor:
        """Images normalised by the recipe's mean and std, as the encoder wants them."""
        data, views = self.config.data, self.views
        if views is None or (views.mean, views.std) == ((data.mean,) * 3, (data.std,) * 3):
            return images_BCHW
        mean, std = (
            images_BCHW.new_tensor(given).view(3, 1, 1) for given in (views.mean, views.std)
        )
        return (images_BCHW * data.std + data.mean - mean) / std

    def precision(self, device: torch.device) -> str:
        """The precision of the encoder's forward passes: `engine.precision` for this device."""
        return resolve_precision(self.config.engine.precision, device)

    def features(self, images_BCHW: Tensor) -> Tensor:
        """(B, width): what the head reads, computed in the subject's precision."""
        device = images_BCHW.device
        with autocast(device, self.precision(device)):
            tokens = self.encoder.forward_features(self.prepared(images_BCHW))  # type: ignore[operator]
            pooled: Tensor = self.encoder.forward_head(tokens, pre_logits=True)  # type: ignore[operator]
        return pooled

    def logits(self, features_BD: Tensor) -> Tensor:
        """(B, classes) from `features`."""
        return self.encoder.get_classifier()(features_BD)  # type: ignore[operator,no-any-return]


def open_subject(
    what: str, weights: Path | None, model: str | None, overrides: Sequence[str]
) -> Subject:
    """The subject that `what` names. Raises `UserError` for whatever is none.

    `weights`: of a run, another file than its last. `model`: timm's name of the architecture of a
    safetensors file.
    """
    path = Path(what)
    if (path / _RECIPE).is_file():
        return open_run(path, weights, overrides)
    if weights is not None:
        raise UserError(
            "--weights",
            f"{weights} with {what}",
            "a run's folder before it",
            "name the file itself: eval FILE.safetensors",
        )
    if path.is_dir():
        return _open_folder(path, overrides)
    if path.is_file():
        recipe = path.resolve().parent.parent / _RECIPE
        if model is None and recipe.is_file():
            return open_run(recipe.parent, path, overrides)
        return _open_file(path, model, overrides)
    if not timm_models.is_named(what):
        looks_like_path = path.suffix == ".safetensors" or len(path.parts) > 1
        found = "no such file or folder" if looks_like_path else "neither a path nor a timm name"
        fix = "check the path" if looks_like_path else timm_models.advice(what)
        raise UserError(what, found, "a run, a timm folder or file, or a timm name", fix)
    opened = timm_models.open_named(what, _asked_size(overrides))
    return _timm_subject(what, opened, overrides, Path("evals") / timm_models.file_name_of(what))


def open_run(run_dir: Path, weights: Path | None, overrides: Sequence[str] = ()) -> Subject:
    """A run's weights, by default its last, in the encoder of its recipe."""
    config = recipe_of(run_dir, overrides)
    weights = weights or last_weights(run_dir)
    encoder = recipe_encoder(config)
    facts: dict[str, Any] = {"weights_file": weights.name, **load_encoder(encoder, weights)}
    return Subject(run_dir.name, encoder, config, None, run_dir, facts, run_dir, weights)


def recipe_of(run_dir: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The recipe that a run folder keeps. Raises `UserError` for another folder."""
    recipe = run_dir / _RECIPE
    if not recipe.is_file():
        raise UserError(str(run_dir), f"no {_RECIPE}", "a run folder", "check the path")
    return load_config(str(recipe), overrides)


def _open_folder(path: Path, overrides: Sequence[str]) -> Subject:
    if not (path / "config.json").is_file():
        raise UserError(
            str(path),
            f"no {_RECIPE} and no config.json",
            "a run folder, or one that timm or export wrote",
            "check the path",
        )
    opened = timm_models.open_folder(path, _asked_size(overrides))
    return _timm_subject(str(path), opened, overrides, Path("evals") / path.resolve().name)


def _open_file(path: Path, model: str | None, overrides: Sequence[str]) -> Subject:
    """A file of timm's tensors: its architecture is `model`, or that of the config.json beside."""
    if model is None and path.name == "model.safetensors":
        return _open_folder(path.resolve().parent, overrides)
    given, _ = read_weights(path)
    if model is None:
        raise UserError(
            str(path),
            "a file that does not say its architecture",
            "timm's name of it",
            "add --model NAME, say --model vit_base_patch16_224",
        )
    if not timm_models.is_named(model):
        raise UserError("--model", f"'{model}'", "a name of timm's", timm_models.advice(model))
    opened = timm_models.open_tensors(model, given, str(path), _asked_size(overrides))
    return _timm_subject(str(path), opened, overrides, Path("evals") / path.stem)


def _timm_subject(name: str, encoder: nn.Module, overrides: Sequence[str], out: Path) -> Subject:
    """A timm model with a recipe of its own, which the overrides complete."""
    if not isinstance(encoder.get_classifier(), nn.Module):  # type: ignore[operator]
        raise UserError(
            name,
            "several heads, of a distilled model",
            "a model with one head",
            "take another model",
        )
    views = timm_models.views_of(encoder)
    words = {
        "paper": "none",
        "command": f"supmim-scale eval {name}",
        "hardware": "any",
        "expected": "not run yet",
    }
    tree = {
        "about": words,
        "model": {
            "name": name,
            "num_classes": int(encoder.num_classes) or _ANY_CLASSES,  # type: ignore[arg-type]
            "image_size": views.size,
        },
        "optim": {"global_batch": 1, "lr": 1.0, "steps": 1},
        "data": {"name": "eval", "eval_crop": views.crop},
        "mim": {"weight": 0.0},
    }
    config = config_from(tree, overrides, "command line")
    facts = {
        "model": name,
        "mean": list(views.mean),
        "std": list(views.std),
        "interpolation": views.interpolation,
    }
    says_classes = any(text.startswith("model.num_classes=") for text in overrides)
    return Subject(name, encoder, config, views, out, facts, says_classes=says_classes)


def _asked_size(overrides: Sequence[str]) -> int | None:
    """What `model.image_size=` says, if it is said."""
    said = [
        text for key, _, text in (o.partition("=") for o in overrides) if key == "model.image_size"
    ]
    try:
        return int(said[-1]) if said else None
    except ValueError:
        raise UserError(
            "model.image_size",
            f"'{said[-1]}'",
            "a number of pixels",
            "write, say, model.image_size=384",
        ) from None

"""Supervised + masked-image-modelling training of vision transformers at scale.

    import supmim_scale as sm

    recipe = sm.load_recipe("smoke", ["optim.steps=20"])
    sm.train(recipe)
    encoder = sm.load_encoder(recipe.log.run_dir)
    features = sm.features(encoder, sm.open_data(recipe, "val"))

Names are loaded on first use, so importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from supmim_scale.api.cost import plan
    from supmim_scale.api.data import batches, labels, open_data, step_inputs
    from supmim_scale.api.encoder import features, load_encoder
    from supmim_scale.api.laws import fit_law
    from supmim_scale.api.recipe import build_model, load_recipe
    from supmim_scale.api.run import check, evaluate, export, train
    from supmim_scale.errors import UserError
    from supmim_scale.runs.rows import read_log

__version__ = "0.1.0"

_HOMES = {
    "UserError": "errors",
    "batches": "api.data",
    "build_model": "api.recipe",
    "check": "api.run",
    "evaluate": "api.run",
    "export": "api.run",
    "features": "api.encoder",
    "fit_law": "api.laws",
    "labels": "api.data",
    "load_encoder": "api.encoder",
    "load_recipe": "api.recipe",
    "open_data": "api.data",
    "plan": "api.cost",
    "read_log": "runs.rows",
    "step_inputs": "api.data",
    "train": "api.run",
}
__all__ = [
    "UserError",
    "batches",
    "build_model",
    "check",
    "evaluate",
    "export",
    "features",
    "fit_law",
    "labels",
    "load_encoder",
    "load_recipe",
    "open_data",
    "plan",
    "read_log",
    "step_inputs",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'supmim_scale' has no attribute '{name}'")
    return getattr(import_module(f"supmim_scale.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]

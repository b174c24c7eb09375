"""Recipes, and the models they describe."""

from collections.abc import Sequence
from dataclasses import replace

from supmim_scale.build.model import recipe_model, target_features
from supmim_scale.config import RunConfig, load_config
from supmim_scale.models.joint import JointModel
from supmim_scale.training.start import run_folder


def load_recipe(recipe: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Load a packaged recipe by name, or a YAML file, with overrides such as `optim.lr=1e-3`.

    The result is frozen and checked; `log.run_dir` is filled in as on the command line.
    Raises `UserError`.
    """
    config = load_config(str(recipe), overrides)
    return replace(config, log=replace(config.log, run_dir=str(run_folder(config, str(recipe)))))


def build_model(recipe: RunConfig) -> JointModel:
    """Build the recipe's joint model in fp32 on the CPU, initialised from the recipe's seed.

    `model(images_BCHW, class_targets_BK, masks, patch_targets)`, whose arguments `step_inputs`
    makes of a batch, gives a `JointOutput` of losses, logits and predictions. The global random
    state is left as it was.
    """
    return recipe_model(recipe, target_features(recipe))

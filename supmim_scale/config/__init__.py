"""Recipes: YAML plus `key=value` overrides, read into frozen dataclasses and checked.

This package is the only reader of YAML and is free of torch, so that a recipe is refused in
a fraction of a second, before any process group or device is touched.
"""

from supmim_scale.config.load import (
    as_yaml,
    config_from,
    digest,
    find_recipe,
    load_config,
    load_mapping,
    recipe_names,
    resolved,
)
from supmim_scale.config.schema import IDENTITY_SECTIONS, RunConfig

__all__ = [
    "IDENTITY_SECTIONS",
    "RunConfig",
    "as_yaml",
    "config_from",
    "digest",
    "find_recipe",
    "load_config",
    "load_mapping",
    "recipe_names",
    "resolved",
]

"""Data sets of a recipe, and their images as a training step sees them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from supmim_scale.build.data import known_bad, open_split, sample_order, skip_rule, view_settings
from supmim_scale.build.model import encoder_geometry, mask_spec
from supmim_scale.build.step import step_arguments
from supmim_scale.build.target import open_target
from supmim_scale.config import RunConfig
from supmim_scale.data.dataset import Dataset, padded_labels
from supmim_scale.data.loader import Batch, Share, evaluation_batches, training_batches
from supmim_scale.data.mixing import mixing_group
from supmim_scale.data.quarantine import Quarantine
from supmim_scale.errors import UserError


def open_data(recipe: RunConfig, split: Literal["train", "val"] = "train") -> Dataset:
    """Open the recipe's training or held-out set, indexing it if need be. Raises `UserError`."""
    if split not in ("train", "val"):
        raise UserError("split", f"'{split}'", "train or val", "choose one")
    return open_split(recipe, split)


def batches(
    data: Dataset,
    recipe: RunConfig,
    *,
    batch: int = 64,
    views: Literal["eval", "train"] = "eval",
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """Batches of decoded, normalised views on `device`.

    `eval`: centre crops of every image once, in order. `train`: endless, in the order and with
    the crops and augmentation of a run of this recipe (mixing is done by the step).
    """
    device = torch.device(device)
    settings = view_settings(recipe, device)
    quarantine = Quarantine(skip_rule(recipe), len(data))
    if views == "eval":
        return evaluation_batches(data, settings, batch=batch, device=device, quarantine=quarantine)
    if views != "train":
        raise UserError("views", f"'{views}'", "eval or train", "choose one")
    return training_batches(
        data,
        sample_order(recipe, data),
        settings,
        Share(batch),
        seed=recipe.seed,
        device=device,
        group=mixing_group(recipe.augment),
        quarantine=quarantine,
        known_bad=known_bad(recipe, data),
    )


def step_inputs(
    recipe: RunConfig, batch: Batch, run_dir: str | Path | None = None
) -> tuple[Any, ...]:
    """Arguments of the recipe's joint model for a batch: images, class targets and, with
    `mim.weight` above 0, masks and patch targets.

    `run_dir`: a run whose codebook is used, for `mim.target=codebook`. Raises `UserError` if it
    is needed and not given.
    """
    target = None
    if recipe.mim.weight:
        if recipe.mim.target == "codebook" and run_dir is None:
            raise UserError(
                "run_dir",
                "none with mim.target=codebook",
                "the folder of a run that has one",
                "name one, or load the recipe with mim.target=pixel",
            )
        target = open_target(recipe, Path(run_dir or "."))
    spec = mask_spec(recipe, encoder_geometry(recipe).grid)
    return step_arguments(recipe, batch, target, spec)[0]


def labels(data: Dataset) -> Tensor:
    """(N, L) label ids of every image, padded with -1 where it has fewer than others."""
    found = [data.table_labels(sample) for sample in range(len(data))]
    return torch.from_numpy(padded_labels(found, data.labels_per_image).astype(np.int64))

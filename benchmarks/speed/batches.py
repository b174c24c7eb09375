"""The batches of a measured step: one that stays, or real samples read as training reads them."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from supmim_scale.build.data import open_split, sample_order, view_settings
from supmim_scale.build.model import encoder_geometry, mask_spec
from supmim_scale.config import RunConfig
from supmim_scale.data.loader import Share, training_batches
from supmim_scale.launch.world import World
from supmim_scale.models.losses import class_targets
from supmim_scale.models.masking import Masks, draw_masks

CODES = 1024


@dataclass(frozen=True)
class StepBatch:
    """What a rank's micro-batch of a step is made of."""

    images_BCHW: Tensor
    labels_B: Tensor
    targets_BK: Tensor
    masks: Masks
    codes_BN: Tensor

    def arguments(self, *, is_joint: bool) -> tuple[Any, ...]:
        """The arguments of `JointModel.forward`."""
        if not is_joint:
            return self.images_BCHW, self.targets_BK
        return self.images_BCHW, self.targets_BK, self.masks, self.codes_BN


def fixed_batch(config: RunConfig, world: World, micro: int) -> StepBatch:
    """This rank's slice, on its device, of a global batch drawn from the seed: the same for every
    world size."""
    whole, size, classes = config.optim.global_batch, config.model.image_size, config.model
    rng = torch.Generator().manual_seed(config.seed)
    spec = mask_spec(config, encoder_geometry(config).grid)
    images = torch.randn(whole, 3, size, size, generator=rng)
    labels = torch.randint(classes.num_classes, (whole, 1), generator=rng)
    codes = torch.randint(CODES, (whole, spec.num_patches), generator=rng)
    mine = slice(world.rank * micro, (world.rank + 1) * micro)
    ids = np.arange(whole)[mine]
    targets = class_targets(
        labels[mine], classes.num_classes, config.loss.kind, config.loss.label_smoothing
    )
    # Cloned: a slice would keep the whole batch alive.
    return StepBatch(
        images[mine].clone().to(world.device),
        labels[mine, 0].clone().to(world.device),
        targets.to(world.device),
        draw_masks(spec, config.seed, np.zeros_like(ids), ids).to(world.device),
        codes[mine].clone().to(world.device),
    )


class Feed:
    """Endless micro-batches of the recipe's training set; `batch` is the one in hand.

    Images, labels and masks are those of training at the same seed, without mixup and CutMix; the
    code ids to predict are given. Raises `UserError` for a set that does not fit the recipe.
    """

    batch: StepBatch

    def __init__(self, config: RunConfig, world: World, micro: int, codes_BN: Tensor) -> None:
        dataset = world.main_first(lambda: open_split(config, "train"))
        self._config, self._world, self._codes_BN = config, world, codes_BN
        self._spec = mask_spec(config, encoder_geometry(config).grid)
        self._batches = training_batches(
            dataset,
            sample_order(config, dataset),
            view_settings(config, world.device),
            Share(micro, 1, world.rank, world.world_size),
            seed=config.seed,
            device=world.device,
        )

    def fetch(self) -> float:
        """Take the next micro-batch in hand; the seconds that it was waited for."""
        asked = time.perf_counter()
        read = next(self._batches)
        waited = time.perf_counter() - asked
        config, loss = self._config, self._config.loss
        masks = draw_masks(self._spec, config.seed, read.epochs_B, read.ids_B)
        self.batch = StepBatch(
            read.images_BCHW,
            read.labels_BL[:, 0],
            class_targets(
                read.labels_BL, config.model.num_classes, loss.kind, loss.label_smoothing
            ),
            masks.to(self._world.device),
            self._codes_BN,
        )
        return waited

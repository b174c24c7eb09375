"""Mixup and CutMix on batches: neighbours 2i and 2i + 1 of a micro-batch mix with each other.

Mixup is Zhang et al. 2018 (arXiv 1710.09412), CutMix Yun et al. 2019 (arXiv 1905.04899). Every
image gets a share of its own; shares and boxes are functions of the sample, and pairs are formed
before a batch is dealt out to ranks, so that mixing does not depend on their number.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import betaincinv
from torch import Tensor

from supmim_scale import randomness
from supmim_scale.config.experiment import AugmentConfig
from supmim_scale.hardware.transfer import upload


def mixes(augment: AugmentConfig) -> bool:
    """Whether images are mixed at all."""
    return bool(augment.mixup_alpha or augment.cutmix_alpha)


def mixing_group(augment: AugmentConfig) -> int:
    """Samples that must stay side by side."""
    return 2 if mixes(augment) else 1


@dataclass(frozen=True)
class Mix:
    """`own_B`: share an image keeps. `boxes_B4`: (top, left, height, width) of what its partner
    covers; empty where the two are blended instead."""

    own_B: Tensor
    boxes_B4: Tensor

    def images(self, images_BCHW: Tensor) -> Tensor:
        """The mixed images."""
        height, width = images_BCHW.shape[-2:]
        top, left, tall, wide = self.boxes_B4[:, :, None].unbind(dim=1)
        rows_BH = torch.arange(height, device=images_BCHW.device)
        cols_BW = torch.arange(width, device=images_BCHW.device)
        rows_BH = (rows_BH >= top) & (rows_BH < top + tall)
        cols_BW = (cols_BW >= left) & (cols_BW < left + wide)
        covered_BHW = rows_BH[:, :, None] & cols_BW[:, None, :]
        is_cut_B11 = (self.boxes_B4[:, 2] > 0)[:, None, None]
        own_BHW = torch.where(is_cut_B11, (~covered_BHW).float(), self.own_B[:, None, None])
        return torch.lerp(_partners(images_BCHW), images_BCHW, own_BHW[:, None])

    def targets(self, targets_BK: Tensor) -> Tensor:
        """The class targets in the same shares."""
        return torch.lerp(_partners(targets_BK), targets_BK, self.own_B[:, None])


def draw_mix(
    augment: AugmentConfig,
    size: int,
    seed: int,
    epochs_B: NDArray[np.int64],
    ids_B: NDArray[np.int64],
    device: torch.device,
) -> Mix:
    """How the images of a micro-batch, `size` pixels square, are mixed."""
    u_B4 = randomness.uniform(randomness.MIX, seed, epochs_B, ids_B, 4)
    cuts_B = u_B4[:, 0] < (augment.cutmix_share if augment.mixup_alpha else 1.0)
    cuts_B &= augment.cutmix_alpha > 0
    alpha_B = np.where(cuts_B, augment.cutmix_alpha, augment.mixup_alpha)
    own_B = betaincinv(alpha_B, alpha_B, u_B4[:, 1])  # the Beta distribution's quantile
    # The box has its centre anywhere and is cut off at the edges; its true area is the share.
    half_B = np.rint(size * np.sqrt(1 - own_B) / 2)
    centres_B2 = np.floor(u_B4[:, 2:] * size)
    low_B2 = (centres_B2 - half_B[:, None]).clip(0, size)
    high_B2 = (centres_B2 + half_B[:, None]).clip(0, size)
    boxes_B4 = np.concatenate([low_B2, high_B2 - low_B2], axis=1) * cuts_B[:, None]
    area_B = boxes_B4[:, 2] * boxes_B4[:, 3]
    own_B = np.where(cuts_B, 1 - area_B / size**2, own_B)
    return Mix(
        upload(torch.from_numpy(own_B).float(), device),
        upload(torch.from_numpy(boxes_B4).long(), device),
    )


def _partners(values: Tensor) -> Tensor:
    """Every even element in its odd neighbour's place, and the other way round."""
    return values.view(-1, 2, *values.shape[1:]).flip(1).reshape(values.shape)

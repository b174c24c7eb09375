"""Which patches are hidden: drawn from (seed, epoch, sample id), the same on any rank."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from torch import Tensor

from supmim_scale import randomness
from supmim_scale.config.experiment import MaskConfig
from supmim_scale.hardware.transfer import upload

_MAGE_STD = 0.25  # Li et al. 2023 (arXiv 2211.09117), section 3.1


@dataclass(frozen=True)
class MaskSpec:
    """How the recipe's `mask` section is drawn on a `grid` x `grid` field of patches.

    `ratio_max` set: each sample draws its own ratio between `ratio` and `ratio_max`, uniformly
    or from a truncated Gaussian around `ratio_mode`; only the share `ratio` can then be dropped
    from the encoder, so that batches keep one shape (MAGE does the same).
    """

    grid: int
    mask: MaskConfig = MaskConfig()

    @property
    def num_patches(self) -> int:
        """N."""
        return self.grid**2

    @property
    def num_dropped(self) -> int:
        """Masked patches every sample has, at least 1; these may be dropped."""
        return min(self.num_patches - 1, max(1, round(self.mask.ratio * self.num_patches)))

    @property
    def num_visible(self) -> int:
        """V: patches a dropping encoder pass reads."""
        return self.num_patches - self.num_dropped

    @property
    def num_predicted(self) -> int:
        """M: patches the decoder predicts, the most that any sample masks."""
        top = self.mask.ratio if self.mask.ratio_max is None else self.mask.ratio_max
        return max(self.num_dropped, min(self.num_patches, round(top * self.num_patches)))


@dataclass(frozen=True)
class Masks:
    """Masks of a micro-batch.

    `mask_BN`: True where hidden. `keep_BV`: patches fed to a dropping pass, ascending.
    `masked_BM`: patches to predict. `weight_BM`: their weights in the loss; a row sums to 1 and
    is 0 where a sample with a drawn ratio masks fewer than M.
    """

    mask_BN: Tensor
    keep_BV: Tensor
    masked_BM: Tensor
    weight_BM: Tensor

    def to(self, device: torch.device) -> "Masks":
        """The same masks on another device."""
        parts = (self.mask_BN, self.keep_BV, self.masked_BM, self.weight_BM)
        return Masks(*(upload(part, device) for part in parts))


def draw_masks(
    spec: MaskSpec, seed: int, epochs_B: NDArray[np.int64], ids_B: NDArray[np.int64]
) -> Masks:
    """Masks for the samples `ids_B` in their epochs."""
    u_BC = randomness.uniform(randomness.MASK, seed, epochs_B, ids_B, spec.num_patches + 1)
    count_B = _masked_counts(spec, u_BC[:, -1])
    order_BN = np.argsort(u_BC[:, :-1], axis=1)  # a patch's place in it decides its fate
    if spec.mask.kind == "block":
        for row, (epoch, sample) in enumerate(zip(epochs_B, ids_B, strict=True)):
            key = (seed, int(epoch), int(sample), spec.num_patches + 1)
            rng = randomness.generator(randomness.MASK, *key)
            order_BN[row] = _blocks_first(spec.grid, int(count_B[row]), order_BN[row], rng)
    place_BN = np.argsort(order_BN, axis=1)
    masked_BM = order_BN[:, : spec.num_predicted]
    is_masked_BM = np.arange(spec.num_predicted)[None, :] < count_B[:, None]
    return Masks(
        mask_BN=torch.from_numpy(place_BN < count_B[:, None]),
        keep_BV=torch.from_numpy(np.sort(order_BN[:, spec.num_dropped :], axis=1)),
        masked_BM=torch.from_numpy(np.ascontiguousarray(masked_BM)),
        weight_BM=torch.from_numpy((is_masked_BM / count_B[:, None]).astype(np.float32)),
    )


def _masked_counts(spec: MaskSpec, u_B: NDArray[np.float64]) -> NDArray[np.int64]:
    mask, low, high = spec.mask, spec.mask.ratio, spec.mask.ratio_max
    if high is None:
        return np.full(len(u_B), spec.num_dropped)
    if mask.ratio_mode is None:
        ratio_B = low + u_B * (high - low)
    else:
        # The truncated normal's quantile; scipy.stats would take half a second to import.
        mode = mask.ratio_mode
        below, above = (ndtr((x - mode) / _MAGE_STD) for x in (low, high))
        ratio_B = mode + _MAGE_STD * ndtri(below + u_B * (above - below))
    counts_B = np.rint(ratio_B * spec.num_patches).astype(np.int64)
    return np.clip(counts_B, spec.num_dropped, spec.num_predicted)


def _blocks_first(
    grid: int, count: int, order_N: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """`order_N` with `count` patches covered by random rectangles moved to the front.

    Rectangles as in BEiT (Bao et al. 2022, algorithm 1): at least 16 patches where that many are
    still wanted, aspect ratio 0.3 to 1/0.3. The last rectangle is thinned at random so that the
    count is met exactly.
    """
    hidden = np.zeros((grid, grid), dtype=bool)
    while (left := count - int(hidden.sum())) > 0:
        area = rng.uniform(min(16, left), max(16, left) + 1)
        aspect = np.exp(rng.uniform(np.log(0.3), np.log(1 / 0.3)))
        height = int(np.clip(round(np.sqrt(area * aspect)), 1, grid))
        width = int(np.clip(round(np.sqrt(area / aspect)), 1, grid))
        top, side = rng.integers(grid - height + 1), rng.integers(grid - width + 1)
        new = np.zeros_like(hidden)
        new[top : top + height, side : side + width] = True
        new &= ~hidden
        surplus = int(new.sum()) - left
        if surplus > 0:
            new.flat[rng.choice(np.flatnonzero(new), surplus, replace=False)] = False
        hidden |= new
    return np.concatenate([order_N[hidden.flat[order_N]], order_N[~hidden.flat[order_N]]])

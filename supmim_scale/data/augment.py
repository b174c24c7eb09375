"""What is done to a view's pixels, drawn outside the pipeline as a function of the sample alone.

`rand_augment` is Cubuk et al. 2020 (arXiv 1909.13719), `trivial_augment` the wide space of
Müller & Hutter 2021 (arXiv 2103.10158), `three_augment` Touvron et al. 2022 (arXiv 2204.07118):
one of greyscale, solarise and Gaussian blur. Random erasing is Zhong et al. 2017
(arXiv 1708.04896).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from supmim_scale import randomness
from supmim_scale.config.experiment import AugmentConfig

MAGNITUDES = 31  # steps of an operation's range, as in torchvision
_BLUR = (0.1, 2.0)  # sigma in pixels, Touvron et al. 2022
_ERASED = (0.02, 1 / 3)  # share of the image, Zhong et al. 2017
_ASPECT = (0.3, 1 / 0.3)
_ERASE_TRIES = 10


def drawn_names(augment: AugmentConfig) -> tuple[str, ...]:
    """The pipeline's inputs that an augmentation needs, in order."""
    policy: dict[str, tuple[str, ...]] = {"none": (), "three_augment": ("ops", "sigmas")}
    operations = policy.get(augment.kind, ("ops", "magnitudes", "signs"))
    jitter = ("jitters",) if augment.color_jitter else ()
    erase = ("erase_anchors", "erase_shapes") if augment.erase_prob else ()
    return operations + jitter + erase


def num_levels(augment: AugmentConfig) -> int:
    """Operations of the policy that a view gets one after the other."""
    return {"none": 0, "rand_augment": augment.num_ops}.get(augment.kind, 1)


def draw_augmentations(
    augment: AugmentConfig, num_choices: int, size: int, seed: int, epochs_B: Any, ids_B: Any
) -> dict[str, NDArray[Any]]:
    """Arrays by input name, a row a sample. `num_choices`: operations of the policy; `size`: side
    of the view in pixels."""
    found: dict[str, NDArray[Any]] = {}

    def uniform(stream: int, count: int) -> NDArray[np.float64]:
        return randomness.uniform(stream, seed, epochs_B, ids_B, count)

    if augment.kind != "none":
        levels = num_levels(augment)
        u_B3L = uniform(randomness.POLICY, 3 * levels).reshape(-1, 3, levels)
        found["ops"] = (u_B3L[:, 0] * num_choices).astype(np.int32)
        found["magnitudes"] = _magnitudes(augment, u_B3L[:, 1])
        found["signs"] = (u_B3L[:, 2] < 0.5).astype(np.int32)
    if augment.kind == "three_augment":
        u_B = uniform(randomness.BLUR, 1)[:, 0]
        found["sigmas"] = (_BLUR[0] + u_B * (_BLUR[1] - _BLUR[0])).astype(np.float32)
    if augment.color_jitter:
        u_B3 = uniform(randomness.JITTER, 3)
        found["jitters"] = (1 + augment.color_jitter * (2 * u_B3 - 1)).astype(np.float32)
    if augment.erase_prob:
        u_BC = uniform(randomness.ERASE, 1 + 4 * _ERASE_TRIES)
        boxes_B4 = np.array([_erased_box(u_C, augment.erase_prob, size) for u_C in u_BC])
        found["erase_anchors"] = boxes_B4[:, :2].astype(np.float32)
        found["erase_shapes"] = boxes_B4[:, 2:].astype(np.float32)
    return {name: found[name] for name in drawn_names(augment)}


def _magnitudes(augment: AugmentConfig, u_BL: NDArray[np.float64]) -> NDArray[np.int32]:
    """Steps from 0 to `MAGNITUDES` - 1."""
    if augment.kind == "trivial_augment":
        return (u_BL * MAGNITUDES).astype(np.int32)
    shares = augment.magnitude + augment.magnitude_std * ndtri(u_BL.clip(1e-12, 1 - 1e-12))
    steps: NDArray[np.int32] = np.rint(shares.clip(0, 1) * (MAGNITUDES - 1)).astype(np.int32)
    return steps


def _erased_box(u_C: NDArray[np.float64], prob: float, size: int) -> tuple[int, int, int, int]:
    """(top, left, height, width); an empty box where nothing is erased."""
    if u_C[0] < prob:
        for a, b, c, d in u_C[1:].reshape(_ERASE_TRIES, 4):
            area = size * size * (_ERASED[0] + a * (_ERASED[1] - _ERASED[0]))
            aspect = np.exp(np.log(_ASPECT[0]) + b * (np.log(_ASPECT[1]) - np.log(_ASPECT[0])))
            h, w = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
            if 0 < h < size and 0 < w < size:
                return int(c * (size - h + 1)), int(d * (size - w + 1)), h, w
    return 0, 0, 0, 0

"""Which part of an image a view shows: crop windows as pure functions of the sample."""

import numpy as np
from numpy.typing import NDArray

_RATIO = (3 / 4, 4 / 3)  # aspect ratios of torchvision's RandomResizedCrop
_TRIES = 10
DRAWS_PER_CROP = 4 * _TRIES


def random_window(
    height: int, width: int, scale: tuple[float, float], u: NDArray[np.float64]
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random-resized crop, from `DRAWS_PER_CROP` uniforms.

    torchvision's rule: area and log aspect ratio uniform, up to ten tries, then the largest
    centred window of an allowed ratio.
    """
    for a, b, c, d in u.reshape(_TRIES, 4):
        area = height * width * (scale[0] + a * (scale[1] - scale[0]))
        aspect = np.exp(np.log(_RATIO[0]) + b * (np.log(_RATIO[1]) - np.log(_RATIO[0])))
        w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(c * (height - h + 1)), int(d * (width - w + 1)), h, w
    h = min(height, round(width / _RATIO[0]))
    w = min(width, round(height * _RATIO[1]))
    return (height - h) // 2, (width - w) // 2, h, w


def centre_window(height: int, width: int, share: float) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the centred square that is `share` of the shorter side."""
    side = max(1, round(min(height, width) * share))
    return (height - side) // 2, (width - side) // 2, side, side

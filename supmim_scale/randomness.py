"""Randomness as a pure function of (seed, epoch, sample id): no state, no order, no world size.

Every random number of a training view (order, crop, flip, augmentation, mixing, mask) comes from
here, so a sample gets the same view on any rank, in any batch, and after any resume.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

# One stream per purpose, so that a crop and a mask of the same sample are independent.
CROP, FLIP, MASK, ORDER, FORWARD, REPLACE, POLICY, BLUR, JITTER, ERASE, MIX = range(11)

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014), element-wise modulo 2**64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def bits(stream: int, seed: int, *words: Any) -> NDArray[np.uint64]:
    """64 random bits for every element of the broadcast `words` (integers or integer arrays)."""
    with np.errstate(over="ignore"):
        state = _mix(np.asarray([seed, stream], dtype=np.uint64) + _GOLDEN)
        key = _mix(state[:1] + _GOLDEN * state[1:])
        for word in words:
            key = _mix((key ^ np.asarray(word).astype(np.uint64)) + _GOLDEN)
    return key


def uniform(
    stream: int, seed: int, epochs_B: NDArray[Any], ids_B: NDArray[Any], count: int
) -> NDArray[np.float64]:
    """`(B, count)` uniform numbers in [0, 1), row b a function of (seed, epoch b, id b) only."""
    key_BC = bits(stream, seed, epochs_B[:, None], ids_B[:, None], np.arange(count)[None, :])
    return (key_BC >> np.uint64(11)).astype(np.float64) * 2.0**-53


def generator(stream: int, seed: int, *words: int) -> np.random.Generator:
    """A numpy generator for draws of unknown length, keyed like `bits`."""
    return np.random.default_rng(int(bits(stream, seed, *words).item()))


def torch_seed(seed: int, *words: int) -> int:
    """A seed for torch's global generator before a forward pass (drop path)."""
    return int(bits(FORWARD, seed, *words).item() >> np.uint64(1))

"""The order of samples over a whole run, as a pure function of the position.

A run is one endless sequence of positions: position p lies in epoch p // N. Within an epoch the
shards are permuted and cut into windows, and samples are permuted within a window: shuffling
that deserves the name, while only a window's shards are read from at a time. Every sample comes
exactly once an epoch, batches cross the epoch's end without padding, and neither the number of
ranks nor a resume changes the sequence.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from supmim_scale import draws


class SampleOrder:
    """Sample ids by position for shards of the given sizes; ids count through the shards."""

    def __init__(self, sizes: NDArray[np.int64], seed: int, window: int) -> None:
        self._sizes = np.asarray(sizes, dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)])
        self._seed, self._window = seed, window
        self._epoch_windows = lru_cache(maxsize=2)(self._make_epoch_windows)
        self._window_ids = lru_cache(maxsize=2)(self._make_window_ids)

    @property
    def num_samples(self) -> int:
        """Samples of an epoch."""
        return int(self._starts[-1])

    def at(self, start: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(epochs, ids) of positions `start` to `start + count`."""
        epochs, ids = [], []
        while count > 0:
            epoch, place = divmod(start, self.num_samples)
            ends = self._epoch_windows(epoch)[1]
            window = int(np.searchsorted(ends, place, side="right"))
            begin = int(ends[window - 1]) if window else 0
            found = self._window_ids(epoch, window)[place - begin : place - begin + count]
            ids.append(found)
            epochs.append(np.full(len(found), epoch, dtype=np.int64))
            start, count = start + len(found), count - len(found)
        return np.concatenate(epochs), np.concatenate(ids)

    def _make_epoch_windows(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(shard permutation, end position of each window) of an epoch."""
        shards = draws.generator(draws.ORDER, self._seed, epoch).permutation(len(self._sizes))
        ends = np.cumsum(self._sizes[shards])
        last_of_window = np.arange(self._window, len(shards) + self._window, self._window) - 1
        return shards, ends[np.minimum(last_of_window, len(shards) - 1)]

    def _make_window_ids(self, epoch: int, window: int) -> NDArray[np.int64]:
        shards = self._epoch_windows(epoch)[0][window * self._window : (window + 1) * self._window]
        ids = np.concatenate([np.arange(self._starts[s], self._starts[s + 1]) for s in shards])
        rng = draws.generator(draws.ORDER, self._seed, epoch, window + 1)
        return rng.permutation(ids)

"""The order of samples over a whole run, as a pure function of the position.

A run is one endless sequence of positions: position p lies in epoch p // N. An epoch is the
shards in a permuted order, laid end to end and cut into lanes of equal length; positions go round
the lanes, and within a shard its samples are permuted. So a batch is drawn from as many shards as
there are lanes, while only one shard a lane is read from at a time. Every sample comes exactly
once an epoch, batches cross the epoch's end without padding, and neither the number of ranks nor
a resume changes the sequence.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from supmim_scale import randomness

Ids = NDArray[np.int64]


class SampleOrder:
    """Sample ids by position for shards of the given sizes; ids count through the shards.

    `lanes`: shards read side by side, at most all of them.
    """

    def __init__(self, sizes: Ids, seed: int, lanes: int) -> None:
        self._sizes = np.asarray(sizes, dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)])
        self._seed = seed
        self.lanes = min(lanes, len(self._sizes))
        self._epoch_shards = lru_cache(maxsize=2)(self._make_epoch_shards)
        self._shard_order = lru_cache(maxsize=4 * self.lanes)(self._make_shard_order)

    @property
    def num_samples(self) -> int:
        """Samples of an epoch."""
        return int(self._starts[-1])

    def at(self, start: int, count: int) -> tuple[Ids, Ids]:
        """(epochs, ids) of positions `start` to `start + count`."""
        return self._resolve(np.arange(start, start + count))

    def share(
        self, start: int, count: int, part: int, parts: int, split: int = 1, group: int = 1
    ) -> list[tuple[Ids, Ids]]:
        """A rank's micro-batches, `split` of them, of a global batch of `count` positions.

        `group` neighbouring positions (which lie in neighbouring lanes) stay side by side.

        The batch is sorted by lane before it is dealt out, so that a rank keeps to the same lanes
        from step to step: to whole shards where there are no fewer lanes than ranks. (Where an
        epoch ends, lanes begin anew, and a few samples go to a neighbour.)
        """
        groups = np.arange(start, start + count).reshape(-1, group)
        by_lane = np.argsort(groups[:, 0] % self.num_samples % self.lanes, kind="stable")
        mine = groups[by_lane].reshape(parts, split, -1)[part]
        return [self._resolve(micro) for micro in mine]

    def _resolve(self, positions: Ids) -> tuple[Ids, Ids]:
        epochs, places = np.divmod(positions, self.num_samples)
        ids = np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = np.flatnonzero(epochs == epoch)
            ids[here] = self._ids_of(int(epoch), places[here])
        return epochs, ids

    def _ids_of(self, epoch: int, places: Ids) -> Ids:
        rounds, lane = np.divmod(places, self.lanes)
        length, longer = divmod(self.num_samples, self.lanes)
        along = lane * length + np.minimum(lane, longer) + rounds
        shards, ends = self._epoch_shards(epoch)
        turn = np.searchsorted(ends, along, side="right")
        ids = np.empty_like(places)
        for number in np.unique(turn):
            here = np.flatnonzero(turn == number)
            shard = int(shards[number])
            inside = along[here] - (ends[number] - self._sizes[shard])
            ids[here] = self._starts[shard] + self._shard_order(epoch, shard)[inside]
        return ids

    def _make_epoch_shards(self, epoch: int) -> tuple[Ids, Ids]:
        """(shard permutation, end place of each) of an epoch."""
        rng = randomness.generator(randomness.ORDER, self._seed, epoch)
        shards = rng.permutation(len(self._sizes))
        return shards, np.cumsum(self._sizes[shards])

    def _make_shard_order(self, epoch: int, shard: int) -> Ids:
        rng = randomness.generator(randomness.ORDER, self._seed, epoch, shard + 1)
        return rng.permutation(self._sizes[shard])

"""A set of indexed shards: sample ids to bytes and labels."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from supmim_scale.data.shards import ShardIndex, find_shards, load_index
from supmim_scale.errors import RankError, UserError

_OPEN_FILES = 128
_INDEX_THREADS = 8  # reading tar headers waits for the disk


class Dataset:
    """Samples of all shards in one numbering: shard order, then order within the shard."""

    def __init__(self, indexes: Sequence[ShardIndex]) -> None:
        self._indexes = list(indexes)
        self.sizes = np.array([len(index) for index in indexes], dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)])
        self._open = lru_cache(maxsize=_OPEN_FILES)(_OpenFile)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def num_shards(self) -> int:
        """Shards read."""
        return len(self._indexes)

    @property
    def largest_label(self) -> int:
        """The highest label id, -1 without labels."""
        return max((int(i.labels.max()) for i in self._indexes if len(i)), default=-1)

    @property
    def labels_per_image(self) -> int:
        """The most labels of one image."""
        return max((i.labels.shape[1] for i in self._indexes), default=1)

    def read(self, sample: int) -> NDArray[np.uint8]:
        """The encoded image of a sample."""
        index, row = self._locate(sample)
        size = int(index.size[row])
        data = os.pread(self._open(index.path).fd, size, int(index.offset[row]))
        if len(data) != size:
            raise RankError(
                self.name_of(sample),
                f"{len(data)} of {size} bytes",
                "the shard as it was indexed",
                "restore the shard",
            )
        return np.frombuffer(data, dtype=np.uint8)

    def name_of(self, sample: int) -> str:
        """Where a sample lies, for messages."""
        index, row = self._locate(sample)
        return f"{index.path}, sample {row}"

    def labels(self, samples_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """(B, L) label ids padded with -1."""
        out_BL = np.full((len(samples_B), self.labels_per_image), -1, dtype=np.int64)
        for place, sample in enumerate(samples_B):
            index, row = self._locate(int(sample))
            out_BL[place, : index.labels.shape[1]] = index.labels[row]
        return out_BL

    def _locate(self, sample: int) -> tuple[ShardIndex, int]:
        shard = int(np.searchsorted(self._starts, sample, side="right")) - 1
        return self._indexes[shard], sample - int(self._starts[shard])


def open_dataset(
    root: Path,
    pattern: str,
    where: str,
    index_dir: Path | None,
    num_classes: int,
    *,
    single_label: bool,
) -> Dataset:
    """The indexed shards of a folder or glob. Raises `UserError` where they do not fit the head.

    Missing indexes are made; run by one process of a node before the others.
    """
    shards = find_shards(root, pattern, where)
    with ThreadPoolExecutor(_INDEX_THREADS) as pool:
        indexes = pool.map(lambda shard: load_index(shard, index_dir), shards)
        shown = tqdm(indexes, "index", len(shards), unit="shard", disable=None, leave=False)
        dataset = Dataset(list(shown))
    if not len(dataset):
        raise UserError(where, f"{len(shards)} shards without a sample", "samples", "pack again")
    if dataset.largest_label >= num_classes:
        raise UserError(
            "model.num_classes",
            f"{num_classes}, but {root / pattern} has label {dataset.largest_label}",
            "more classes than the largest label",
            f"set model.num_classes={dataset.largest_label + 1}",
        )
    if single_label and dataset.labels_per_image > 1:
        raise UserError(
            "loss.kind",
            f"softmax, but {root / pattern} has up to {dataset.labels_per_image} labels an image",
            "sigmoid for several labels an image",
            "set loss.kind=sigmoid",
        )
    return dataset


class _OpenFile:
    """A descriptor that closes with its cache entry."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        os.close(self.fd)

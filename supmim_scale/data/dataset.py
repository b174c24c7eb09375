"""A set of indexed sources: sample ids to bytes and labels."""

import hashlib
import os
import resource
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from supmim_scale.data.headers import BadImageError
from supmim_scale.data.index import IndexPlace, find_gone, load_indexes
from supmim_scale.data.index_table import WHOLE_FILE, Defect, Table, TableFacts
from supmim_scale.data.readers import SampleLayout, reader_named
from supmim_scale.data.readers.base import EMPTY
from supmim_scale.errors import UserError

_MOST_OPEN = 8192  # files, and as many mapped tables, kept open where the system lets us
_SPAN = 65_536  # samples of a listing that are ordered like a shard


@dataclass(frozen=True)
class Shard:
    """A run of samples that is read as one: a whole shard file, or a span of a listing."""

    facts: TableFacts
    first_row: int
    num_samples: int


class Dataset:
    """Samples of all shards in one numbering: shard order, then order within the shard."""

    def __init__(self, tables: Sequence[TableFacts], num_classes: int | None = None) -> None:
        self.tables = tuple(tables)
        self.shards = [shard for facts in tables for shard in _spans(facts)]
        self.sizes = np.array([shard.num_samples for shard in self.shards], dtype=np.int64)
        self.defects = [defect for facts in tables for defect in facts.defects]
        self._num_classes = num_classes
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)])
        keep = _num_kept_open()
        self._table = lru_cache(maxsize=keep)(_open_table)
        self._file = lru_cache(maxsize=keep)(_OpenFile)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __repr__(self) -> str:
        """For people."""
        bad = f", {len(self.defects)} left out" if self.defects else ""
        return (
            f"<{len(self)} images in {len(self.tables)} files, labels up to "
            f"{self.largest_label}{bad}>"
        )

    @cached_property
    def gone(self) -> list[TableFacts]:
        """Sources that are no longer there."""
        return [facts for facts in self.tables if not facts.source.exists()]

    @cached_property
    def largest_label(self) -> int:
        """The highest label id, -1 without labels."""
        return max((facts.largest_label for facts in self.tables), default=-1)

    @cached_property
    def labels_per_image(self) -> int:
        """The most labels of one image."""
        return max((facts.labels_per_image for facts in self.tables), default=0)

    @cached_property
    def digest(self) -> str:
        """Names the samples and their numbering: what every source holds."""
        text = "\n".join(f"{facts.name} {facts.content}" for facts in self.tables)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def read(self, sample: int) -> NDArray[np.uint8]:
        """The encoded image of a sample. Raises `BadImageError` where it cannot be had."""
        try:
            facts, table, row = self._locate(sample)
            size, offset = int(table.size[row]), int(table.offset[row])
            if size == WHOLE_FILE:
                data = (facts.source.parent / table.key(row)).read_bytes()
            else:
                file = self._file(facts.source)  # held: another thread may turn it out
                data = os.pread(file.fd, size, offset)
        except OSError as error:
            raise BadImageError(f"not readable: {error.strerror}") from None
        if not data:
            raise BadImageError(EMPTY)
        if size not in (WHOLE_FILE, len(data)):
            raise BadImageError(f"{len(data)} of {size} bytes: the shard is shorter than its index")
        return np.frombuffer(data, dtype=np.uint8)

    def table_labels(self, sample: int) -> NDArray[np.int32]:
        """Label ids of a sample, whatever they are."""
        _, table, row = self._locate(sample)
        return table.labels(row)

    def labels_of(self, sample: int) -> NDArray[np.int32]:
        """Label ids of a sample. Raises `BadImageError` for one that the head has no output for."""
        labels = self.table_labels(sample)
        if self._num_classes is not None and len(labels) and labels.max() >= self._num_classes:
            raise BadImageError(f"label {labels.max()} of {self._num_classes} classes")
        return labels

    def defect(self, sample: int, reason: str) -> Defect:
        """What is wrong with a sample, with its place."""
        facts, row = self._place(sample)
        try:
            key = self._table(facts).key(row)
        except (OSError, BadImageError):  # the index itself is gone or another
            key = f"row {row}"
        return Defect(facts.name, key, reason, row=row)

    def ids_of(self, defects: Iterable[Defect]) -> set[int]:
        """Sample ids of a list of defects. Raises `UserError` for one of another set."""
        starts: dict[str, tuple[int, TableFacts]] = {}
        first = 0
        for facts in self.tables:
            starts[facts.name] = (first, facts)
            first += facts.num_samples
        found = set()
        for defect in defects:
            if defect.row is None:
                continue  # it did not become a sample
            start, facts = starts.get(defect.source, (0, self.tables[0]))
            if (
                defect.source not in starts
                or defect.row >= facts.num_samples
                or self._table(facts).key(defect.row) != defect.key
            ):
                raise UserError(
                    "input.quarantine",
                    str(defect),
                    "a sample of this set",
                    "write the list again: supmim-scale data verify",
                )
            found.add(start + defect.row)
        return found

    def _locate(self, sample: int) -> tuple[TableFacts, Table, int]:
        facts, row = self._place(sample)
        return facts, self._table(facts), row

    def _place(self, sample: int) -> tuple[TableFacts, int]:
        """The source of a sample and its row there."""
        number = int(np.searchsorted(self._starts, sample, side="right")) - 1
        shard = self.shards[number]
        row = shard.first_row + sample - int(self._starts[number])
        return shard.facts, row


def padded_labels(labels: Sequence[NDArray[np.int32]], width: int) -> NDArray[np.int64]:
    """(B, `width`) label ids padded with -1."""
    out_BL = np.full((len(labels), max(1, width)), -1, dtype=np.int64)
    for place, ids in enumerate(labels):
        out_BL[place, : len(ids)] = ids
    return out_BL


def open_dataset(
    root: Path,
    pattern: str,
    layout: SampleLayout,
    *,
    where: str = "data.train",
    index_dir: Path | None = None,
    num_classes: int | None = None,
    workers: int = 1,
) -> Dataset:
    """The indexed sources of a split. Raises `UserError` where there is no sample.

    Missing indexes are made; run by one process of a node before the others. A source that is
    gone but whose index is there keeps its samples' places, so that the others keep theirs.
    """
    sources, target = reader_named(layout.reader).find(root, pattern, where), root / pattern
    place = IndexPlace(root, layout, index_dir)
    tables = load_indexes(sources, place, workers)
    if sources != [target]:
        tables += find_gone(sources, "*" if target.is_dir() else target.name, place)
        tables.sort(key=lambda facts: facts.source)
    dataset = Dataset(tables, num_classes)
    if not len(dataset):
        first = f", the first: {dataset.defects[0]}" if dataset.defects else ""
        raise UserError(
            where, f"{len(sources)} sources without a sample{first}", "samples", "check the set"
        )
    return dataset


def _spans(facts: TableFacts) -> list[Shard]:
    """A shard file as it is; a listing, whose files lie anywhere, in spans."""
    if not facts.is_listing:
        return [Shard(facts, 0, facts.num_samples)] if facts.num_samples else []
    starts = range(0, facts.num_samples, _SPAN)
    return [Shard(facts, start, min(_SPAN, facts.num_samples - start)) for start in starts]


def _open_table(facts: TableFacts) -> Table:
    """The table as it was when the set was opened. Raises `BadImageError` for another one."""
    try:
        table = Table(facts.index)
    except pa.ArrowInvalid:
        raise BadImageError(f"index {facts.index} is damaged") from None
    if len(table) != facts.num_samples:
        raise BadImageError(f"index {facts.index} was made anew while in use")
    return table


def _num_kept_open() -> int:
    """Half of the files that this process may open, for sources, and as many for tables."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * _MOST_OPEN
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(64, min(_MOST_OPEN, soft // 4))


class _OpenFile:
    """A descriptor that closes with its cache entry."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)

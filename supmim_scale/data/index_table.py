"""The index of a source of samples: an Arrow file of keys, byte ranges and labels, memory-mapped.

One row a sample. A table stays on disk and is mapped where it is read, so that a billion rows
cost a process no more than the pages it touches.
"""

import hashlib
import json
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from supmim_scale.files.whole import whole_file

WHOLE_FILE = -1  # size of a sample that is a file of its own
_FACTS = b"supmim_scale"
_SCHEMA = pa.schema(
    [
        ("key", pa.large_string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("labels", pa.list_(pa.int32())),
    ]
)


@dataclass(frozen=True)
class Defect:
    """Something wrong with one sample or one source, in words a user can act on.

    `row` is the sample's row in its source's table, None where it did not become one.
    """

    source: str
    key: str
    reason: str
    detail: str = ""
    row: int | None = None

    def __str__(self) -> str:
        place = f"{self.source}: {self.key}" if self.key else self.source
        return f"{place}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


@dataclass
class Rows:
    """Samples of a source being scanned, column by column, and what was wrong with others."""

    source: str
    keys: list[str] = field(default_factory=list)
    offsets: "array[int]" = field(default_factory=lambda: array("q"))
    sizes: "array[int]" = field(default_factory=lambda: array("q"))
    labels: list[list[int]] = field(default_factory=list)
    defects: list[Defect] = field(default_factory=list)

    def add(self, key: str, offset: int, size: int, labels: list[int]) -> None:
        """A sample: its labels are ids, none for an unlabelled one."""
        self.keys.append(key)
        self.offsets.append(offset)
        self.sizes.append(size)
        self.labels.append(labels)

    def reject(self, key: str, reason: str, detail: str = "") -> None:
        """A sample that cannot be used, or with an empty key the source's own fault."""
        self.defects.append(Defect(self.source, key, reason, detail))

    def as_arrow(self) -> pa.Table:
        """The samples as an Arrow table."""
        columns = [
            self.keys,
            np.frombuffer(self.offsets, dtype=np.int64) if self.keys else [],
            np.frombuffer(self.sizes, dtype=np.int64) if self.keys else [],
            self.labels,
        ]
        types = [field.type for field in _SCHEMA]
        arrays = [pa.array(c, type=t) for c, t in zip(columns, types, strict=True)]
        return pa.table(arrays, schema=_SCHEMA)


@dataclass(frozen=True)
class TableFacts:
    """What is known of a source without reading its rows.

    `name` is its path under the root; `content` hashes keys, places and labels of its samples.
    """

    source: Path
    name: str
    index: Path
    content: str
    num_samples: int
    num_bytes: int
    largest_label: int
    labels_per_image: int
    defects: tuple[Defect, ...]

    @property
    def is_listing(self) -> bool:
        """Whether its samples are files of their own."""
        return self.num_samples > 0 and self.num_bytes == 0


def write_table(
    path: Path, samples: pa.Table, defects: Iterable[Defect], stamp: Mapping[str, str]
) -> None:
    """Write an index; it appears under its name only when it is whole."""
    samples = samples.combine_chunks()
    labels = samples["labels"].combine_chunks()
    flat = labels.flatten().to_numpy()
    facts = {
        "stamp": dict(stamp),
        "content": _content(samples),
        "num_samples": samples.num_rows,
        "num_bytes": int(np.maximum(samples["size"].to_numpy(), 0).sum()),
        "largest_label": int(flat.max()) if len(flat) else -1,
        "labels_per_image": int(labels.value_lengths().to_numpy().max()) if len(labels) else 0,
        "defects": [asdict(defect) for defect in defects],
    }
    schema = _SCHEMA.with_metadata({_FACTS: json.dumps(facts)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        whole_file(path) as part,
        pa.OSFile(str(part), "wb") as file,
        pa.ipc.new_file(file, schema) as writer,
    ):
        writer.write_table(samples.cast(_SCHEMA).replace_schema_metadata(None))


def _content(samples: pa.Table) -> str:
    digest = hashlib.sha256()
    for name in samples.column_names:
        for chunk in samples[name].chunks:
            for buffer in chunk.buffers():
                digest.update(buffer or b"")
    return digest.hexdigest()[:16]


def read_facts(source: Path, name: str, index: Path, stamp: Mapping[str, str]) -> TableFacts | None:
    """The facts of an index, or None where there is none of this stamp: it must be made."""
    try:
        with pa.memory_map(str(index)) as mapped:
            facts = json.loads(pa.ipc.open_file(mapped).schema.metadata[_FACTS])
        if not stamp.items() <= facts.pop("stamp").items():
            return None
        defects = tuple(Defect(**defect) for defect in facts.pop("defects"))
        return TableFacts(source=source, name=name, index=index, defects=defects, **facts)
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError):
        return None  # none, or a damaged one, which is as good as none


class Table:
    """A memory-mapped index; rows by number."""

    def __init__(self, path: Path) -> None:
        batches = pa.ipc.open_file(pa.memory_map(str(path))).read_all().combine_chunks()
        self._keys: Any = batches["key"]
        self.offset: NDArray[np.int64] = batches["offset"].to_numpy()
        self.size: NDArray[np.int64] = batches["size"].to_numpy()
        labels = batches["labels"]
        lists = labels.chunk(0) if labels.num_chunks else pa.array([], type=labels.type)
        self._starts: NDArray[np.int32] = lists.offsets.to_numpy()
        self._values: NDArray[np.int32] = lists.values.to_numpy()

    def __len__(self) -> int:
        return len(self.offset)

    def key(self, row: int) -> str:
        """The sample's name in its source."""
        return str(self._keys[row].as_py())

    def labels(self, row: int) -> NDArray[np.int32]:
        """The sample's label ids."""
        return self._values[self._starts[row] : self._starts[row + 1]]

    @property
    def labels_flat(self) -> NDArray[np.int32]:
        """All samples' label ids, one after the other."""
        return self._values[self._starts[0] : self._starts[-1]] if len(self) else self._values[:0]

    @property
    def label_counts(self) -> NDArray[np.int64]:
        """Labels of each sample."""
        return np.diff(self._starts).astype(np.int64)

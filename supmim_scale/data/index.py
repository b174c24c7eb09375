"""Indexes of a split: found, or made where they are missing or older than their source."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from supmim_scale.data.readers import Layout, reader_named
from supmim_scale.data.table import TableFacts, read_facts, write_table
from supmim_scale.errors import UserError

INDEX_SUFFIX = ".index"
_FORMAT = "2"
_WORTH_PROCESSES = 16  # files; fewer are indexed before processes have started
_LOOKERS = 8  # threads that look for indexes: they wait for the disk


def load_indexes(
    sources: list[Path], layout: Layout, index_dir: Path | None, workers: int = 1
) -> list[TableFacts]:
    """Facts of the sources' indexes, in order; missing ones are made, by `workers` processes.

    Raises `UserError` for a source that is none of its kind, or where an index cannot be written.
    """
    reader = reader_named(layout.reader)

    def look(source: Path) -> TableFacts | None:
        stamp = {"format": _FORMAT, **layout.stamp, **reader.stamp(source)}
        return read_facts(source, index_path(source, index_dir), stamp)

    with ThreadPoolExecutor(_LOOKERS) as threads:
        found = dict(zip(sources, threads.map(look, sources), strict=True))
    missing = [source for source, facts in found.items() if facts is None]
    made = _make_all(missing, partial(make_index, layout=layout, index_dir=index_dir), workers)
    found.update(zip(missing, tqdm(made, "index", len(missing), unit="file", disable=None,
                                   leave=False), strict=True))  # fmt: skip
    return [facts for facts in found.values() if facts is not None]


def find_gone(
    sources: list[Path], endings: str, layout: Layout, index_dir: Path | None
) -> list[TableFacts]:
    """Facts of sources beside the given ones that were indexed before and are no longer there;
    `endings` is the glob of their names."""
    stamp, found = {"format": _FORMAT, **layout.stamp}, []
    for folder in sorted({source.parent for source in sources}):
        indexes = index_path(folder / "any", index_dir).parent
        for index in sorted(indexes.glob(endings + INDEX_SUFFIX)):
            source = folder / index.name.removesuffix(INDEX_SUFFIX)
            facts = None if source.exists() else read_facts(source, index, stamp)
            found += [facts] if facts else []
    return found


def _make_all(
    missing: list[Path], make: "partial[TableFacts]", workers: int
) -> Iterator[TableFacts]:
    if workers < 2 or len(missing) < _WORTH_PROCESSES:
        yield from map(make, missing)
        return
    # Not forked: this process may hold DALI's and torch's threads.
    with ProcessPoolExecutor(min(workers, len(missing)), get_context("spawn")) as pool:
        yield from pool.map(make, missing)


def make_index(source: Path, layout: Layout, index_dir: Path | None) -> TableFacts:
    """Scan a source and write its index."""
    reader, path = reader_named(layout.reader), index_path(source, index_dir)
    stamp = {"format": _FORMAT, **layout.stamp, **reader.stamp(source)}
    samples, defects = reader.scan(source, layout)
    try:
        write_table(path, samples, defects, stamp)
    except OSError as error:
        raise UserError(
            f"index {path}", str(error), "a writable folder", "set input.index_dir=FOLDER"
        ) from None
    facts = read_facts(source, path, stamp)
    if facts is None:
        raise UserError(
            f"index {path}", "not readable as written", "a whole file", "check the disk"
        )
    return facts


def index_path(source: Path, index_dir: Path | None) -> Path:
    """Where a source's index lies: beside it, or under `index_dir`."""
    folder = index_dir / source.parent.name if index_dir else source.parent
    return folder / f"{source.name}{INDEX_SUFFIX}"

"""Indexes of a split: found, or made where they are missing or older than their source."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from supmim_scale.data.index_table import TableFacts, read_facts, write_table
from supmim_scale.data.readers import SampleLayout, reader_named
from supmim_scale.data.readers.base import INDEX_SUFFIX
from supmim_scale.errors import UserError
from supmim_scale.files.progress import progress

_FORMAT = "3"
_WORTH_PROCESSES = 16  # files; fewer are indexed before processes have started
_LOOKERS = 8  # threads that look for indexes: they wait for the disk


@dataclass(frozen=True)
class IndexPlace:
    """Where the indexes of a layout lie: beside each source, or in the same tree elsewhere."""

    root: Path
    layout: SampleLayout
    index_dir: Path | None = None

    def name(self, source: Path) -> str:
        """A source's path under the root."""
        return str(source.relative_to(self.root))

    def index(self, source: Path) -> Path:
        """A source's index."""
        folder = (self.index_dir or self.root) / source.relative_to(self.root).parent
        return folder / (source.name + self.ending)

    @property
    def ending(self) -> str:
        """What an index of this layout ends in."""
        return f".{self.layout.digest}{INDEX_SUFFIX}"


def load_indexes(sources: list[Path], place: IndexPlace, workers: int = 1) -> list[TableFacts]:
    """Facts of the sources' indexes, in order; missing ones are made, by `workers` processes.

    Raises `UserError` for a source that is none of its kind, or where an index cannot be written.
    """
    with ThreadPoolExecutor(_LOOKERS) as threads:
        looked = threads.map(partial(_look, place=place), sources)
        found = dict(zip(sources, looked, strict=True))
    missing = [source for source, facts in found.items() if facts is None]
    with progress("index", len(missing), "file") as bar:
        for source, facts in zip(missing, _make_all(missing, place, workers), strict=True):
            found[source] = facts
            bar.update()
    return [facts for facts in found.values() if facts is not None]


def find_gone(sources: list[Path], names: str, place: IndexPlace) -> list[TableFacts]:
    """Facts of sources beside the given ones that were indexed before and are no longer there;
    `names` is the glob of their names."""
    stamp, found = {"format": _FORMAT, **place.layout.stamp}, []
    for folder in sorted({source.parent for source in sources}):
        for index in sorted(place.index(folder / "any").parent.glob(names + place.ending)):
            source = folder / index.name.removesuffix(place.ending)
            if not source.exists():
                facts = read_facts(source, place.name(source), index, stamp)
                found += [facts] if facts else []
    return found


def _look(source: Path, place: IndexPlace) -> TableFacts | None:
    return read_facts(source, place.name(source), place.index(source), _stamp(source, place))


def _make_all(missing: list[Path], place: IndexPlace, workers: int) -> Iterator[TableFacts]:
    make = partial(make_index, place=place)
    if workers < 2 or len(missing) < _WORTH_PROCESSES:
        yield from map(make, missing)
        return
    # Not forked: this process may hold DALI's and torch's threads.
    with ProcessPoolExecutor(min(workers, len(missing)), get_context("spawn")) as pool:
        yield from pool.map(make, missing)


def make_index(source: Path, place: IndexPlace) -> TableFacts:
    """Scan a source and write its index."""
    path, stamp = place.index(source), _stamp(source, place)
    try:
        samples, defects = reader_named(place.layout.reader).scan(
            source, place.name(source), place.layout
        )
    except OSError as error:
        raise _unreadable(source, error) from None
    try:
        write_table(path, samples, defects, stamp)
    except OSError as error:
        raise UserError(
            f"index {path}", str(error), "a writable folder", "set input.index_dir=FOLDER"
        ) from None
    facts = read_facts(source, place.name(source), path, stamp)
    if facts is None:
        raise UserError(f"index {path}", "not what was written", "a whole file", "check the disk")
    return facts


def _stamp(source: Path, place: IndexPlace) -> dict[str, str]:
    try:
        own = reader_named(place.layout.reader).stamp(source)
    except OSError as error:
        raise _unreadable(source, error) from None
    return {"format": _FORMAT, **place.layout.stamp, **own}


def _unreadable(source: Path, error: OSError) -> UserError:
    return UserError(
        str(source), error.strerror or str(error), "a readable source", "restore or remove it"
    )

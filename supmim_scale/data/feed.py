"""Samples of a run in its order: read ahead by threads, a bad one noted and replaced."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from supmim_scale import randomness
from supmim_scale.data.dali import DecodeCheck, ViewSpec
from supmim_scale.data.dataset import Dataset
from supmim_scale.data.headers import BadImageError, Header, read_header, why_undecodable
from supmim_scale.data.order import Ids
from supmim_scale.data.quarantine import Quarantine
from supmim_scale.errors import RankError

_TRIES = 16  # samples tried in place of a bad one


@dataclass(frozen=True)
class _Sample:
    """A sample as it was read."""

    id: int
    encoded: NDArray[np.uint8]
    header: Header
    labels: NDArray[np.int32]


@dataclass(frozen=True)
class Chunk:
    """A batch's samples, read: `ids_B` will be shown where the order wanted `wanted_B`."""

    epochs_B: Ids
    wanted_B: Ids
    ids_B: Ids
    encoded: list[NDArray[np.uint8]]
    sizes: list[tuple[int, int]]
    labels: list[NDArray[np.int32]]


# Windows and flips and what else the pipeline takes, from (ids, epochs, sizes).
Draw = Callable[[Chunk], dict[str, NDArray[Any]]]


@dataclass
class Source:
    """Reads samples; a bad one is noted and another one of the set (or none) put in its place.

    `listed` are bad whatever they look like. `undecodable` are (epoch, id) whose window DALI
    refused. Neither is extended by what is met elsewhere, so that what a step shows does not
    depend on the steps and ranks before it.
    """

    dataset: Dataset
    seed: int
    quarantine: Quarantine
    listed: frozenset[int] = frozenset()
    replaces: bool = True
    undecodable: set[tuple[int, int]] = field(default_factory=set)

    def chunk(self, part: tuple[Ids, Ids]) -> Chunk:
        """The samples of a batch. Raises `RankError` where the policy says stop."""
        epochs_B, wanted_B = part
        found = [self._good(int(e), int(i)) for e, i in zip(epochs_B, wanted_B, strict=True)]
        here = [place for place, sample in enumerate(found) if sample is not None]
        good = [sample for sample in found if sample is not None]
        return Chunk(
            epochs_B[here],
            wanted_B[here],
            np.array([sample.id for sample in good], dtype=np.int64),
            [sample.encoded for sample in good],
            [(sample.header.height, sample.header.width) for sample in good],
            [sample.labels for sample in good],
        )

    def note(self, sample: int, reason: str) -> None:
        """A sample turned out bad. Raises `RankError` where the policy says stop."""
        self.quarantine.add(self.dataset.defect(sample, reason))

    def _good(self, epoch: int, wanted: int) -> _Sample | None:
        """The sample, or one drawn in its place: the same one whichever rank asks, and whenever."""
        sample = wanted
        for attempt in range(1, _TRIES + 1):
            try:
                if sample in self.listed:
                    raise BadImageError("listed in input.quarantine")
                if (epoch, sample) not in self.undecodable:
                    encoded = self.dataset.read(sample)
                    labels = self.dataset.labels_of(sample)
                    return _Sample(sample, encoded, read_header(encoded), labels)
            except BadImageError as error:
                self.note(sample, str(error))
            if not self.replaces:
                return None
            drawn = randomness.bits(randomness.REPLACE, self.seed, epoch, wanted, attempt).item()
            sample = int(drawn % len(self.dataset))
        raise RankError(
            "data",
            f"{_TRIES} bad samples one after the other, in place of "
            f"{self.dataset.defect(wanted, 'bad')}",
            "a set that can be read",
            "check that the data set is still there",
        )


class Feed:
    """Gives the pipeline its batches in order, read ahead by threads, and remembers those that it
    has not given back, so that they can be fed again."""

    def __init__(
        self,
        source: Source,
        parts: Iterator[tuple[Ids, Ids]],
        draw: Draw,
        spec: ViewSpec,
        readers: int,
    ) -> None:
        self._source, self._parts, self._draw, self._spec = source, parts, draw, spec
        self._pool = ThreadPoolExecutor(readers)
        self._ahead: deque[Future[Chunk]] = deque()
        self._again: deque[Chunk] = deque()
        self.in_flight: deque[tuple[Chunk, dict[str, Any]]] = deque()
        self.error: Exception | None = None
        for _ in range(readers):
            self._read_one_more()

    def __call__(self) -> tuple[Any, ...]:
        """The next batch's inputs. Nothing but the end is raised into DALI, which would report
        it late and repeat it; the error is kept."""
        try:
            chunk = self._next_chunk()
            given = {"encoded": chunk.encoded, **self._draw(chunk)}
        except StopIteration:
            raise
        except Exception as error:
            self.error = error
            raise StopIteration from None
        self.in_flight.append((chunk, given))
        return tuple(given[name] for name in self._spec.inputs)

    def rewind(self) -> None:
        """Give what is in flight once more, without what has been found bad since."""
        waiting = [*(chunk for chunk, _ in self.in_flight), *self._again]
        self.in_flight.clear()
        self._again = deque(self._source.chunk((c.epochs_B, c.wanted_B)) for c in waiting)

    def close(self) -> None:
        """Stop reading."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _next_chunk(self) -> Chunk:
        while True:
            if self._again:
                chunk = self._again.popleft()
            elif self._ahead:
                chunk = self._ahead.popleft().result()
                self._read_one_more()
            else:
                raise StopIteration
            if len(chunk.ids_B):
                return chunk

    def _read_one_more(self) -> None:
        part = next(self._parts, None)
        if part is not None:
            self._ahead.append(self._pool.submit(self._source.chunk, part))


def note_undecodable(
    source: Source, in_flight: Iterable[tuple[Chunk, dict[str, Any]]], check: DecodeCheck
) -> bool:
    """Find the images in flight whose window the pipeline's decoder refuses."""
    found = False
    for chunk, given in in_flight:
        windows = np.concatenate([given["anchors"], given["shapes"]], axis=1)
        for place in check.refused(chunk.encoded, windows.tolist()):
            epoch, sample = int(chunk.epochs_B[place]), int(chunk.ids_B[place])
            source.undecodable.add((epoch, sample))
            source.note(sample, why_undecodable(chunk.encoded[place]))
            found = True
    return found

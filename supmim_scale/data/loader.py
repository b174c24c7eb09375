"""Micro-batches of a run, by position: what is read, in which order, cut how."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from supmim_scale import randomness
from supmim_scale.data.augment import AugmentSettings, draw_augmentations
from supmim_scale.data.dali import DecodeCheck, ViewPipeline, ViewSpec, num_choices
from supmim_scale.data.dataset import Dataset, padded_labels
from supmim_scale.data.headers import BadImageError, Header, read_header, why_undecodable
from supmim_scale.data.order import Ids, SampleOrder
from supmim_scale.data.quarantine import Quarantine, SkipRule
from supmim_scale.data.views import DRAWS_PER_CROP, centre_window, random_window
from supmim_scale.errors import RankError
from supmim_scale.hardware.transfer import upload

_TRIES = 16  # samples tried in place of a bad one
_STOP = SkipRule()


@dataclass(frozen=True)
class Batch:
    """A micro-batch: views on the device, label ids padded with -1, and whose views they are."""

    images_BCHW: Tensor
    labels_BL: Tensor
    ids_B: Ids
    epochs_B: Ids


@dataclass(frozen=True)
class ViewSettings:
    """How views are cut, decoded and read ahead.

    `threads` decode, `readers` fetch bytes; `prefetch` batches are decoded ahead and as many more
    as there are readers are fetched ahead.
    """

    spec: ViewSpec
    crop_scale: tuple[float, float] = (0.08, 1.0)
    flip: bool = True
    eval_crop: float = 1.0
    threads: int = 2
    readers: int = 2
    prefetch: int = 2


@dataclass(frozen=True)
class Share:
    """Which part of every global batch a rank takes: `accumulation` micro-batches a step."""

    micro_batch: int
    accumulation: int = 1
    rank: int = 0
    world_size: int = 1

    @property
    def global_batch(self) -> int:
        """Samples of a step over all ranks."""
        return self.micro_batch * self.accumulation * self.world_size


@dataclass(frozen=True)
class _Sample:
    """A sample as it was read."""

    id: int
    encoded: NDArray[np.uint8]
    header: Header
    labels: NDArray[np.int32]


@dataclass(frozen=True)
class _Chunk:
    """A batch's samples, read: `ids_B` will be shown where the order wanted `wanted_B`."""

    epochs_B: Ids
    wanted_B: Ids
    ids_B: Ids
    encoded: list[NDArray[np.uint8]]
    sizes: list[tuple[int, int]]
    labels: list[NDArray[np.int32]]


# Windows and flips and what else the pipeline takes, from (ids, epochs, sizes).
_Draw = Callable[[_Chunk], dict[str, NDArray[Any]]]


def training_batches(
    dataset: Dataset,
    order: SampleOrder,
    settings: ViewSettings,
    share: Share,
    *,
    seed: int,
    device: torch.device,
    samples_seen: int = 0,
    group: int = 1,
    quarantine: Quarantine | None = None,
    known_bad: Iterable[int] = (),
) -> Iterator[Batch]:
    """This rank's endless micro-batches after `samples_seen` samples of the run.

    The global batch of a step is the same set of views for every world size and split; `group`
    neighbours of it stay in one micro-batch.
    """
    spec = settings.spec
    choices = num_choices(spec.augment.kind)

    def parts() -> Iterator[tuple[Ids, Ids]]:
        start = samples_seen
        while True:
            yield from order.share(
                start, share.global_batch, share.rank, share.world_size, share.accumulation, group
            )
            start += share.global_batch

    def draw(chunk: _Chunk) -> dict[str, NDArray[Any]]:
        who = (chunk.epochs_B, chunk.ids_B)
        u_BC = randomness.uniform(randomness.CROP, seed, *who, DRAWS_PER_CROP)
        windows = [
            random_window(*size, settings.crop_scale, u_C)
            for size, u_C in zip(chunk.sizes, u_BC, strict=True)
        ]
        flips_B = settings.flip & (randomness.uniform(randomness.FLIP, seed, *who, 1)[:, 0] < 0.5)
        augmentations = draw_augmentations(spec.augment, choices, spec.size, seed, *who)
        return _view_inputs(windows, flips_B) | augmentations

    source = _Source(
        dataset, seed, quarantine or Quarantine(_STOP, len(dataset)), frozenset(known_bad)
    )
    return _batches(source, parts(), draw, settings, share.micro_batch, device)


def evaluation_batches(
    dataset: Dataset,
    settings: ViewSettings,
    *,
    batch: int,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device,
    ids: Ids | None = None,
    quarantine: Quarantine | None = None,
) -> Iterator[Batch]:
    """This rank's share of the set (or of `ids`) once, centre crops; the shares are disjoint
    and complete. Where `quarantine` lets a bad sample be skipped, none is shown in its place."""
    ids = (np.arange(len(dataset)) if ids is None else ids)[rank::world_size]
    chunks = (ids[i : i + batch] for i in range(0, len(ids), batch))
    parts = ((np.zeros_like(part), part) for part in chunks)

    def draw(chunk: _Chunk) -> dict[str, NDArray[Any]]:
        windows = [centre_window(*size, settings.eval_crop) for size in chunk.sizes]
        return _view_inputs(windows, np.zeros(len(chunk.ids_B), dtype=bool))

    source = _Source(dataset, 0, quarantine or Quarantine(_STOP, len(dataset)), replaces=False)
    plain = replace(settings, spec=replace(settings.spec, augment=AugmentSettings()))
    return _batches(source, parts, draw, plain, batch, device)


def _view_inputs(
    windows: list[tuple[int, int, int, int]], flips_B: NDArray[np.bool_]
) -> dict[str, NDArray[Any]]:
    boxes_B4 = np.array(windows, dtype=np.int32)
    return {
        "anchors": boxes_B4[:, :2].copy(),
        "shapes": boxes_B4[:, 2:].copy(),
        "flips": flips_B.astype(np.int32),
    }


@dataclass
class _Source:
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

    def chunk(self, part: tuple[Ids, Ids]) -> _Chunk:
        """The samples of a batch. Raises `RankError` where the policy says stop."""
        epochs_B, wanted_B = part
        found = [self._good(int(e), int(i)) for e, i in zip(epochs_B, wanted_B, strict=True)]
        here = [place for place, sample in enumerate(found) if sample is not None]
        good = [sample for sample in found if sample is not None]
        return _Chunk(
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


class _Feed:
    """Gives the pipeline its batches in order, read ahead by threads, and remembers those that it
    has not given back, so that they can be fed again."""

    def __init__(
        self,
        source: _Source,
        parts: Iterator[tuple[Ids, Ids]],
        draw: _Draw,
        spec: ViewSpec,
        readers: int,
    ) -> None:
        self._source, self._parts, self._draw, self._spec = source, parts, draw, spec
        self._pool = ThreadPoolExecutor(readers)
        self._ahead: deque[Future[_Chunk]] = deque()
        self._again: deque[_Chunk] = deque()
        self.in_flight: deque[tuple[_Chunk, dict[str, Any]]] = deque()
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

    def _next_chunk(self) -> _Chunk:
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


def _batches(
    source: _Source,
    parts: Iterator[tuple[Ids, Ids]],
    draw: _Draw,
    settings: ViewSettings,
    batch: int,
    device: torch.device,
) -> Iterator[Batch]:
    """Run the pipeline over the parts."""
    spec, dataset = settings.spec, source.dataset
    feed = _Feed(source, parts, draw, spec, settings.readers)

    def build() -> ViewPipeline:
        return ViewPipeline(
            feed,
            spec,
            batch=batch,
            threads=settings.threads,
            prefetch=settings.prefetch,
            device=device,
        )

    pipeline = build()
    try:
        while True:
            try:
                images_BCHW = pipeline.next()
            except StopIteration:
                if feed.error:
                    raise feed.error from None
                return
            except RuntimeError as error:  # DALI does not say which image it could not decode
                check = DecodeCheck(batch=batch, threads=1, decoder=spec.decoder, device=device)
                if not _note_undecodable(source, feed.in_flight, check):
                    raise error
                feed.rewind()
                pipeline = build()
                continue
            chunk, _ = feed.in_flight.popleft()
            labels_BL = padded_labels(chunk.labels, dataset.labels_per_image)
            on_device = upload(torch.from_numpy(labels_BL), device)
            yield Batch(images_BCHW, on_device, chunk.ids_B, chunk.epochs_B)
    finally:
        feed.close()


def _note_undecodable(
    source: _Source, in_flight: Iterable[tuple[_Chunk, dict[str, Any]]], check: DecodeCheck
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

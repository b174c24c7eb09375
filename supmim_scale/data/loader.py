"""Micro-batches of a run, by position: what is read, in which order, cut how."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from supmim_scale import randomness
from supmim_scale.config.experiment import AugmentConfig
from supmim_scale.data.augment import draw_augmentations
from supmim_scale.data.dali import DecodeCheck, ViewPipeline, ViewSpec, num_choices
from supmim_scale.data.dataset import Dataset, padded_labels
from supmim_scale.data.feed import Chunk, Draw, Feed, Source, note_undecodable
from supmim_scale.data.order import Ids, SampleOrder
from supmim_scale.data.quarantine import Quarantine, SkipRule
from supmim_scale.data.views import DRAWS_PER_CROP, centre_window, random_window
from supmim_scale.hardware.transfer import upload

_STOP = SkipRule()


@dataclass(frozen=True, repr=False)
class Batch:
    """A micro-batch: views on the device, label ids padded with -1, and whose views they are."""

    images_BCHW: Tensor
    labels_BL: Tensor
    ids_B: Ids
    epochs_B: Ids

    def __repr__(self) -> str:
        """For people."""
        images, _, height, width = self.images_BCHW.shape
        return f"<{images} images of {height}x{width}, labels {tuple(self.labels_BL.shape)}>"


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

    def draw(chunk: Chunk) -> dict[str, NDArray[Any]]:
        who = (chunk.epochs_B, chunk.ids_B)
        u_BC = randomness.uniform(randomness.CROP, seed, *who, DRAWS_PER_CROP)
        windows = [
            random_window(*size, settings.crop_scale, u_C)
            for size, u_C in zip(chunk.sizes, u_BC, strict=True)
        ]
        flips_B = settings.flip & (randomness.uniform(randomness.FLIP, seed, *who, 1)[:, 0] < 0.5)
        augmentations = draw_augmentations(spec.augment, choices, spec.size, seed, *who)
        return _view_inputs(windows, flips_B) | augmentations

    source = Source(
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

    def draw(chunk: Chunk) -> dict[str, NDArray[Any]]:
        windows = [centre_window(*size, settings.eval_crop) for size in chunk.sizes]
        return _view_inputs(windows, np.zeros(len(chunk.ids_B), dtype=bool))

    source = Source(dataset, 0, quarantine or Quarantine(_STOP, len(dataset)), replaces=False)
    plain = replace(settings, spec=replace(settings.spec, augment=AugmentConfig()))
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


def _batches(
    source: Source,
    parts: Iterator[tuple[Ids, Ids]],
    draw: Draw,
    settings: ViewSettings,
    batch: int,
    device: torch.device,
) -> Iterator[Batch]:
    """Run the pipeline over the parts."""
    spec, dataset = settings.spec, source.dataset
    feed = Feed(source, parts, draw, spec, settings.readers)

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
                if not note_undecodable(source, feed.in_flight, check):
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

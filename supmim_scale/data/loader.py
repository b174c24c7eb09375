"""Micro-batches of a run, by position: what is read, in which order, cut how."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from supmim_scale import draws
from supmim_scale.data.dali import ViewPipeline
from supmim_scale.data.dataset import Dataset
from supmim_scale.data.order import SampleOrder
from supmim_scale.data.views import (
    DRAWS_PER_CROP,
    centre_window,
    image_size,
    random_window,
    require_decodable,
)


@dataclass(frozen=True)
class Batch:
    """A micro-batch: views on the device, label ids padded with -1, and whose views they are."""

    images_BCHW: Tensor
    labels_BL: Tensor
    ids_B: NDArray[np.int64]
    epochs_B: NDArray[np.int64]


@dataclass(frozen=True)
class ViewSettings:
    """How a view is cut and decoded."""

    size: int
    mean: float
    std: float
    crop_scale: tuple[float, float]
    flip: bool
    eval_crop: float
    decoder: str
    hw_decoder_load: float
    threads: int
    prefetch: int


def training_batches(
    dataset: Dataset,
    order: SampleOrder,
    settings: ViewSettings,
    *,
    seed: int,
    micro_batch: int,
    accumulation: int,
    rank: int,
    world_size: int,
    first_step: int,
    device: torch.device,
) -> Iterator[Batch]:
    """This rank's endless micro-batches, `accumulation` a step, from `first_step` on.

    The global batch of a step is the same set of views for every world size and split.
    """

    def positions() -> Iterator[int]:
        step = first_step
        while True:
            for micro in range(accumulation):
                place = (step * accumulation + micro) * world_size + rank
                yield place * micro_batch
            step += 1

    def windows(ids_B: Any, epochs_B: Any, sizes: list[tuple[int, int]]) -> Any:
        u_BC = draws.uniform(draws.CROP, seed, epochs_B, ids_B, DRAWS_PER_CROP)
        return [
            random_window(*size, settings.crop_scale, u_C)
            for size, u_C in zip(sizes, u_BC, strict=True)
        ]

    def flips(ids_B: Any, epochs_B: Any) -> Any:
        return settings.flip & (draws.uniform(draws.FLIP, seed, epochs_B, ids_B, 1)[:, 0] < 0.5)

    chunks = (order.at(start, micro_batch) for start in positions())
    yield from _batches(dataset, chunks, windows, flips, settings, micro_batch, device)


def evaluation_batches(
    dataset: Dataset,
    settings: ViewSettings,
    *,
    batch: int,
    rank: int,
    world_size: int,
    device: torch.device,
    ids: NDArray[np.int64] | None = None,
) -> Iterator[Batch]:
    """This rank's share of the set (or of `ids`) once, centre crops; the shares are disjoint
    and complete."""
    ids = (np.arange(len(dataset)) if ids is None else ids)[rank::world_size]
    chunks = (
        (np.zeros(len(part), dtype=np.int64), part)
        for part in (ids[i : i + batch] for i in range(0, len(ids), batch))
    )

    def windows(ids_B: Any, epochs_B: Any, sizes: list[tuple[int, int]]) -> Any:
        return [centre_window(*size, settings.eval_crop) for size in sizes]

    def flips(ids_B: Any, epochs_B: Any) -> Any:
        return np.zeros(len(ids_B), dtype=bool)

    yield from _batches(dataset, chunks, windows, flips, settings, batch, device)


def _batches(
    dataset: Dataset,
    chunks: Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]],
    windows: Any,
    flips: Any,
    settings: ViewSettings,
    batch: int,
    device: torch.device,
) -> Iterator[Batch]:
    """Run the pipeline over chunks of (epochs, ids); it reads ahead, so identities are queued."""
    queue: deque[tuple[NDArray[np.int64], NDArray[np.int64]]] = deque()

    def source() -> tuple[Any, Any, Any, Any]:
        epochs_B, ids_B = next(chunks)
        queue.append((epochs_B, ids_B))
        encoded = [dataset.read(int(sample)) for sample in ids_B]
        sizes = [
            image_size(data, dataset.name_of(int(i)))
            for i, data in zip(ids_B, encoded, strict=True)
        ]
        boxes_B4 = np.array(windows(ids_B, epochs_B, sizes), dtype=np.int32)
        flips_B = flips(ids_B, epochs_B).astype(np.int32)
        return encoded, boxes_B4[:, :2].copy(), boxes_B4[:, 2:].copy(), flips_B

    pipeline = ViewPipeline(
        source,
        batch=batch,
        size=settings.size,
        mean=settings.mean,
        std=settings.std,
        decoder=settings.decoder,
        hw_decoder_load=settings.hw_decoder_load,
        threads=settings.threads,
        prefetch=settings.prefetch,
        device=device,
    )
    while True:
        try:
            images_BCHW = pipeline.next()
        except StopIteration:
            return
        except RuntimeError as error:  # DALI does not say which sample it could not decode
            for _, ids_B in queue:
                for sample in ids_B:
                    require_decodable(dataset.read(int(sample)), dataset.name_of(int(sample)))
            raise error
        epochs_B, ids_B = queue.popleft()
        labels_BL = torch.from_numpy(dataset.labels(ids_B)).to(device, non_blocking=True)
        yield Batch(images_BCHW, labels_BL, ids_B, epochs_B)

"""A rank that only reads: it prints its samples of a step and goes on when it is told to."""

import json
import sys
from pathlib import Path

import torch

from supmim_scale.data.dali import ViewSpec
from supmim_scale.data.dataset import open_dataset
from supmim_scale.data.loader import Share, ViewSettings, training_batches
from supmim_scale.data.order import SampleOrder
from supmim_scale.data.position import ReaderPosition
from supmim_scale.data.readers import SampleLayout

root, rank, world_size, global_batch, position = sys.argv[1:]
dataset = open_dataset(Path(root), "train", SampleLayout())
seen = ReaderPosition.of(json.loads(position))
seen.require_same_set(len(dataset), dataset.digest)
batches = training_batches(
    dataset,
    SampleOrder(dataset.sizes, seed=7, lanes=6),
    ViewSettings(ViewSpec(16, 0.5, 0.5), threads=1),
    Share(int(global_batch) // int(world_size), 1, int(rank), int(world_size)),
    seed=7,
    device=torch.device("cpu"),
    samples_seen=seen.samples_seen,
)
for batch in batches:
    sums = batch.images_BCHW.double().sum(dim=(1, 2, 3)).tolist()
    rows = zip(batch.epochs_B.tolist(), batch.ids_B.tolist(), sums, strict=True)
    print(json.dumps(list(rows)), flush=True)
    if not sys.stdin.readline():
        break

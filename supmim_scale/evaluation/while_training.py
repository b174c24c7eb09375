"""k-NN while a run trains, on parts of the training set (the bank) and the held-out set."""

import numpy as np

from supmim_scale.build.data import skip_rule
from supmim_scale.data.dataset import Dataset
from supmim_scale.data.loader import evaluation_batches
from supmim_scale.data.quarantine import Quarantine
from supmim_scale.evaluation.features import Features, extract
from supmim_scale.evaluation.knn import K, KnnSettings, knn_figures
from supmim_scale.evaluation.subject import Subject
from supmim_scale.launch.world import World

_SEED = 0
NAMES = ("knn_top1", "knn_top5", "recall_at_1", "retrieval_map")


def online_knn(
    subject: Subject, train_set: Dataset, val_set: Dataset, count: int, world: World
) -> dict[str, float]:
    """Collective: k-NN figures of at most `count` images of either set, the same ones each time."""
    subject.encoder.eval().to(world.device)
    bank = _features(subject, train_set, count, world)
    queries = _features(subject, val_set, count, world)
    classes = 1 + max(int(bank.labels_NL.max()), int(queries.labels_NL.max()))
    row = knn_figures(bank, queries, classes, KnnSettings(min(K, len(bank))), world)
    return {name: row[name] for name in NAMES} | {"images": float(len(queries))}


def _features(subject: Subject, dataset: Dataset, count: int, world: World) -> Features:
    ids = np.random.default_rng(_SEED).permutation(len(dataset))[:count]
    batches = evaluation_batches(
        dataset,
        subject.view_settings(world.device),
        batch=subject.config.log.eval_batch,
        rank=world.rank,
        world_size=world.world_size,
        device=world.device,
        ids=np.sort(ids),
        quarantine=Quarantine(skip_rule(subject.config), len(dataset)),
    )
    return extract(subject.features, batches, world, len(ids), "k-NN")

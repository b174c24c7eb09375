"""One evaluation: what is wanted of a subject, measured on cached features."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from supmim_scale.data.dataset import Dataset
from supmim_scale.data.loader import evaluation_batches
from supmim_scale.data.quarantine import Quarantine
from supmim_scale.engine.world import World
from supmim_scale.errors import UserError
from supmim_scale.evaluate.classify import autocast, hits
from supmim_scale.evaluate.features import Features, cached, extract, weights_digest
from supmim_scale.evaluate.few_shot import few_shot_figures
from supmim_scale.evaluate.knn import KnnSettings, knn_figures, require_bank
from supmim_scale.evaluate.probe import probe_figures
from supmim_scale.evaluate.results import FOLDER, Results
from supmim_scale.evaluate.robustness import REAL, open_set, real_labels, scored_classes
from supmim_scale.evaluate.segment import SegmentSettings, segment_figures
from supmim_scale.evaluate.sheets import neighbour_sheet, reconstruction_sheet
from supmim_scale.evaluate.subject import Subject
from supmim_scale.inputs import open_split, require_same_classes, skip_policy

_ROWS = 4096  # logits at a time


@dataclass(frozen=True)
class Wanted:
    """What to measure beside top-1 and top-5, which need a head. `probe`: its solver.
    `robustness`: (kind, path) of sets. `out`: a folder instead of the subject's own."""

    knn: KnnSettings | None = None
    probe: str | None = None
    few_shot: bool = False
    calibration: bool = False
    robustness: Sequence[tuple[str, Path]] = ()
    reconstructions: bool = False
    segment: SegmentSettings | None = None
    out: Path | None = None

    @property
    def is_segmentation_alone(self) -> bool:
        """Whether no set of classified images is needed."""
        others = (self.calibration, self.robustness, self.reconstructions, self.needs_training_set)
        return self.segment is not None and not any(others)

    @property
    def needs_training_set(self) -> bool:
        """Whether features of the training set are needed."""
        return self.knn is not None or self.probe is not None or self.few_shot


def measure(subject: Subject, wanted: Wanted, world: World) -> dict[str, Any]:
    """Collective: the figures; rank 0 writes and prints them. Raises `UserError` where the set,
    the head and what is wanted do not go together."""
    out = wanted.out or subject.out
    results = Results(out, int(subject.facts.get("steps_done", 0)), is_main=world.is_main)
    subject.encoder.eval().to(world.device)
    row: dict[str, Any] = {}
    if not wanted.is_segmentation_alone:
        _require_possible(subject, wanted)
        row |= _on_classes(subject, wanted, world, results, out)
    if wanted.segment is not None:  # last: it may train the encoder
        figures, sheet = segment_figures(subject, wanted.segment, world)
        results.picture("segmentation", sheet)
        row |= figures
    precision = "bf16" if world.device.type == "cuda" else "fp32"
    row |= {**subject.facts, "precision": precision}
    results.close(row)
    return row


def _on_classes(
    subject: Subject, wanted: Wanted, world: World, results: Results, out: Path
) -> dict[str, Any]:
    """Collective: what is measured on classified images."""
    sets = _Sets(subject, wanted, world, out)
    held_out = sets.features(sets.held_out, "held out")
    row: dict[str, Any] = {}
    if subject.num_classes:
        row |= sets.top(held_out)
        if wanted.calibration or subject.config.loss.kind == "sigmoid":
            row |= _score_figures(subject, held_out, wanted, world)
    else:
        row["images"] = float(len(held_out))
    if sets.train is not None:
        train = sets.features(sets.train, "training set")
        classes = 1 + max(int(train.labels_NL.max()), int(held_out.labels_NL.max()))
        row["train_images"] = len(train)
        if wanted.knn is not None:
            row |= {"knn_k": wanted.knn.k, "knn_temperature": wanted.knn.temperature}
            row |= knn_figures(train, held_out, classes, wanted.knn, world)
            if world.is_main:
                sheet = neighbour_sheet(subject, (sets.train, sets.held_out), train, held_out)
                results.picture("neighbours", sheet)
        if wanted.probe is not None:
            row |= probe_figures(train, held_out, classes, wanted.probe, world)
        if wanted.few_shot:
            row |= few_shot_figures(train, held_out, classes, world)
    for kind, path in wanted.robustness:
        found = sets.robust(kind, path, held_out)
        allowed_K = scored_classes(kind, found.labels_NL, subject.num_classes)
        top, name = sets.top(found, allowed_K), kind.replace("-", "_")
        row |= {f"{name}_{figure}": value for figure, value in top.items()}
    if wanted.reconstructions and world.is_main:
        results.picture("reconstruction", reconstruction_sheet(subject, sets.held_out))
    return row | {"set": subject.config.data.name, "set_digest": sets.held_out.digest}


class _Sets:
    """The opened sets of a subject, and their features."""

    def __init__(self, subject: Subject, wanted: Wanted, world: World, out: Path) -> None:
        config, self._subject, self._world = subject.config, subject, world
        self._out = out
        self.held_out: Dataset = world.main_first(lambda: open_split(config, "val"))
        self.train: Dataset | None = None
        self._digest: str | None = None
        if wanted.needs_training_set:
            require_same_classes(config)
            self.train = world.main_first(lambda: open_split(config, "train"))
            if wanted.knn is not None:
                require_bank(len(self.train), wanted.knn.k)
            self._digest = weights_digest(subject.encoder)

    def features(self, dataset: Dataset, what: str) -> Features:
        """Collective: of a whole set; those of a training set are kept beside the results."""
        subject, world = self._subject, self._world
        settings = subject.view_settings(world.device)

        def make() -> Features:
            batches = evaluation_batches(
                dataset, settings, batch=subject.config.log.eval_batch, rank=world.rank,
                world_size=world.world_size, device=world.device,
                quarantine=Quarantine(skip_policy(subject.config), len(dataset)),
            )  # fmt: skip
            return extract(subject.features, batches, world, len(dataset), what)

        if dataset is not self.train:
            return make()
        key = {"weights": self._digest, "set": dataset.digest, "crop": settings.eval_crop,
               "spec": str(settings.spec), "views": str(subject.views),
               "device": world.device.type}  # fmt: skip
        return cached(self._out / FOLDER, key, world, make)

    def robust(self, kind: str, path: Path, held_out: Features) -> Features:
        """Collective: a robustness set's features, with its labels."""
        subject, world = self._subject, self._world
        if kind == REAL:
            return real_labels(path, self.held_out, held_out, subject.num_classes)
        dataset = world.main_first(lambda: open_set(kind, path, subject.config))
        return self.features(dataset, kind)

    def top(self, features: Features, allowed_K: Tensor | None = None) -> dict[str, float]:
        """Collective: top-1 and top-5 by the subject's head, and the images counted."""
        sums = torch.zeros(3, dtype=torch.float64, device=self._world.device)
        for logits_BK, labels_BL in _logits(self._subject, features, self._world):
            if allowed_K is not None:
                logits_BK = logits_BK.masked_fill(~allowed_K.to(logits_BK.device), -torch.inf)
            sums += hits(logits_BK, labels_BL)
        top1, top5, images = self._world.sum(sums).tolist()
        return {"top1": top1 / images, "top5": top5 / images, "images": images}


def _score_figures(
    subject: Subject, held_out: Features, wanted: Wanted, world: World
) -> dict[str, float]:
    """Collective: figures that need all logits at once."""
    from supmim_scale.evaluate.scores import calibration, mean_average_precision

    mine = [logits_BK.cpu() for logits_BK, _ in _logits(subject, held_out, world)]
    shares = world.gather(torch.cat(mine) if mine else None)
    logits_NK = torch.cat([share for share in shares if share is not None])
    places = [torch.arange(rank, len(held_out), world.world_size) for rank in range(len(shares))]
    labels_NL = held_out.labels_NL[torch.cat(places)]
    if wanted.calibration:
        return calibration(logits_NK, labels_NL[:, 0])
    return {"map": mean_average_precision(logits_NK, labels_NL)}


@torch.inference_mode()
def _logits(subject: Subject, features: Features, world: World) -> Any:
    """Pairs of logits and labels of this rank's share."""
    mine = features.share(world)
    for features_BD, labels_BL in zip(
        mine.features_ND.split(_ROWS), mine.labels_NL.split(_ROWS), strict=True
    ):
        with autocast(world.device):
            logits_BK = subject.logits(features_BD.to(world.device))
        yield logits_BK.float(), labels_BL.to(world.device)


def _require_possible(subject: Subject, wanted: Wanted) -> None:
    config, head = subject.config, subject.num_classes
    if config.loss.kind == "none" and not wanted.reconstructions:
        raise UserError("loss.kind", "none: labels are not read", "labels to measure against",
                        "set loss.kind=softmax or sigmoid")  # fmt: skip
    if not head and not wanted.needs_training_set:
        raise UserError(subject.name, "a model without a head", "a measure that needs none",
                        "add --knn, --probe or --few-shot")  # fmt: skip
    if not head and (wanted.calibration or wanted.robustness):
        raise UserError(subject.name, "a model without a head", "one for --calibration and "
                        "--robustness", "leave them out")  # fmt: skip
    if wanted.calibration and config.loss.kind == "sigmoid":
        raise UserError("--calibration", "loss.kind=sigmoid", "one label an image and softmax",
                        "leave it out")  # fmt: skip

"""One evaluation: what is wanted of a subject, measured on cached features."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from supmim_scale.errors import RankError, UserError
from supmim_scale.evaluation.classify import hits
from supmim_scale.evaluation.features import Features, weights_digest
from supmim_scale.evaluation.few_shot import few_shot_figures
from supmim_scale.evaluation.knn import free_everywhere, knn_figures, require_room
from supmim_scale.evaluation.probe import probe_figures
from supmim_scale.evaluation.request import Request
from supmim_scale.evaluation.results import Results
from supmim_scale.evaluation.robustness import scored_classes
from supmim_scale.evaluation.segment import open_parts, segment_figures
from supmim_scale.evaluation.sets import Sets
from supmim_scale.evaluation.sheets import neighbour_sheet, reconstruction_sheet, require_decoder
from supmim_scale.evaluation.subject import Subject
from supmim_scale.launch.world import World

_ROWS = 4096  # logits at a time


def run_evaluation(subject: Subject, wanted: Request, world: World) -> dict[str, Any]:
    """Collective: the figures; rank 0 writes and prints them. Raises `UserError` where the set,
    the head and what is wanted do not go together: before the first image is read."""
    out, settings = wanted.out or subject.out, wanted.segment
    results = Results(out, int(subject.facts.get("steps_done", 0)), is_main=world.is_main)
    world.main_first(results.require_writable)
    parts = None
    if settings is not None:
        parts = world.main_first(lambda: open_parts(subject, settings))
    sets = None
    if not wanted.is_segmentation_alone:
        _require_possible(subject, wanted)
        sets = Sets(subject, wanted, world, out)
        _require_head(subject, wanted, sets)
    data, model = subject.config.data, subject.config.model
    row: dict[str, Any] = {
        "weights_digest": sets.digest if sets else weights_digest(subject.encoder),
        "image_size": model.image_size,
        "eval_crop": data.eval_crop,
    }
    subject.encoder.eval().to(world.device)
    if sets is not None:
        if sets.train is not None and wanted.knn is not None:
            width = int(subject.encoder.num_features)  # type: ignore[arg-type]
            require_room(len(sets.train), width, free_everywhere(world))
        row |= _on_classes(subject, wanted, world, results, sets)
    if settings is not None and parts is not None:  # last: it may train the encoder
        figures, sheet = segment_figures(subject, parts, settings, world)
        results.picture("segmentation", sheet)
        row |= figures
    row |= {**subject.facts, "precision": subject.precision(world.device)}
    results.close(row)
    return row


def _on_classes(
    subject: Subject, wanted: Request, world: World, results: Results, sets: Sets
) -> dict[str, Any]:
    """Collective: what is measured on classified images."""
    if wanted.reconstructions:
        dataset = sets.held_out
        sheet = world.main_first(
            lambda: reconstruction_sheet(subject, dataset) if world.is_main else None
        )
        if sheet is not None:
            results.picture("reconstruction", sheet)
    held_out = sets.features(sets.held_out, "held out")
    row: dict[str, Any] = {
        "images": float(len(held_out)),
        "left_out": len(sets.held_out) - len(held_out),
    }
    if _head_fits(subject, sets):
        row |= _top(subject, held_out, world)
        if wanted.calibration or subject.config.loss.kind == "sigmoid":
            row |= _score_figures(subject, held_out, wanted, world)
    elif subject.num_classes:
        row["head"] = (
            f"not measured: {subject.num_classes} outputs, labels up to {sets.largest_label}"
        )
    if sets.train is not None:
        row |= _with_training_set(subject, wanted, world, results, sets, held_out)
    for name, (kind, _) in sets.robust.items():
        found = sets.robust_features(name, held_out)
        allowed_K = scored_classes(kind, found.labels_NL, subject.num_classes)
        top = _top(subject, found, world, allowed_K)
        row |= {f"{name}_{figure}": value for figure, value in top.items()}
    data = subject.config.data
    return row | {"set": data.name, "split": data.val, "set_digest": sets.held_out.digest}


def _with_training_set(
    subject: Subject,
    wanted: Request,
    world: World,
    results: Results,
    sets: Sets,
    held_out: Features,
) -> dict[str, Any]:
    """Collective: what is learned from the training set and measured on the held-out one."""
    assert sets.train is not None
    train = sets.features(sets.train, "training set")
    classes = 1 + max(int(train.labels_NL.max()), int(held_out.labels_NL.max()))
    row: dict[str, Any] = {
        "train_images": len(train),
        "train_left_out": len(sets.train) - len(train),
        "train_set_digest": sets.train.digest,
    }
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
    return row


def _top(
    subject: Subject, features: Features, world: World, allowed_K: Tensor | None = None
) -> dict[str, float]:
    """Collective: top-1 and top-5 by the subject's head, and the images counted."""
    sums = torch.zeros(3, dtype=torch.float64, device=world.device)
    for logits_BK, labels_BL in _logits(subject, features, world):
        if allowed_K is not None:
            logits_BK = logits_BK.masked_fill(~allowed_K.to(logits_BK.device), -torch.inf)
        sums += hits(logits_BK, labels_BL)
    top1, top5, images = world.sum(sums).tolist()
    return {"top1": top1 / images, "top5": top5 / images, "images": images}


def _score_figures(
    subject: Subject, held_out: Features, wanted: Request, world: World
) -> dict[str, float]:
    """Collective: figures that need all logits at once; computed on rank 0, empty elsewhere."""
    from supmim_scale.evaluation.scores import calibration, mean_average_precision

    mine = [logits_BK.cpu() for logits_BK, _ in _logits(subject, held_out, world)]
    shares = world.gather(torch.cat(mine) if mine else None)
    if not world.is_main:
        return {}
    logits_NK = torch.cat([share for share in shares if share is not None])
    labels_NL = torch.cat([held_out.labels_NL[rank :: len(shares)] for rank in range(len(shares))])
    if wanted.calibration:
        return calibration(logits_NK, labels_NL[:, 0])
    return {"map": mean_average_precision(logits_NK, labels_NL)}


@torch.inference_mode()
def _logits(subject: Subject, features: Features, world: World) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of logits, in fp32 as the features are, and labels of this rank's share.

    Raises `RankError` for logits that are not finite.
    """
    mine = features.share(world)
    for start in range(0, len(mine), _ROWS):
        features_BD = mine.features_ND[start : start + _ROWS].to(world.device)
        logits_BK = subject.logits(features_BD)
        is_bad_B = ~logits_BK.isfinite().all(dim=1)
        if is_bad_B.any():
            image = mine.ids_N[start + int(is_bad_B.nonzero()[0])]
            raise RankError(
                subject.name,
                f"logits of image {image} that are not finite",
                "finite ones",
                "take other weights",
            )
        yield logits_BK, mine.labels_NL[start : start + _ROWS].to(world.device)


def _head_fits(subject: Subject, sets: Sets) -> bool:
    """Whether the head's outputs are the set's classes: those of a run are; of a timm model they
    are where labels reach the last output, or the command line says `model.num_classes`."""
    if not subject.num_classes or subject.run_dir is not None:
        return bool(subject.num_classes)
    if subject.says_classes:
        return subject.config.model.num_classes == subject.num_classes
    return sets.largest_label + 1 == subject.num_classes


def _require_head(subject: Subject, wanted: Request, sets: Sets) -> None:
    """Raise `UserError` where nothing could be measured but a head of other classes."""
    if not subject.num_classes or _head_fits(subject, sets):
        return
    others = wanted.needs_training_set or wanted.robustness or wanted.segment
    if wanted.calibration or not others:
        count = subject.num_classes
        raise UserError(
            subject.name,
            f"a head of {count} outputs, and labels up to {sets.largest_label}",
            "a set of the head's classes",
            f"add --knn, --probe or --few-shot, or model.num_classes={count} if a label is the "
            "number of its output",
        )


def _require_possible(subject: Subject, wanted: Request) -> None:
    config, head = subject.config, subject.num_classes
    if config.loss.kind == "none" and not wanted.reconstructions:
        raise UserError(
            "loss.kind",
            "none: labels are not read",
            "labels to measure against",
            "set loss.kind=softmax or sigmoid",
        )
    if not head and not wanted.needs_training_set:
        raise UserError(
            subject.name,
            "a model without a head",
            "a measure that needs none",
            "add --knn, --probe or --few-shot",
        )
    if not head and (wanted.calibration or wanted.robustness):
        raise UserError(
            subject.name,
            "a model without a head",
            "one for --calibration and --robustness",
            "leave them out",
        )
    if wanted.calibration and config.loss.kind == "sigmoid":
        raise UserError(
            "--calibration", "loss.kind=sigmoid", "one label an image and softmax", "leave it out"
        )
    if wanted.reconstructions:
        require_decoder(subject)

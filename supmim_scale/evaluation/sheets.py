"""Pictures of an evaluation: retrieved neighbours, reconstructions."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from supmim_scale.build.data import view_settings
from supmim_scale.build.model import encoder_geometry, mask_spec, recipe_model, target_features
from supmim_scale.build.target import open_target
from supmim_scale.data.dataset import Dataset
from supmim_scale.data.loader import evaluation_batches
from supmim_scale.errors import UserError
from supmim_scale.evaluation.features import Features
from supmim_scale.evaluation.knn import neighbours, relevant
from supmim_scale.evaluation.subject import Subject
from supmim_scale.models.masking import draw_masks
from supmim_scale.models.pictures import enlarged, reconstruction_grid, tiled
from supmim_scale.models.weights import load_exactly, read_weights

_QUERIES, _NEIGHBOURS, _FRAME = 8, 7, 5
_GREEN, _RED, _WHITE = (0.1, 0.7, 0.2), (0.85, 0.1, 0.1), (1.0, 1.0, 1.0)


def neighbour_sheet(
    subject: Subject, sets: tuple[Dataset, Dataset], bank: Features, queries: Features
) -> Tensor:
    """(3, height, width) in [0, 1]: queries, spread over the set, each with its nearest of the
    bank, framed green where they share a label and red where not. `sets`: the bank's and the
    queries'."""
    chosen = queries.rows(np.unique(np.linspace(0, len(queries) - 1, _QUERIES, dtype=np.int64)))
    count = min(_NEIGHBOURS, len(bank))
    _, near_QK = neighbours(chosen.features_ND, bank.features_ND, count)
    shown = _images(subject, sets[0], bank.ids_N[near_QK.flatten().numpy()])
    asked = _images(subject, sets[1], chosen.ids_N)
    rows = []
    for place, near_K in enumerate(near_QK):
        good_1K = relevant(chosen.labels_NL[place : place + 1], bank.labels_NL[near_K])
        frames = [_GREEN if good else _RED for good in good_1K[0].tolist()]
        images = [asked[place], *shown[place * count : (place + 1) * count]]
        framed = [_framed(i, c) for i, c in zip(images, [_WHITE, *frames], strict=True)]
        rows.append(torch.stack(framed))
    return tiled(rows)


def require_decoder(subject: Subject) -> None:
    """Raise `UserError` for a subject without a decoder."""
    if subject.run_dir is None or subject.weights is None or not subject.config.mim.weight:
        raise UserError(
            "--reconstructions",
            f"{subject.name}, which has no decoder",
            "a run with mim.weight above 0",
            "leave it out",
        )


def reconstruction_sheet(subject: Subject, dataset: Dataset) -> Tensor:
    """The reconstruction grid of held-out images by a run's whole weights.

    Raises `UserError` for weights that are not the whole model's.
    """
    config = subject.config
    assert subject.weights is not None
    model = recipe_model(config, target_features(config)).eval()
    given, _ = read_weights(subject.weights)
    load_exactly(model, given, subject.weights)
    assert subject.run_dir is not None
    target, cpu = open_target(config, subject.run_dir), torch.device("cpu")
    batches = evaluation_batches(
        dataset,
        view_settings(config, cpu, decoder="cpu"),
        batch=_QUERIES,
        device=cpu,
        ids=np.arange(min(_QUERIES, len(dataset))),
    )
    batch = next(iter(batches))
    spec = mask_spec(config, encoder_geometry(config).grid)
    masks = draw_masks(spec, config.seed, batch.epochs_B, batch.ids_B)
    images_BCHW = batch.images_BCHW
    classes_BK = torch.zeros(len(images_BCHW), config.model.num_classes)
    with torch.no_grad():
        output = model(images_BCHW, classes_BK, masks, target(images_BCHW))
    return reconstruction_grid(
        images_BCHW, masks, output, target, config.data.mean, config.data.std
    )


def _images(subject: Subject, dataset: Dataset, ids: NDArray[np.int64]) -> Tensor:
    """(B, 3, H, W) in [0, 1]."""
    data, cpu = subject.config.data, torch.device("cpu")
    settings = view_settings(subject.config, cpu, decoder="cpu")
    batches = evaluation_batches(dataset, settings, batch=_QUERIES, device=cpu, ids=ids)
    images_BCHW = torch.cat([batch.images_BCHW for batch in batches])
    return enlarged((images_BCHW * data.std + data.mean).clamp(0, 1))


def _framed(image_CHW: Tensor, colour: tuple[float, float, float]) -> Tensor:
    side = image_CHW.shape[1] + 2 * _FRAME
    framed = torch.tensor(colour).view(3, 1, 1).repeat(1, side, side)
    framed[:, _FRAME:-_FRAME, _FRAME:-_FRAME] = image_CHW
    return framed

"""Few-shot: ridge regression on the features of a few images a class."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from supmim_scale.errors import UserError
from supmim_scale.evaluation.features import Features
from supmim_scale.evaluation.probe import Linear, one_hot, scored
from supmim_scale.launch.world import World

SHOTS = (1, 5, 10)
DRAWS = 5
L2 = 1.0  # on features of length 1: ours; the closed form follows big_vision's few-shot evaluator


def few_shot_figures(
    train: Features, held_out: Features, num_classes: int, world: World
) -> dict[str, float]:
    """Collective: mean top-1 over draws of 1, 5 and 10 images a class, and its deviation.

    Numbers of shots that a class cannot give are left out. Raises `UserError` where none is left.
    """
    held_out = _unit(held_out).on(world.device)
    row: dict[str, float] = {}
    for shots in SHOTS:
        draws = [draw_shots(train.labels_NL, shots, seed) for seed in range(DRAWS)]
        if any(len(places) == 0 for places in draws):
            continue
        tops = [
            scored(
                fit_ridge(_unit(train.rows(places)), num_classes, L2, world.device), held_out, world
            )[0]
            for places in draws
        ]
        row[f"few_shot{shots}_top1"] = float(np.mean(tops))
        row[f"few_shot{shots}_std"] = float(np.std(tops, ddof=1))
    if not row:
        raise UserError(
            "--few-shot",
            "a class without an image",
            "one image or more of each",
            "name another set",
        )
    return row


def draw_shots(labels_NL: Tensor, shots: int, seed: int) -> NDArray[np.int64]:
    """Places of `shots` images of each class that occurs, by their first label; none where a class
    has fewer."""
    rng, labels_N = np.random.default_rng(seed), labels_NL[:, 0].numpy()
    chosen = []
    for label in np.unique(labels_N[labels_N >= 0]):
        places = np.flatnonzero(labels_N == label)
        if len(places) < shots:
            return np.empty(0, dtype=np.int64)
        chosen.append(rng.choice(places, shots, replace=False))
    return np.concatenate(chosen) if chosen else np.empty(0, dtype=np.int64)


def fit_ridge(train: Features, num_classes: int, l2: float, device: torch.device) -> Linear:
    """The minimum of |x W + b - y|^2 + l2 |W|^2 for y of 1 and -1, in float64; b is free."""
    x_ND = train.features_ND.to(device).double()
    y_NK = 2 * one_hot(train.labels_NL.to(device), num_classes) - 1
    mean_D, centre_K = x_ND.mean(0), y_NK.mean(0)
    x_ND = x_ND - mean_D
    # In the smaller of the two spaces: a few images, or the width.
    eye = torch.eye(min(x_ND.shape), dtype=torch.float64, device=device)
    if len(x_ND) < x_ND.shape[1]:
        weight_DK = x_ND.T @ torch.linalg.solve(x_ND @ x_ND.T + l2 * eye, y_NK - centre_K)
    else:
        weight_DK = torch.linalg.solve(x_ND.T @ x_ND + l2 * eye, x_ND.T @ (y_NK - centre_K))
    return Linear(weight_DK, centre_K, mean_D, torch.ones_like(mean_D))


def _unit(features: Features) -> Features:
    unit_ND = F.normalize(features.features_ND.double(), dim=1)
    return Features(features.ids_N, features.labels_NL, unit_ND)

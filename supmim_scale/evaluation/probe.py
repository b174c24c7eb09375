"""A linear classifier on frozen features: regularised by L-BFGS, or SGD over learning rates.

What is swept is chosen on a tenth of the training set held out for it, then fitted on all of it;
the evaluation set chooses nothing. Features are those of centre crops: there is no augmentation.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from supmim_scale.errors import UserError
from supmim_scale.evaluation.classify import hits
from supmim_scale.evaluation.features import ROWS, Features
from supmim_scale.files.progress import progress
from supmim_scale.launch.world import World

L2 = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
LEARNING_RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_HELD_OUT, _SEED = 10, 0
_SWEEP_ROUNDS, _ROUNDS, _FLAT = 100, 1000, 1e-9  # L-BFGS ends there, or where no gradient is larger

_CONVERGED = 1e-6  # the largest gradient of a minimum


@dataclass(frozen=True)
class Linear:
    """logits = (features - mean) / scale @ weight + bias, in float64. `gradient`: of L-BFGS, the
    largest that was left, in the coordinates in which it walks: whatever the unit of the features,
    curvature there is that of the loss."""

    weight_DK: Tensor
    bias_K: Tensor
    mean_D: Tensor
    scale_D: Tensor
    gradient: float | None = None

    def on(self, device: torch.device) -> "Linear":
        """The same on another device."""
        weight_DK, bias_K = self.weight_DK.to(device), self.bias_K.to(device)
        mean_D, scale_D = self.mean_D.to(device), self.scale_D.to(device)
        return Linear(weight_DK, bias_K, mean_D, scale_D, self.gradient)

    def logits(self, features_BD: Tensor) -> Tensor:
        """(B, classes)."""
        x_BD = features_BD.to(self.weight_DK.device).double()
        return (x_BD - self.mean_D) / self.scale_D @ self.weight_DK + self.bias_K


@dataclass(frozen=True)
class Spread:
    """Mean of the features of all images, a quarter of their covariance (what the loss of
    two classes curves like where nothing is known yet), and their number."""

    mean_D: Tensor
    quarter_DD: Tensor
    images: float


def probe_figures(
    train: Features, held_out: Features, num_classes: int, solver: str, world: World
) -> dict[str, float]:
    """Collective: top-1 and top-5 of the linear probe on `held_out`, what the sweep chose, whether
    that lies on an edge of what was tried, and of L-BFGS whether it came to its minimum.

    What is fitted lies on the device, if it fits, for the whole sweep. Rank 0 walks L-BFGS alone;
    all ranks share what is scored.
    """
    _require_labels(train, num_classes)
    order = np.random.default_rng(_SEED).permutation(len(train))
    kept, places = np.split(order, [max(1, len(train) // _HELD_OUT)])
    values, name = (L2, "probe_l2") if solver == "lbfgs" else (LEARNING_RATES, "probe_lr")
    scores, chosen_on = [], train.rows(kept).on(world.device)

    def fit(rows: Features, value: float, rounds: int, spread: Spread | None) -> Linear:
        if solver == "sgd":
            return fit_sgd(rows, num_classes, value, world)
        # Of walkers that differ by a bit, as kinds of CPU do, one would walk elsewhere.
        found = None
        if world.is_main:
            found = fit_lbfgs(rows, num_classes, value, world.device, rounds, spread)
        (probe, *_) = world.gather(found and found.on(torch.device("cpu")))
        assert probe is not None
        return probe.on(world.device)

    fitted = train.rows(places).on(world.device)
    # The same for every value.
    spread = spread_of(fitted, world.device) if solver == "lbfgs" and world.is_main else None
    with progress("probe", len(values) + 1, "fit", shown=world.is_main) as bar:
        for value in values:
            top1, _ = scored(fit(fitted, value, _SWEEP_ROUNDS, spread), chosen_on, world)
            scores.append(top1)
            bar.update()
        best = values[int(np.argmax(scores))]  # equals: the first, which is the more careful one
        del fitted, spread
        probe = fit(train.on(world.device), best, _ROUNDS, None)
        top1, top5 = scored(probe, held_out, world)
        bar.update()
    row = {
        "probe_top1": top1,
        "probe_top5": top5,
        name: best,
        "probe_on_edge": best in (values[0], values[-1]),
    }
    if probe.gradient is not None:
        row |= {"probe_gradient": probe.gradient, "probe_converged": probe.gradient <= _CONVERGED}
    return row


def scored(probe: Linear, held_out: Features, world: World) -> tuple[float, float]:
    """Collective: (top-1, top-5); ranks share the images."""
    mine = held_out.share(world)
    sums = torch.zeros(3, dtype=torch.float64, device=world.device)
    for x_BD, labels_BL in _chunks(mine):
        sums += hits(probe.logits(x_BD), labels_BL.to(world.device))
    top1, top5, images = world.sum(sums).tolist()
    return top1 / images, top5 / images


def fit_lbfgs(
    train: Features,
    num_classes: int,
    l2: float,
    device: torch.device,
    rounds: int = _ROUNDS,
    spread: Spread | None = None,
) -> Linear:
    """The minimum of the mean loss + l2 / 2 |weight|^2; the bias is not regularised.

    Softmax cross-entropy, or sigmoid summed over classes where images have several labels;
    `spread` is that of `train`, where it is known. Equal to scikit-learn's LogisticRegression with
    C = 1 / (images x l2).
    """
    spread = spread or spread_of(train, device)
    loss_of = _loss(train.labels_NL)

    def summed(params: Tensor) -> Tensor:
        """Mean loss and its gradient, flat."""
        params = params.detach().requires_grad_()
        total = torch.zeros(1 + params.numel(), dtype=torch.float64, device=device)
        for x_BD, labels_BL in _chunks(train):
            logits_BK = (x_BD.to(device).double() - spread.mean_D) @ params[:-1] + params[-1]
            loss = loss_of(logits_BK, labels_BL.to(device)) / spread.images
            (part,) = torch.autograd.grad(loss, params)
            total += torch.cat([loss.detach().view(1), part.flatten()])
        return total

    shape = len(spread.mean_D) + 1, num_classes
    start = torch.zeros(shape, dtype=torch.float64, device=device)
    fitted, left = _walk(summed, start, spread, l2, rounds)
    return Linear(fitted[:-1], fitted[-1], spread.mean_D, torch.ones_like(spread.mean_D), left)


def _walk(
    summed: Callable[[Tensor], Tensor], start: Tensor, spread: Spread, l2: float, rounds: int
) -> tuple[Tensor, float]:
    """(weights and bias, largest gradient left), by L-BFGS from a `start` of zeros.

    It walks in coordinates in which the curvature is about the same in all directions: features of
    one encoder differ by orders of magnitude in theirs, and it would not arrive.
    """
    root_DD, walked = _root(spread, l2), start.clone().requires_grad_()

    def weights() -> Tensor:
        weight_DK = torch.linalg.solve_triangular(root_DD.T, walked.detach()[:-1], upper=True)
        return torch.cat([weight_DK, walked.detach()[-1:]])

    def closure() -> Tensor:
        params = weights()
        total = summed(params)
        params[-1] = 0  # the bias does not decay
        slope = total[1:].view_as(params) + l2 * params
        steep_DK = torch.linalg.solve_triangular(root_DD, slope[:-1], upper=False)
        walked.grad = torch.cat([steep_DK, slope[-1:]])
        return total[0] + l2 / 2 * params.square().sum()

    optimizer = torch.optim.LBFGS(
        [walked],
        max_iter=rounds,
        history_size=20,
        tolerance_grad=_FLAT,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )
    optimizer.step(closure)
    closure()  # the line search may have asked last beside the point it took
    assert walked.grad is not None
    return weights(), walked.grad.abs().max().item()


def spread_of(train: Features, device: torch.device) -> Spread:
    """The mean and covariance of the features, on the device."""
    images, width = train.features_ND.shape
    mean_D = torch.zeros(width, dtype=torch.float64, device=device)
    for x_BD, _ in _chunks(train):
        mean_D += x_BD.to(device).double().sum(0)
    mean_D /= images
    squares_DD = torch.zeros(width, width, dtype=torch.float64, device=device)
    for x_BD, _ in _chunks(train):
        off_BD = x_BD.to(device).double() - mean_D
        squares_DD += off_BD.T @ off_BD
    return Spread(mean_D, squares_DD.mul_(0.25 / images), float(images))


def _root(spread: Spread, l2: float) -> Tensor:
    """Lower root of the curvature with l2, or with what rounding may have taken from it (width x
    epsilon of its sum) where l2 is less: it bends the walk alone, not the minimum."""
    curved_DD = spread.quarter_DD.clone()
    diagonal_D = curved_DD.diagonal()
    lost = len(diagonal_D) * torch.finfo(torch.float64).eps * diagonal_D.sum().item()
    diagonal_D.add_(max(l2, lost))
    root_DD: Tensor = torch.linalg.cholesky(curved_DD)
    return root_DD


def fit_sgd(
    train: Features, num_classes: int, lr: float, world: World, epochs: int = 100, batch: int = 1024
) -> Linear:
    """SGD with momentum 0.9 and a cosine to zero on standardised features, no weight decay
    (He et al. 2022, arXiv 2111.06377, appendix A.1, whose batch norm has no parameters either).

    Every rank computes the same; `lr` is of a batch of 256.
    """
    device = world.device
    mean_D, scale_D = (moment_D.to(device) for moment_D in _moments(train.features_ND))
    weight_DK = torch.zeros(len(mean_D), num_classes, dtype=torch.float64, device=device)
    probe = Linear(weight_DK, weight_DK.new_zeros(num_classes), mean_D, scale_D)
    params = [probe.weight_DK.requires_grad_(), probe.bias_K.requires_grad_()]
    loss_of, rng = _loss(train.labels_NL), np.random.default_rng(_SEED)
    batch = min(batch, len(train))
    steps = epochs * (len(train) // batch)
    optimizer = torch.optim.SGD(params, momentum=0.9)
    order = np.empty(0, dtype=np.int64)
    for step in range(steps):
        if len(order) < batch:
            order = rng.permutation(len(train))
        rows, order = train.rows(order[:batch]), order[batch:]
        peak = lr * batch / 256
        optimizer.param_groups[0]["lr"] = peak * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        logits_BK = probe.logits(rows.features_ND)
        (loss_of(logits_BK, rows.labels_NL.to(device)) / batch).backward()
        optimizer.step()
    weight_DK, bias_K = (param.detach() for param in params)
    return Linear(weight_DK, bias_K, mean_D, scale_D)


def one_hot(labels_BL: Tensor, num_classes: int) -> Tensor:
    """(B, classes) float64: 1 for every label; -1 is none."""
    shape = len(labels_BL), num_classes + 1  # the last is of no label
    filled = torch.zeros(shape, dtype=torch.float64, device=labels_BL.device)
    filled.scatter_(1, labels_BL.where(labels_BL >= 0, num_classes), 1.0)
    return filled[:, :num_classes]


def require_enough(images: int) -> None:
    """Raise `UserError` for a training set too small to hold a part of it out."""
    if images < 2 * _HELD_OUT:
        raise UserError(
            "--probe",
            f"{images} training images",
            f"{2 * _HELD_OUT} or more",
            "name a larger set with data.train",
        )


def _loss(labels_NL: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Summed over images: softmax for one label each, sigmoid for any number."""
    if labels_NL.shape[1] == 1:
        return lambda logits, labels: F.cross_entropy(logits, labels[:, 0], reduction="sum")
    return lambda logits, labels: F.binary_cross_entropy_with_logits(
        logits, one_hot(labels, logits.shape[1]), reduction="sum"
    )


def _moments(features_ND: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, deviation, at least 1e-6) in float64, of rows in parts: a set has no second copy."""
    parts, count = features_ND.split(ROWS), len(features_ND)
    mean_D = torch.stack([part.double().sum(0) for part in parts]).sum(0) / count
    squares = torch.stack([(part.double() - mean_D).square().sum(0) for part in parts])
    return mean_D, (squares.sum(0) / count).sqrt().clamp_min(1e-6)


def _chunks(features: Features) -> Sequence[tuple[Tensor, Tensor]]:
    parts = features.features_ND.split(ROWS), features.labels_NL.split(ROWS)
    return list(zip(*parts, strict=True))


def _require_labels(train: Features, num_classes: int) -> None:
    require_enough(len(train))
    if int(train.labels_NL.max()) < 0 or (
        train.labels_NL.shape[1] == 1 and int(train.labels_NL.min()) < 0
    ):
        raise UserError("--probe", "images without a label", "a label each", "set loss.kind")
    assert int(train.labels_NL.max()) < num_classes

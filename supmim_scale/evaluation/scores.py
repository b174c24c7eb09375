"""Figures that torchmetrics computes: average precision over classes, calibration."""

import torch
from torch import Tensor

from supmim_scale.evaluation.probe import one_hot
from supmim_scale.models.torchvision_ops import declare_missing_ops

declare_missing_ops()  # torchmetrics imports torchvision where there is one

from torchmetrics.functional.classification import (  # noqa: E402
    multiclass_calibration_error,
    multilabel_average_precision,
)

BINS = 15  # Guo et al. 2017 (arXiv 1706.04599), section 4


def mean_average_precision(logits_NK: Tensor, labels_NL: Tensor) -> float:
    """Mean over classes that occur of the average precision of their scores, in float64."""
    truth_NK = one_hot(labels_NL, logits_NK.shape[1]).long()
    occurs_K = truth_NK.any(dim=0)
    scores_NK, truth_NK = logits_NK.double().sigmoid()[:, occurs_K], truth_NK[:, occurs_K]
    if scores_NK.shape[1] == 1:  # torchmetrics wants two labels
        scores_NK, truth_NK = scores_NK.repeat(1, 2), truth_NK.repeat(1, 2)
    return float(
        multilabel_average_precision(
            scores_NK, truth_NK, num_labels=scores_NK.shape[1], average="macro"
        )
    )


def calibration(logits_NK: Tensor, labels_N: Tensor) -> dict[str, float]:
    """Expected calibration error over 15 bins of equal width, and the negative log-likelihood in
    nats, of the softmax."""
    logits_NK = logits_NK.double()
    error = multiclass_calibration_error(
        logits_NK.softmax(1), labels_N, num_classes=logits_NK.shape[1], n_bins=BINS, norm="l1"
    )
    nll = torch.nn.functional.cross_entropy(logits_NK, labels_N)
    return {"calibration_error": float(error), "nll": float(nll)}

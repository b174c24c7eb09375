"""Figures of scores: average precision over classes, calibration."""

import torch
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.nn import functional as F

from supmim_scale.evaluation.probe import one_hot

BINS = 15  # Guo et al. 2017 (arXiv 1706.04599), section 4


def mean_average_precision(logits_NK: Tensor, labels_NL: Tensor) -> float:
    """Mean over classes that occur of the average precision of their scores, in float64."""
    truth_NK = one_hot(labels_NL, logits_NK.shape[1])
    occurs_K = truth_NK.any(dim=0)
    scores_NK, truth_NK = logits_NK.double().sigmoid()[:, occurs_K], truth_NK[:, occurs_K]
    pairs = zip(truth_NK.T.cpu().numpy(), scores_NK.T.cpu().numpy(), strict=True)
    found = [average_precision_score(truth_N, scores_N) for truth_N, scores_N in pairs]
    return float(sum(found) / len(found))


def calibration(logits_NK: Tensor, labels_N: Tensor) -> dict[str, float]:
    """Expected calibration error over 15 bins of equal width, and the negative log-likelihood in
    nats, of the softmax."""
    logits_NK = logits_NK.double()
    sure_N, chosen_N = logits_NK.softmax(1).max(1)
    bins_N = (sure_N * BINS).ceil().long().clamp(1, BINS) - 1
    gaps = torch.zeros(BINS, dtype=torch.float64, device=logits_NK.device)
    gaps.index_add_(0, bins_N, (chosen_N == labels_N).double() - sure_N)
    error = gaps.abs().sum() / len(labels_N)
    nll = F.cross_entropy(logits_NK, labels_N)
    return {"calibration_error": float(error), "nll": float(nll)}

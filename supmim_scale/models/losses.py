"""The losses of the joint step, in fp32 whatever the model's precision is."""

import torch
from torch import Tensor
from torch.nn import functional as F


def class_targets(labels_BL: Tensor, num_classes: int, kind: str, smoothing: float) -> Tensor:
    """`(B, K)` target shares from label ids padded with -1.

    softmax: rows sum to 1 (several labels share it); sigmoid: 1 for every label. `smoothing`
    moves that share of a row's sum evenly over all classes.
    """
    valid_BL = labels_BL >= 0
    targets_BK = torch.zeros(len(labels_BL), num_classes, device=labels_BL.device)
    targets_BK.scatter_add_(1, labels_BL.clamp(min=0), valid_BL.float()).clamp_(max=1.0)
    if kind == "softmax":
        targets_BK /= targets_BK.sum(dim=1, keepdim=True).clamp(min=1.0)
    if smoothing:
        spread_B1 = smoothing * targets_BK.sum(dim=1, keepdim=True) / num_classes
        targets_BK = (1 - smoothing) * targets_BK + spread_B1
    return targets_BK


def class_loss(logits_BK: Tensor, targets_BK: Tensor, kind: str) -> Tensor:
    """Mean over images of the softmax or (summed over classes) sigmoid cross-entropy.

    none: 0, with the head still in the graph: a parameter without a gradient is wrong under ZeRO.
    """
    if kind == "none":
        return 0.0 * logits_BK.float().sum()
    if kind == "softmax":
        return F.cross_entropy(logits_BK.float(), targets_BK)
    loss = F.binary_cross_entropy_with_logits(logits_BK.float(), targets_BK, reduction="sum")
    return loss / len(logits_BK)


def mim_loss(pred_BMP: Tensor, target: Tensor, weight_BM: Tensor) -> Tensor:
    """Mean over images of the weighted mean over their masked patches.

    `target` (B, M) of code ids: cross-entropy over P codes. `target` (B, M, P) of values: mean
    squared error over P. The mean is by image first, so that it does not depend on how a batch
    is split.
    """
    pred_BMP = pred_BMP.float()
    if target.dim() == 2:
        loss_BM = F.cross_entropy(pred_BMP.transpose(1, 2), target, reduction="none")
    else:
        loss_BM = (pred_BMP - target).square().mean(dim=-1)
    return (loss_BM * weight_BM).sum() / len(weight_BM)

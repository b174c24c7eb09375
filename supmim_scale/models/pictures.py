"""Sheets of images; the reconstruction grid: what the encoder saw, the decoder made of it."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from supmim_scale.models.joint import JointOutput
from supmim_scale.models.masking import Masks
from supmim_scale.models.targets import PatchTarget

_COLUMNS = 8
_GREY = 0.5
_SMALLEST_SIDE = 128  # pixels of an image in a sheet; smaller ones are enlarged
_GAP = 4  # white pixels between images


def enlarged(images_BCHW: Tensor) -> Tensor:
    """Images by the whole factor that makes them 128 pixels or more."""
    factor = -(-_SMALLEST_SIDE // images_BCHW.shape[-1])
    return images_BCHW.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)


def tiled(rows: Sequence[Tensor]) -> Tensor:
    """(3, height, width): rows of images of one size, each (B, 3, H, W), on white."""
    spaced = [F.pad(row_BCHW, (0, _GAP, 0, _GAP), value=1.0) for row_BCHW in rows]
    sheet = torch.cat([torch.cat(list(row_BCHW), dim=2) for row_BCHW in spaced], dim=1)
    return sheet[:, :-_GAP, :-_GAP]


@torch.no_grad()
def reconstruction_grid(
    images_BCHW: Tensor,
    masks: Masks,
    output: JointOutput,
    target: PatchTarget,
    mean: float,
    std: float,
) -> Tensor:
    """(3, height, width) in [0, 1]: rows of input, masked input, input with predicted patches."""
    assert output.pred_BMP is not None
    images = images_BCHW[:_COLUMNS].float()
    B, N = len(images), masks.mask_BN.shape[1]
    pred_BMP = output.pred_BMP[:B].float()
    index_BMP = masks.masked_BM[:B].unsqueeze(-1).expand_as(pred_BMP)
    pred_BNP = pred_BMP.new_zeros(B, N, pred_BMP.shape[-1]).scatter(1, index_BMP, pred_BMP)
    painted = target.pictures(images, pred_BNP)
    side, grid = images.shape[-1], round(N**0.5)
    hidden = masks.mask_BN[:B].view(B, 1, grid, grid).float()
    hidden_B1HW = hidden.repeat_interleave(side // grid, 2).repeat_interleave(side // grid, 3)
    grey = torch.full_like(images, (_GREY - mean) / std)
    rows = [images, torch.lerp(images, grey, hidden_B1HW), torch.lerp(images, painted, hidden_B1HW)]
    unit = [(row * std + mean).clamp(0, 1) for row in rows]
    return tiled([enlarged(row) for row in unit]).cpu()

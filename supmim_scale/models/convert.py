"""Checkpoints of other projects, as timm gives them, in the tensors of a plain ViT.

MAE's and AugReg's are plain already. DINOv2's have LayerScale, and BEiT's too, under another name
and with biases of q and v alone: both are folded into the weights around them, which changes
nothing. BEiT's relative positions have no place in a plain ViT: they are left, and said.
"""

import re

import torch
from torch import Tensor

_SCALES = (
    ("ls1.gamma", "attn.proj"),
    ("ls2.gamma", "mlp.fc2"),
    ("gamma_1", "attn.proj"),
    ("gamma_2", "mlp.fc2"),
)
_BLOCK = re.compile(r"blocks\.\d+\.")
_RELATIVE = ("relative_position_bias_table", "relative_position_index", "rel_pos_bias")
_OF_TRAINING = ("mask_token",)


def plain_tensors(given: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """(tensors of a plain ViT, names of those left because it has no place for them)."""
    tensors = dict(given)
    left = [n for n in tensors if any(part in n for part in (*_RELATIVE, *_OF_TRAINING))]
    for name in left:
        del tensors[name]
    for block in sorted({match[0] for name in given if (match := _BLOCK.match(name))}):
        _join_biases(tensors, f"{block}attn.")
        for scale, layer in _SCALES:
            gamma_D = tensors.pop(block + scale, None)
            if gamma_D is not None:
                _scale(tensors, block + layer, gamma_D)
    return tensors, left


def has_relative_positions(left: list[str]) -> bool:
    """Whether what was left are BEiT's positions, so that there may be no absolute ones."""
    return any(part in name for name in left for part in _RELATIVE)


def _join_biases(tensors: dict[str, Tensor], attention: str) -> None:
    """BEiT's biases of q and v, with zeros for k, as one of qkv."""
    q_D, v_D = (tensors.pop(f"{attention}{which}_bias", None) for which in "qv")
    k_D = tensors.pop(f"{attention}k_bias", None)
    if q_D is not None and v_D is not None:
        middle_D = torch.zeros_like(q_D) if k_D is None else k_D
        tensors[f"{attention}qkv.bias"] = torch.cat([q_D, middle_D, v_D])


def _scale(tensors: dict[str, Tensor], layer: str, gamma_D: Tensor) -> None:
    """gamma * (W x + b) as one linear layer."""
    weight = tensors.get(f"{layer}.weight")
    if weight is None or len(weight) != len(gamma_D):
        return  # another architecture, which is told where the tensors are taken
    tensors[f"{layer}.weight"] = weight * gamma_D.unsqueeze(1)
    if f"{layer}.bias" in tensors:
        tensors[f"{layer}.bias"] = tensors[f"{layer}.bias"] * gamma_D

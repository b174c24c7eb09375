"""Stochastic depth that computes residual branches on the kept samples alone."""

from collections.abc import Callable

import torch
from torch import Tensor

from supmim_scale.errors import UserError
from supmim_scale.models.blocks import OnePass, wrap_pass
from supmim_scale.models.encoder import Block, VisionTransformer
from supmim_scale.models.flops import kept_samples


def compute_kept_samples(encoder: VisionTransformer) -> None:
    """Replace timm's drop path, which computes every sample and multiplies some by 0.

    Each branch takes a random subset of fixed size, so that shapes are static, and what it adds
    is scaled by the inverse of the kept share: DINOv2's "efficient stochastic depth" (Oquab et
    al. 2023, arXiv 2304.07193, section 5). How many samples are dropped no longer varies.

    Raises `UserError` where a block is not timm's plain one.
    """
    for block in encoder.blocks:
        if type(block) is not Block:
            raise UserError(
                "model.drop_path_kept",
                f"blocks of type {type(block).__name__}",
                "timm's plain Block",
                "set model.drop_path_kept=false",
            )
        wrap_pass(block, lambda _, block=block: _on_kept(block))  # type: ignore[misc]


def _on_kept(block: Block) -> OnePass:
    def one_pass(tokens_BTD: Tensor) -> Tensor:
        rate = getattr(block.drop_path1, "drop_prob", 0.0) if block.training else 0.0
        tokens_BTD = _residual(tokens_BTD, rate, lambda x: block.ls1(block.attn(block.norm1(x))))
        return _residual(tokens_BTD, rate, lambda x: block.ls2(block.mlp(block.norm2(x))))

    return one_pass


def _residual(tokens_BTD: Tensor, rate: float, branch: Callable[[Tensor], Tensor]) -> Tensor:
    if not rate:
        return tokens_BTD + branch(tokens_BTD)
    B = len(tokens_BTD)
    kept = kept_samples(B, rate)
    index_K = torch.randperm(B, device=tokens_BTD.device)[:kept]
    added_KTD = branch(tokens_BTD.index_select(0, index_K)).to(tokens_BTD.dtype)
    return tokens_BTD.index_add(0, index_K, added_KTD, alpha=B / kept)

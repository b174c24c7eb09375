"""Recomputation of transformer blocks in backward, by policy.

Only `torch.utils.checkpoint` in its non-reentrant form is used: the reentrant one, and all of
`deepspeed.checkpointing`, fail when a module runs twice in a step, as the encoder does here.
"""

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from supmim_scale.models.blocks import OnePass, wrap_pass
from supmim_scale.models.flops import is_checkpointed

_aten = torch.ops.aten
# What selective checkpointing keeps: results of matrix products and of every attention kernel.
_SAVED = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten.baddbmm.default,
    _aten._scaled_mm.default,  # fp8
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
}


def apply_activation_checkpointing(
    stacks: Iterable[nn.Sequential], policy: str, every_k: int
) -> int:
    """Make the policy's blocks recompute; returns their number. Parameter names do not change."""
    options: dict[str, Any] = {"use_reentrant": False}
    if policy == "selective":
        options["context_fn"] = _selective_contexts
    chosen = [
        block
        for stack in stacks
        for index, block in enumerate(stack)
        if is_checkpointed(index, policy, every_k)
    ]
    for block in chosen:
        wrap_pass(block, lambda one_pass: _recomputing(one_pass, options))
    return len(chosen)


def autocast_bf16(device_type: str, policy: str, *, enabled: bool = True) -> torch.autocast:
    """bf16 autocast whose casts recomputation repeats.

    With its cache a second pass of the encoder finds the weights cast by the first, and selective
    recomputation, which runs without the first, finds a cast that was not there.
    """
    is_cached = policy != "selective"
    return torch.autocast(device_type, torch.bfloat16, enabled=enabled, cache_enabled=is_cached)


def _recomputing(one_pass: OnePass, options: dict[str, Any]) -> OnePass:
    @functools.wraps(one_pass)
    def run(tokens_BTD: torch.Tensor) -> torch.Tensor:
        return checkpoint(one_pass, tokens_BTD, **options)  # type: ignore[no-any-return]

    return run


def _selective_contexts() -> Any:
    return create_selective_checkpoint_contexts(_keep_products)


def _keep_products(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    keep = operator in _SAVED
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

"""AdamW with true no-decay groups, and schedules as pure functions of the applied step."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from supmim_scale.config.experiment import OptimConfig
from supmim_scale.models.joint import JointModel, depth_of, is_head, no_decay_names


def lr_factor_at(step: int, num_steps: int, optim: OptimConfig) -> float:
    """Share of the peak learning rate for the step with index `step` (0 is the first).

    Linear warm-up to 1 at `warmup_steps`; then `cosine` to 0 at `num_steps`, `wsd` constant, or
    `rsqrt` sqrt(t0 / max(t, t0)) counted from the end of warm-up (Zhai et al. 2022, section 3.5),
    the last two with a linear cool-down to 0 over the last `cooldown_steps`.
    """
    if step < optim.warmup_steps:
        return (step + 1) / optim.warmup_steps
    after = step - optim.warmup_steps
    if optim.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * after / max(1, num_steps - optim.warmup_steps)))
    t0 = optim.rsqrt_timescale
    factor = math.sqrt(t0 / max(after, t0)) if optim.schedule == "rsqrt" else 1.0
    left = num_steps - step
    return factor * min(1.0, left / optim.cooldown_steps) if optim.cooldown_steps else factor


def parameter_groups(model: JointModel, optim: OptimConfig) -> list[dict[str, Any]]:
    """Groups of equal weight decay and learning-rate scale, with their parameters' names.

    Must see the whole parameters: ZeRO-3 leaves shards of shape (0,) behind.
    """
    no_decay, num_blocks = no_decay_names(model), len(model.encoder.blocks)
    body, head = optim.weight_decay, optim.head_weight_decay
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, param in model.named_parameters():
        decay = head if is_head(name) and head is not None else body
        decay = 0.0 if name in no_decay else decay
        scale = optim.layer_decay ** (num_blocks + 1 - depth_of(name, num_blocks))
        group = groups.setdefault(
            (scale, decay), {"params": [], "names": [], "lr_scale": scale, "weight_decay": decay}
        )
        group["params"].append(param)
        group["names"].append(name)
    return list(groups.values())


def build_adamw(groups: Iterable[dict[str, Any]], optim: OptimConfig) -> torch.optim.AdamW:
    """torch's AdamW, fused: one kernel for all parameters, none of whose steps the host reads.
    Its learning rate is set at every step (`set_lr`)."""
    betas = (optim.beta1, optim.beta2)
    return torch.optim.AdamW(list(groups), betas=betas, eps=optim.eps, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group `lr` times its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def largest_block(stacks: Iterable[nn.Sequential]) -> int:
    """Parameters of the largest transformer block."""
    return max(sum(p.numel() for p in block.parameters()) for s in stacks for block in s)

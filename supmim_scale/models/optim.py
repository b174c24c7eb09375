"""AdamW with true no-decay groups, and schedules as pure functions of the applied step."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from supmim_scale.models.joint import JointModel, depth_of, is_head, no_decay_names


def lr_factor_at(
    step: int,
    num_steps: int,
    schedule: str,
    warmup_steps: int = 0,
    cooldown_steps: int = 0,
    timescale: int = 10_000,
) -> float:
    """Share of the peak learning rate for the step with index `step` (0 is the first).

    Linear warm-up to 1 at `warmup_steps`; then `cosine` to 0 at `num_steps`, `wsd` constant, or
    `rsqrt` sqrt(t0 / max(t, t0)) counted from the end of warm-up (Zhai et al. 2022, section 3.5),
    the last two with a linear cool-down to 0 over the last `cooldown_steps`.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    after = step - warmup_steps
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * after / max(1, num_steps - warmup_steps)))
    factor = math.sqrt(timescale / max(after, timescale)) if schedule == "rsqrt" else 1.0
    left = num_steps - step
    return factor * min(1.0, left / cooldown_steps) if cooldown_steps else factor


def parameter_groups(
    model: JointModel, *, weight_decay: float, head_weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Groups of equal weight decay and learning-rate scale, with their parameters' names.

    Must see the whole parameters: ZeRO-3 leaves shards of shape (0,) behind.
    """
    no_decay, num_blocks = no_decay_names(model), len(model.encoder.blocks)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, param in model.named_parameters():
        decay = head_weight_decay if is_head(name) else weight_decay
        decay = 0.0 if name in no_decay else decay
        scale = layer_decay ** (num_blocks + 1 - depth_of(name, num_blocks))
        group = groups.setdefault(
            (scale, decay), {"params": [], "names": [], "lr_scale": scale, "weight_decay": decay}
        )
        group["params"].append(param)
        group["names"].append(name)
    return list(groups.values())


def build_adamw(
    groups: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float
) -> torch.optim.AdamW:
    """torch's AdamW, fused: one kernel for all parameters, none of whose steps the host reads."""
    return torch.optim.AdamW(list(groups), lr=lr, betas=betas, eps=eps, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group `lr` times its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def largest_block(stacks: Iterable[nn.Sequential]) -> int:
    """Parameters of the largest transformer block."""
    return max(sum(p.numel() for p in block.parameters()) for s in stacks for block in s)

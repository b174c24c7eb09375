"""What an engine is told, besides the model."""

from dataclasses import dataclass
from typing import Any, Literal

import torch


@dataclass(frozen=True)
class EngineSettings:
    """Everything an engine needs beside the model; `ds_config` None: plain PyTorch."""

    ds_config: dict[str, Any] | None
    precision: str
    micro_batch: int
    accumulation: int
    policy: str
    every_k: int
    fp8: str
    compiles: bool
    attention: str  # a kernel by name, or torch
    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    head_weight_decay: float
    layer_decay: float
    clip_grad_norm: float
    ema_decay: float


def resolve_precision(
    precision: Literal["auto", "fp32", "bf16"], device: torch.device
) -> Literal["fp32", "bf16"]:
    """`auto` as the device has it: bf16 on GPUs, fp32 on a CPU."""
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" else "fp32"

"""The settings of an engine, besides the model."""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from supmim_scale.config.experiment import OptimConfig
from supmim_scale.config.running import EngineConfig


@dataclass(frozen=True)
class EngineSettings:
    """Two sections of the recipe as they are, and what follows from them on these ranks.

    `ds_config`: DeepSpeed's, None for plain PyTorch. `precision`: fp32 or bf16. `attention`: a
    kernel by name, or torch.
    """

    engine: EngineConfig
    optim: OptimConfig
    ds_config: dict[str, Any] | None
    precision: str
    micro_batch: int
    accumulation: int
    attention: str

    @property
    def policy(self) -> str:
        """What backward recomputes."""
        return self.engine.activation_checkpointing


def resolve_precision(
    precision: Literal["auto", "fp32", "bf16"], device: torch.device
) -> Literal["fp32", "bf16"]:
    """Resolve `auto` for this device: bf16 on GPUs, fp32 on a CPU."""
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" else "fp32"

"""What the training loop asks of an engine, and the choice between the two there are."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from supmim_scale.engine.activation_checkpointing import apply_activation_checkpointing
from supmim_scale.engine.compiling import compile_blocks
from supmim_scale.engine.fp8 import use_fp8_linears
from supmim_scale.engine.pieces import Counters, Piece, ReadValues
from supmim_scale.engine.world import World
from supmim_scale.errors import UserError
from supmim_scale.models.joint import JointModel, JointOutput
from supmim_scale.optim import build_adamw, parameter_groups


class Engine(Protocol):
    """Runs forward, backward and update of a `JointModel`, sharded or not."""

    @property
    def applied_steps(self) -> int:
        """Steps that changed the weights."""
        ...

    @property
    def skipped_steps(self) -> int:
        """Steps thrown away for a non-finite gradient."""
        ...

    def forward_backward(self, *args: Any) -> JointOutput:
        """Collective: losses of one micro-batch; its gradient is added."""
        ...

    def apply(self, lr: float) -> None:
        """Collective: clip, update and average the weights after the last micro-batch.

        Waits, and nothing else in a step does: what is read back decides whether it is skipped.
        """
        ...

    @property
    def reads_per_step(self) -> int:
        """The most values that `apply` reads back from the device."""
        ...

    def grad_norm(self) -> float:
        """Waits: global gradient norm before clipping, of the last step."""
        ...

    def named_weights(self, *, ema: bool) -> "dict[str, Tensor]":
        """Collective, waits: whole fp32 weights on the CPU of rank 0; empty elsewhere."""
        ...

    def counters(self) -> Counters:
        """Steps counted so far."""
        ...

    def pieces(self) -> Iterator[Piece]:
        """Waits: copies of everything this rank owns of the training state."""
        ...

    def restore(self, read: ReadValues, counters: Counters) -> None:
        """Collective: take over a training state, from pieces of any number of ranks."""
        ...


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


def build_engine(model: JointModel, settings: EngineSettings, world: World) -> Engine:
    """fp8, then checkpointing, then compiling, then the optimizer over whole parameters, then
    sharding: in this order."""
    if settings.fp8 != "none":
        use_fp8_linears(model.block_lists(), settings.fp8, world.device)
    apply_activation_checkpointing(model.block_lists(), settings.policy, settings.every_k)
    if settings.compiles:
        compile_blocks(model.block_lists())
    model.to(world.device)
    groups = parameter_groups(
        model,
        weight_decay=settings.weight_decay,
        head_weight_decay=settings.head_weight_decay,
        layer_decay=settings.layer_decay,
    )
    optimizer = build_adamw(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps)
    if settings.ds_config is not None:
        from supmim_scale.engine.zero import ZeroEngine

        return ZeroEngine(model, optimizer, settings)
    if world.world_size > 1:
        raise UserError(
            "engine.kind",
            f"plain with {world.world_size} ranks",
            "one process",
            "set engine.kind=deepspeed",
        )
    from supmim_scale.engine.plain import PlainEngine

    return PlainEngine(model, optimizer, settings)


def resolve_precision(
    precision: Literal["auto", "fp32", "bf16"], device: torch.device
) -> Literal["fp32", "bf16"]:
    """`auto` as the device has it: bf16 on GPUs, fp32 on a CPU."""
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" else "fp32"

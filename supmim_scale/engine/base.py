"""What the training loop asks of an engine, and the choice between the two there are."""

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor

from supmim_scale.engine.activation_checkpointing import apply_activation_checkpointing
from supmim_scale.engine.compile import compile_blocks
from supmim_scale.engine.fp8 import use_fp8_linears
from supmim_scale.engine.settings import EngineSettings
from supmim_scale.engine.state import Counters, Piece, ReadValues
from supmim_scale.errors import UserError
from supmim_scale.launch.world import World
from supmim_scale.models.joint import JointModel, JointOutput
from supmim_scale.models.optim import build_adamw, parameter_groups


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


def build_engine(model: JointModel, settings: EngineSettings, world: World) -> Engine:
    """fp8, then checkpointing, then compiling, then the optimizer over whole parameters, then
    sharding: in this order."""
    engine, stacks = settings.engine, model.block_lists()
    if engine.fp8 != "none":
        use_fp8_linears(stacks, engine.fp8, world.device)
    apply_activation_checkpointing(stacks, settings.policy, engine.checkpoint_every_k)
    if engine.compile:
        compile_blocks(stacks)
    model.to(world.device)
    optimizer = build_adamw(parameter_groups(model, settings.optim), settings.optim)
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

"""Selective checkpointing by a memory budget: as few recomputed blocks as keep below it."""

from dataclasses import replace
from typing import Literal

from supmim_scale.config import RunConfig
from supmim_scale.config.checks import accumulation_steps
from supmim_scale.errors import UserError
from supmim_scale.planner.setting import RecipeMemory
from supmim_scale.units import gib


def within_budget(config: RunConfig, world_size: int, auto: Literal["fp32", "bf16"]) -> RunConfig:
    """The recipe with the k of `first_k` that its `engine.activation_budget` allows.

    Activations are the planner's: the largest sum alive beside parameters, inputs and what the
    engine keeps (with plain PyTorch and no accumulation, gradients are in it), traced with the
    real model under fake tensors, some seconds for each halving of the number of blocks. `auto`:
    what that precision is on the device. Raises `UserError` where even recomputing every block
    needs more.
    """
    budget = config.engine.activation_budget
    if budget is None:
        return config
    precision = auto if config.engine.precision == "auto" else config.engine.precision
    planned = RecipeMemory(replace(config, engine=replace(config.engine, precision=precision)))
    micro_batch, accumulation = accumulation_steps(config, world_size)

    def recomputing(blocks: int) -> RunConfig:
        chosen = {"checkpoint_every_k": blocks} if blocks else {"activation_checkpointing": "none"}
        engine = replace(config.engine, activation_budget=None, **chosen)  # type: ignore[arg-type]
        return replace(config, engine=engine)

    def needed(blocks: int) -> int:
        return planned.activations(recomputing(blocks), micro_batch, accumulation).peak

    low, high, limit = 0, planned.depth, budget * 2**30  # `low` to `high` recomputed blocks
    least = needed(high)
    if least > limit:
        raise UserError(
            "engine.activation_budget",
            f"{budget:g} GiB, and {gib(least)} needed with every block recomputed",
            "room for one block's activations and every block's input",
            "raise it, or lower engine.micro_batch",
        )
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if needed(middle) <= limit else (middle + 1, high)
    return recomputing(low)

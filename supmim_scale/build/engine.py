"""From a recipe to the settings of its engine."""

import torch

from supmim_scale.build.model import attention_shapes
from supmim_scale.config.schema import RunConfig
from supmim_scale.engine.attention import resolve_attention
from supmim_scale.engine.ds_config import load_ds_config
from supmim_scale.engine.settings import EngineSettings
from supmim_scale.launch.world import World


def choose_attention(config: RunConfig, micro_batch: int, precision: str, world: World) -> str:
    """Collective, waits: the recipe's attention kernel; for `fastest` the one rank 0 measured."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    shapes = attention_shapes(config, micro_batch)
    name, seconds = resolve_attention(config.engine.attention, shapes, dtype, world.device)
    if len(seconds) > 1 and world.is_main:
        times = ", ".join(f"{kernel} {s * 1e3:.2f} ms" for kernel, s in seconds.items())
        print(f"attention kernels, measured: {times}", flush=True)
    return str(world.gather(name)[0])


def engine_settings(
    config: RunConfig, micro_batch: int, accumulation: int, precision: str, attention: str
) -> EngineSettings:
    """The engine's settings from the recipe; `attention` as `choose_attention` gives it."""
    engine = config.engine
    ds_config = load_ds_config(engine.ds_config) if engine.kind == "deepspeed" else None
    return EngineSettings(
        engine, config.optim, ds_config, precision, micro_batch, accumulation, attention
    )

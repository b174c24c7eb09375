"""How a training step is run: processes, DeepSpeed or plain PyTorch, recomputation, EMA."""

from supmim_scale.engine.base import Engine, build_engine
from supmim_scale.launch.join import join_world, leave_world
from supmim_scale.launch.world import World

__all__ = ["Engine", "World", "build_engine", "join_world", "leave_world"]

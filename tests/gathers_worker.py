"""Every rank is started by tests: counts the all-gathers of a ZeRO-3 step's two halves.

torchrun --nproc-per-node 2 tests/gathers_worker.py OUT.json NAME:OVERRIDE,OVERRIDE ...
"""

import json
import sys

import numpy as np
from torch.utils._python_dispatch import TorchDispatchMode
from zero_worker import SIDE, TINY, batch

from supmim_scale.build.engine import engine_settings
from supmim_scale.build.model import mask_spec, recipe_model
from supmim_scale.config import load_config
from supmim_scale.engine import build_engine, ds_config
from supmim_scale.launch.join import join_world, leave_world
from supmim_scale.models.targets import PixelTarget

DEPTH, MICRO = 8, 4


class Gathers(TorchDispatchMode):
    """Counts the all-gathers that are begun inside, and their elements."""

    def __init__(self):
        super().__init__()
        self.begun, self.elements = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "allgather" in str(func):
            self.begun += 1
            self.elements += args[0].numel()
        return func(*args, **(kwargs or {}))


def count(overrides, world):
    """Three steps; counts of the last, once DeepSpeed knows the order of the modules."""
    config = load_config(
        "smoke", [*TINY, f"model.depth={DEPTH}", "model.decoder_width=32", *overrides]
    )
    target = PixelTarget(8)
    model = recipe_model(config, target.out_features)
    engine = build_engine(model, engine_settings(config, MICRO, 1, "fp32", "torch"), world)
    ids = np.arange(world.rank * MICRO, (world.rank + 1) * MICRO)
    arguments = batch(ids, mask_spec(config, SIDE // 8), target, config)
    at_block = []
    for block in model.encoder.blocks:
        block.register_forward_pre_hook(lambda *_: at_block.append(gathers.elements))
    for _ in range(3):
        at_block.clear()
        with Gathers() as gathers:
            engine.forward_backward(*arguments)
        engine.apply(1e-3)
    return {"gathers": gathers.begun, "elements": gathers.elements, "at_block": at_block}


def main():
    """Run the jobs one after another, with the knobs in a large model's ratio to its blocks."""
    out, *jobs = sys.argv[1:]
    ds_config._VIT_B_BLOCK = 0
    world = join_world()
    results = {}
    for job in jobs:
        name, _, overrides = job.partition(":")
        results[name] = count(overrides.split(","), world)
    if world.is_main:
        with open(out, "w") as file:
            json.dump(results, file)
    leave_world(world)


if __name__ == "__main__":
    main()

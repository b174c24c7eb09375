"""Run under torchrun by tests: train tiny models on fixed data and print what happened as JSON.

    torchrun --nproc-per-node 2 tests/zero_worker.py OUT.json NAME=OVERRIDE,OVERRIDE ...
"""

import json
import sys

import numpy as np
import torch

from supmim_scale import assemble
from supmim_scale.config import load_config
from supmim_scale.config.checks import accumulation_steps
from supmim_scale.engine import build_engine, join_world, leave_world
from supmim_scale.models.losses import class_targets
from supmim_scale.models.masking import draw_masks
from supmim_scale.models.targets import PixelTarget
from supmim_scale.optim import lr_factor_at
from supmim_scale.run import engine_settings

STEPS = 20
TINY = [
    "model.width=32", "model.depth=4", "model.heads=2", "model.image_size=32", "mim.target=pixel",
    "optim.global_batch=8", "engine.precision=fp32", f"optim.steps={STEPS}", "optim.warmup_steps=4",
    "model.class_token=true", "optim.layer_decay=0.9", "optim.ema_decay=0.9",
]  # fmt: skip


def run(world, overrides, steps=STEPS):
    """Losses, gradient norms and final weight sums of one tiny training."""
    config = load_config("smoke", [*TINY, *overrides])
    micro, accumulation = accumulation_steps(config, world.world_size)
    target = PixelTarget(8)
    model = assemble.joint_model(config, target.out_features)
    start = {name: param.std().item() for name, param in model.named_parameters()}
    engine = build_engine(model, engine_settings(config, micro, accumulation, "fp32"), world)
    before = engine.named_weights(ema=False)
    spec = assemble.mask_spec(config, 4)
    losses, norms, masks_seen = [], [], []
    for step in range(steps):
        total = torch.zeros((), dtype=torch.float64)
        for part in range(accumulation):
            first = (step * accumulation + part) * micro * world.world_size + world.rank * micro
            ids = np.arange(first, first + micro)
            ids %= 24  # seen again, so that there is something to learn
            images = torch.stack(
                [torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(int(i))) for i in ids]
            )
            labels = torch.from_numpy(ids % 16)[:, None]
            targets = class_targets(labels, 16, "softmax", 0.1)
            masks = draw_masks(spec, config.seed, np.zeros_like(ids), ids)
            masks_seen += [[int(i), mask.int().tolist()] for i, mask in zip(ids, masks.mask_BN)]
            torch.manual_seed(step)
            arguments = (images, targets, masks, target(images)) if config.mim.weight else (
                images, targets,
            )
            output = engine.forward_backward(*arguments)
            total += output.loss.detach().double() / accumulation / world.world_size
        engine.apply(config.optim.lr * lr_factor_at(step, steps, "cosine", 4))
        losses.append(world.sum(total).item())
        norms.append(engine.grad_norm())
    after, ema = engine.named_weights(ema=False), engine.named_weights(ema=True)
    return {
        "losses": losses,
        "norms": norms,
        "masks": masks_seen,
        "init_std_model": start,
        "init_std_engine": {name: w.std().item() for name, w in before.items()},
        "weights": {name: w.double().sum().item() for name, w in after.items()},
        "ema": {name: w.double().sum().item() for name, w in ema.items()},
        "applied_steps": engine.applied_steps,
    }


def main():
    out, *jobs = sys.argv[1:]
    world = join_world()
    results = {}
    for job in jobs:
        name, _, overrides = job.partition(":")
        results[name] = run(world, [o for o in overrides.split(",") if o])
    if world.is_main:
        with open(out, "w") as file:
            json.dump(results, file)
    leave_world(world)


if __name__ == "__main__":
    main()

"""Every rank is started by tests: trains tiny models on fixed data, writes what happened as JSON.

torchrun --nproc-per-node 2 tests/zero_worker.py OUT.json NAME:OVERRIDE,OVERRIDE ...

The override `poison=STEP` feeds one NaN image in that step.
"""

import json
import sys
from dataclasses import replace

import numpy as np
import torch
from torch._dynamo.utils import counters

from supmim_scale.build.engine import engine_settings
from supmim_scale.build.model import mask_spec, recipe_model
from supmim_scale.config import load_config
from supmim_scale.config.checks import accumulation_steps
from supmim_scale.engine import build_engine
from supmim_scale.launch.join import join_world, leave_world
from supmim_scale.models.losses import class_targets
from supmim_scale.models.masking import draw_masks
from supmim_scale.models.optim import lr_factor_at
from supmim_scale.models.targets import PixelTarget

STEPS, SIDE, CLASSES = 12, 32, 16
TINY = [
    "model.width=32",
    "model.depth=2",
    "model.decoder_depth=1",
    "model.heads=2",
    f"model.image_size={SIDE}",
    "model.class_token=true",
    "mim.target=pixel",
    "optim.global_batch=8",
    "optim.lr=0.003",
    f"optim.steps={STEPS}",
    "optim.warmup_steps=4",
    "optim.weight_decay=0.5",
    "optim.layer_decay=0.9",
    "optim.ema_decay=0.9",
    "engine.precision=fp32",
]


def batch(ids, spec, target, config):
    """Arguments of the joint forward for the given samples, functions of their ids alone."""
    ids = ids % 24  # seen again, so that there is something to learn
    generators = [torch.Generator().manual_seed(int(i)) for i in ids]
    images = torch.stack([torch.randn(3, SIDE, SIDE, generator=g) for g in generators])
    targets = class_targets(torch.from_numpy(ids % CLASSES)[:, None], CLASSES, "softmax", 0.1)
    if not config.mim.weight:
        return (images, targets)
    masks = draw_masks(spec, config.seed, np.zeros_like(ids), ids)
    return (images, targets, masks, target(images))


def run(world, overrides):
    """Losses, gradient norms and sums of weights of one tiny training."""
    poison = [int(o.partition("=")[2]) for o in overrides if o.startswith("poison=")]
    config = load_config("smoke", [*TINY, *(o for o in overrides if not o.startswith("poison="))])
    micro, accumulation = accumulation_steps(config, world.world_size)
    target = PixelTarget(8)
    model = recipe_model(config, target.out_features)
    of_model = {name: param.detach().clone() for name, param in model.named_parameters()}
    precision = config.engine.precision
    torch._dynamo.reset()
    counters.clear()
    engine = build_engine(
        model, engine_settings(config, micro, accumulation, precision, "torch"), world
    )
    of_engine = engine.named_weights(ema=False)
    spec = mask_spec(config, SIDE // 8)
    losses, norms, seen = [], [], []
    schedule = replace(config.optim, schedule="cosine", warmup_steps=4)
    for step in range(STEPS):
        total = torch.zeros((), dtype=torch.float64)
        for part in range(accumulation):
            place = (step * accumulation + part) * world.world_size + world.rank
            ids = np.arange(place * micro, (place + 1) * micro)
            arguments = batch(ids, spec, target, config)
            if step in poison and world.rank == 0:
                arguments[0][0, 0, 0, 0] = float("nan")
            if len(arguments) > 2:
                seen += [
                    [int(i), m.int().tolist()]
                    for i, m in zip(ids, arguments[2].mask_BN, strict=True)
                ]
            output = engine.forward_backward(*arguments)
            total += output.loss.detach().double() / accumulation / world.world_size
        engine.apply(config.optim.lr * lr_factor_at(step, STEPS, schedule))
        losses.append(world.sum(total).item())
        norms.append(engine.grad_norm())
    return {
        "losses": losses,
        "norms": norms,
        "masks": seen,
        "init_gap": max(
            ((of_engine[name] - value).abs().max().item() for name, value in of_model.items())
            if world.is_main
            else [0.0]
        ),
        "qkv_std": of_engine["encoder.blocks.0.attn.qkv.weight"].std().item()
        if world.is_main
        else 0.0,
        "weights": sums(engine.named_weights(ema=False)),
        "ema": sums(engine.named_weights(ema=True)),
        "graph_breaks": sorted(counters["graph_break"]),
        "graphs": counters["stats"]["unique_graphs"],
        "applied_steps": engine.applied_steps,
        "skipped_steps": engine.skipped_steps,
    }


def sums(weights):
    """A number a tensor that notices any change."""
    return {name: w.double().abs().sum().item() for name, w in weights.items()}


def main():
    """Run the jobs one after another; rank 0 writes the results, every rank its masks."""
    out, *jobs = sys.argv[1:]
    world = join_world()
    results = {}
    for job in jobs:
        name, _, overrides = job.partition(":")
        results[name] = run(world, [o for o in overrides.split(",") if o])
    with open(f"{out}.{world.rank}", "w") as file:
        json.dump(results, file)
    leave_world(world)


if __name__ == "__main__":
    main()

"""Started under torchrun by tests: a few steps under each ZeRO stage, handed on in pieces.

torchrun --nproc-per-node 2 tests/stages_worker.py OUT.json

Each stage does six steps; its state after three goes to an engine of another stage, which does the
last three again. Rank 0 does the same in plain PyTorch, and hands on to ZeRO-2.
"""

import json
import sys
from dataclasses import asdict
from itertools import chain

import torch
from zero_worker import SIDE, TINY, batch, sums

from supmim_scale.build.engine import engine_settings
from supmim_scale.build.model import mask_spec, recipe_model
from supmim_scale.config import load_config
from supmim_scale.engine import build_engine
from supmim_scale.launch.join import join_world, leave_world
from supmim_scale.launch.world import World
from supmim_scale.models.targets import PixelTarget

STEPS, HANDED_ON, SKIPPED, GLOBAL = 6, 3, 1, 8
FILES = {"zero1": "zero1", "zero2": "zero2", "zero3": "tests/ds/zero3_bare.json", "plain": None}
FOLLOWING = {"zero1": "zero3", "zero2": "zero1", "zero3": "zero2"}


class Trained:
    """An engine of a stage with the tests' tiny model, and what its steps gave."""

    def __init__(self, world, stage, precision, seed):
        kind = [f"engine.ds_config={FILES[stage]}"] if FILES[stage] else ["engine.kind=plain"]
        self.config = load_config("smoke", [*TINY, *kind, f"seed={seed}", "optim.ema_decay=0.5"])
        self.world, self.target = world, PixelTarget(8)
        self.micro = GLOBAL // 2 // world.world_size  # two micro-batches a step
        settings = engine_settings(self.config, self.micro, 2, precision, "torch")
        model = recipe_model(self.config, self.target.out_features)
        self.engine = build_engine(model, settings, world)
        self.losses, self.norms, self.applied = [], [], []

    def steps(self, first, last):
        spec = mask_spec(load_config("smoke", TINY), SIDE // 8)
        for step in range(first, last):
            total = torch.zeros((), dtype=torch.float64)
            for part in range(2):
                place = (step * 2 + part) * self.world.world_size + self.world.rank
                ids = torch.arange(place * self.micro, (place + 1) * self.micro).numpy()
                arguments = batch(ids, spec, self.target, load_config("smoke", TINY))
                if step == SKIPPED and self.world.is_main:
                    arguments[0][0] = float("nan")
                output = self.engine.forward_backward(*arguments)
                total += output.loss.detach().double() / 2 / self.world.world_size
            self.engine.apply(3e-3)
            self.losses.append(self.world.sum(total).item())
            self.norms.append(self.engine.grad_norm())
            self.applied.append(self.engine.applied_steps)

    def state(self):
        """Collective: the pieces of all ranks by name and kind, and the counters."""
        pieces = [(p.name, p.kind, p.start, p.values) for p in self.engine.pieces()]
        whole = {}
        for name, kind, start, values in chain.from_iterable(self.world.gather(pieces)):
            whole.setdefault((name, kind), []).append((start, values))
        joined = {}
        for key, parts in whole.items():
            parts.sort(key=lambda part: part[0])
            assert [start for start, _ in parts] == [
                sum(len(values) for _, values in parts[:place]) for place in range(len(parts))
            ], "pieces overlap or leave a gap"
            joined[key] = torch.cat([values for _, values in parts])
        return joined, self.engine.counters()

    def found(self):
        """Collective: what is compared."""
        return {
            "losses": self.losses,
            "norms": self.norms,
            "applied": self.applied,
            "counters": asdict(self.engine.counters()),
            "weights": sums(self.engine.named_weights(ema=False)),
            "ema": sums(self.engine.named_weights(ema=True)),
        }


def handed_on(given, world, stage, precision):
    """Another engine with a state, after the last steps."""
    pieces, counters = given
    other = Trained(world, stage, precision, seed=1)

    def read(name, kind, start, count):
        return pieces[name, kind][start : start + count]

    other.engine.restore(read, counters)
    restored = asdict(other.engine.counters())
    other.steps(HANDED_ON, STEPS)
    return other.found() | {"restored": restored}


def main(out):
    world = join_world()
    results, states = {}, {}
    for stage, following in FOLLOWING.items():
        for precision in ("fp32", "bf16"):
            trained = Trained(world, stage, precision, seed=0)
            trained.steps(0, HANDED_ON)
            states[stage] = trained.state()
            trained.steps(HANDED_ON, STEPS)
            results[f"{stage} {precision}"] = trained.found()
            if precision == "fp32":
                results[f"{stage} to {following}"] = handed_on(
                    states[stage], world, following, precision
                )
    alone = World(0, 0, 1, torch.device("cpu"), "none")
    plain = Trained(alone, "plain", "fp32", seed=0)
    plain.steps(0, HANDED_ON)
    given = plain.state()
    plain.steps(HANDED_ON, STEPS)
    results["plain"] = plain.found()
    results["plain to zero2"] = handed_on(given, world, "zero2", "fp32")
    if world.is_main:
        with open(out, "w") as file:
            json.dump(results, file)
    leave_world(world)


if __name__ == "__main__":
    main(sys.argv[1])

"""Started under torchrun by tests: what the ranks of a real process group say to each other.

torchrun --nproc-per-node 2 tests/world_worker.py FOLDER

Writes what every rank found as JSON.
"""

import json
import sys
import time
from pathlib import Path

import torch

from supmim_scale.errors import UserError
from supmim_scale.launch.join import join_world, leave_world


def refusal(world, folder, rank):
    """What `main_first` raises on this rank where `rank` cannot do its part."""

    def make():
        with open(folder / "turns.txt", "a") as file:
            file.write(f"{world.rank}\n")
        time.sleep(0.2 if world.is_main else 0)
        if world.rank == rank:
            raise UserError("where", f"rank {rank}", "expected", "fix")
        return world.rank

    try:
        return world.main_first(make)
    except UserError as error:
        return str(error)


def main(folder):
    world = join_world()
    rank = world.rank
    found = {
        "sum": world.sum(torch.tensor([1.0, float(rank)])).tolist(),
        "max": world.max(torch.tensor([float(rank), -float(rank)])).tolist(),
        "any": [world.any(False), world.any(rank == 1), world.any(True)],
        "all": [world.all(True), world.all(rank == 1), world.all(False)],
        "gather": world.gather({"rank": rank}),
        "broadcast": world.broadcast(torch.full((2,), rank), 1).tolist(),
        "main_first": [refusal(world, folder, bad) for bad in (-1, 0, 1)],
        "is_main": world.is_main,
    }
    (folder / f"{rank}.json").write_text(json.dumps(found))
    world.barrier()
    leave_world(world)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

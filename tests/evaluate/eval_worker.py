"""Every rank is started by tests: one evaluation a set, written by rank 0.

torchrun --nproc-per-node 3 tests/evaluate/eval_worker.py RUN OUT MASKS VAL ...

Ranks say their features in messages of four rows, and rank 0 alone may walk to a probe.
"""

import json
import sys
from pathlib import Path

import torch

from supmim_scale.evaluation import features
from supmim_scale.evaluation.knn import KnnSettings
from supmim_scale.evaluation.request import Request
from supmim_scale.evaluation.run import run_evaluation
from supmim_scale.evaluation.segment import SegmentSettings
from supmim_scale.evaluation.subject import open_subject
from supmim_scale.launch.join import join_world, leave_world


def rows(run_dir, out, masks, sets, world):
    """Figures of each set, without features kept from another number of ranks."""
    found = []
    for number, name in enumerate(sets):
        subject = open_subject(run_dir, None, None, [f"data.val={name}"])
        folder = Path(out) / f"{world.world_size}-{number}"
        segment = SegmentSettings(Path(masks), steps=3, batch=4, classes=3)
        wanted = Request(KnnSettings(5), "lbfgs", True, True, segment=segment, out=folder)
        found.append(run_evaluation(subject, wanted, world))
    return found


if __name__ == "__main__":
    here = join_world()
    features.ROWS = 4
    if not here.is_main:
        torch.optim.LBFGS = None
    figures = rows(sys.argv[1], *sys.argv[2:4], sys.argv[4:], here)
    if here.is_main:
        (Path(sys.argv[2]) / f"{here.world_size}.json").write_text(json.dumps(figures))
    leave_world(here)

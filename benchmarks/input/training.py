"""Training on real images beside the same images kept."""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.input.rows import spread
from supmim_scale import randomness
from supmim_scale.config import load_config
from supmim_scale.data.dataset import Dataset
from supmim_scale.data.loader import Batch
from supmim_scale.launch.join import join_world, leave_world
from supmim_scale.training.build import Run, build_run

Job = dict[str, Any]  # what is measured, as JSON carries it
Row = dict[str, Any]
LEAD = 6  # steps before a block of training: what was decoded ahead in the other kind is used up


def set_facts(dataset: Dataset) -> Row:
    """Size of a set in shards."""
    num_bytes = sum(facts.num_bytes for facts in dataset.tables)
    return {"num_images": len(dataset), "mean_image_bytes": num_bytes / len(dataset)}


def wait_for_device() -> None:
    """Let the GPU finish, where this process uses one."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def training_task(job: Job) -> Row:
    """Real batches against one repeated batch in the smoke recipe, in blocks that alternate."""
    keys = [
        f"input.root={job['data']}",
        "engine.kind=plain",
        "engine.activation_checkpointing=none",
    ]
    if job["model_width"]:
        keys += [f"model.width={job['model_width']}", f"model.heads={job['model_width'] // 32}"]
    config, world = load_config("smoke", keys), join_world()
    with tempfile.TemporaryDirectory() as folder:
        run = build_run(config, world, Path(folder))
        cached, pairs = next(run.batches), []
        for number in range(job["pairs"]):
            kinds = [None, cached] if number % 2 else [cached, None]
            took = {b is None: block(run, b, job["steps"]) for b in kinds}
            pairs.append((took[True], took[False]))
    leave_world(world)
    images = job["steps"] * config.optim.global_batch
    return {
        **set_facts(run.train_set),
        **spread("images_per_s", [images / real for (real, _), _ in pairs]),
        **spread("synthetic_images_per_s", [images / made for _, (made, _) in pairs]),
        **spread("ratio_to_synthetic", [made / real for (real, _), (made, _) in pairs]),
        **spread("data_wait", [waited / real for (real, waited), _ in pairs]),
        "width": config.model.width,
        "image_size": config.model.image_size,
        "global_batch": config.optim.global_batch,
        "precision": run.precision,
        "threads": config.input.threads,
        "readers": config.input.readers,
    }


def block(run: Run, cached: Batch | None, steps: int) -> tuple[float, float]:
    """(seconds, those waited for batches) of training steps as in train.py."""
    started, waited = 0.0, 0.0
    for step in range(LEAD + steps):
        if step == LEAD:
            wait_for_device()
            started, waited = time.perf_counter(), 0.0
        for micro in range(run.accumulation):
            asked = time.perf_counter()
            batch = cached or next(run.batches)
            waited += time.perf_counter() - asked
            arguments, _ = run.step_arguments(batch)
            torch.manual_seed(randomness.torch_seed(run.config.seed, step, micro, run.world.rank))
            run.engine.forward_backward(*arguments)
        run.engine.apply(run.config.optim.lr)
    wait_for_device()
    return time.perf_counter() - started, waited

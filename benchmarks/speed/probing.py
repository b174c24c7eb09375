"""The largest micro-batch that a step can take, found by taking it."""

import gc
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.rows.ranks import Job, Row
from benchmarks.speed.baselines import BASELINES
from benchmarks.speed.batches import fixed_batch
from benchmarks.speed.steps import joint_model, recipe_of
from supmim_scale.build.engine import engine_settings
from supmim_scale.engine import build_engine
from supmim_scale.engine.base import Engine
from supmim_scale.engine.settings import resolve_precision
from supmim_scale.errors import UserError
from supmim_scale.launch.world import World
from supmim_scale.planner.live import LiveBytes

MOST = 8192  # images, beyond which no more is tried on a GPU
MOST_ON_CPU = 256  # there a batch costs time, not memory
CPU_SHARE = 0.5  # of the memory that is free, which a step may fill
GRAIN = 8  # images; results are multiples where they are above it


def largest_micro_batch(job: Job, world: World) -> Row:
    """The largest micro-batch of one rank: on a GPU by running out of memory, on a CPU until live
    tensors would fill half of what is free.

    A forward takes a batch of any size, so that one engine does until it runs out of memory:
    DeepSpeed is then left in the middle of a step, and it is built anew. Raises `UserError` for
    several ranks, of which one that runs out of memory would leave the others waiting, and for
    baselines.
    """
    if world.world_size > 1 or job.get("baseline") in BASELINES:
        raise UserError(
            "--micro-batch",
            f"auto with {world.world_size} ranks, {job.get('baseline') or 'ours'}",
            "our step on one rank",
            "set --ranks 1 --baselines, or name a number",
        )
    config = recipe_of(job)
    precision = resolve_precision(config.engine.precision, world.device)
    is_cuda = world.device.type == "cuda"
    settings = engine_settings(config, 1, 1, precision, "torch")
    live = LiveBytes()

    def built() -> Engine:
        with live if not is_cuda else nullcontext():
            return build_engine(joint_model(config), settings, world)

    def fits(images: int) -> bool:
        nonlocal engine
        whole = replace(config, optim=replace(config.optim, global_batch=images))
        arguments = fixed_batch(whole, world, images).arguments(is_joint=config.mim.weight > 0)
        if not is_cuda:
            live.restart_peak()
            with live:
                engine.forward_backward(*arguments)
                engine.apply(0.0)
            return live.restart_peak() <= limit
        is_enough = True
        try:
            engine.forward_backward(*arguments)
            engine.apply(0.0)
            torch.cuda.synchronize()
        except torch.cuda.OutOfMemoryError:
            is_enough = False
        if not is_enough:  # the exception has let go of the step's tensors
            del engine
            gc.collect()
            torch.cuda.empty_cache()
            engine = built()
        return is_enough

    limit = 0 if is_cuda else CPU_SHARE * free_bytes()
    engine = built()
    found = search(fits, MOST if is_cuda else MOST_ON_CPU)
    if not found:
        raise UserError("--micro-batch", "auto: not even 1 fits", "a model that fits", "choose one")
    return {"micro_batch": found, "probed": True}


def search(fits: Callable[[int], bool], most: int) -> int:
    """The largest batch of at most `most` that fits, 0 if none does: doubled until one does not,
    then halved down to `GRAIN` images (or one, below it)."""
    good, tried = 0, 1
    while tried <= most and fits(tried):
        good, tried = tried, 2 * tried
    bad, grain = min(tried, most + 1), GRAIN if good >= GRAIN else 1
    while good + grain < bad:
        middle = max(good + grain, (good + bad) // 2 // grain * grain)
        if fits(middle):
            good = middle
        else:
            bad = middle
    return good


def free_bytes() -> int:
    """Memory that the host has to give."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    found = next(line for line in lines if line.startswith("MemAvailable"))
    return int(found.split()[1]) * 1024

#!/usr/bin/env python3
"""Peak memory of a training step by phase and kind, beside the planner's prediction and its error.

    python benchmarks/memory.py --grid               five small models, three policies, two layouts
    python benchmarks/memory.py                      ViT-Ti/16 at every ZeRO stage, on two ranks
    python benchmarks/memory.py --models vit_l16 --micro-batch 64 --reduce-bucket 500000000

On a GPU the measure is `torch.cuda.max_memory_allocated`, and a snapshot for pytorch.org/memory_viz
is written beside the rows. On a CPU it is the bytes of all live tensors, counted at every
operation of the real run (`supmim_scale.planner.live`): the resident set would count libraries and
the allocator's caches too, and never falls. Kinds are a census of the live tensors by owner
(`memory_kinds.py`) at the fullest moment of each phase. The planner knows the same recipe and
DeepSpeed file, and none of the run. DALI does not take part: the batch is fixed.

Every row is a fresh set of processes. DeepSpeed's reduction bucket of 5e8 elements would be most of
a small model's memory, and hide errors; it is made smaller here. memory_report.py makes a page and
a picture of the rows.
"""

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.bytes.kinds import Census
from benchmarks.bytes.report import line_of, table, worst_line
from benchmarks.rows.ranks import (
    Job,
    Row,
    add_models_flag,
    add_worker_flag,
    append,
    gpu_count,
    launch,
    origin,
    work,
)
from benchmarks.speed.batches import fixed_batch
from benchmarks.speed.steps import LR, joint_model, recipe_of, require_runnable
from supmim_scale.build.engine import engine_settings
from supmim_scale.config import RunConfig, digest
from supmim_scale.config.checks import accumulation_steps
from supmim_scale.engine import Engine, build_engine
from supmim_scale.engine.settings import resolve_precision
from supmim_scale.errors import EXIT_USER_ERROR, UserError
from supmim_scale.launch.world import World
from supmim_scale.planner.live import is_logits_of
from supmim_scale.planner.setting import RecipeMemory
from supmim_scale.planner.trace import input_tensors

SCRIPT = str(Path(__file__).parents[1] / "memory.py")  # what ranks are started with
RESULTS = Path(__file__).parents[1] / "results" / "memory.jsonl"
PHASES = ("init", "forward", "backward", "step")
WARMUP = 2  # AdamW's states and DeepSpeed's prefetching are settled after these steps
NEAR = 0.98  # of a phase's peak: from here on kinds are counted at every new one
POINTS = 160  # of a timeline
GRID = (  # widths, depths, patch sizes, heads and poolings that differ
    "vit_ti16",
    "vit_s16,depth=6,num_classes=21841",
    "vit_ti16,patch_size=8,depth=8",
    "vit_s16,pool=token,class_token=true",
    "vit_b16,depth=4,pool=map",
)


def main() -> int:
    """Measure every combination and print the table."""
    arguments = parse_arguments()
    if arguments.worker:
        return work(json.loads(arguments.worker), arguments.out, measure)
    jobs = memory_jobs(arguments)
    try:
        for job in jobs:
            require_runnable({**job, "ds_config": "zero1"})
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    rows: list[Row] = []
    for number, job in enumerate(jobs, start=1):
        started = time.time()
        row = measured(job)
        rows.append(row)
        if "error" not in row:
            append(arguments.out, row)
        print(f"[{number}/{len(jobs)}, {time.time() - started:.0f} s] {line_of(row)}", flush=True)
    print(f"{table(rows)}\n\n{worst_line(rows)}")
    return 0 if all("error" not in row for row in rows) else 1


def parse_arguments() -> argparse.Namespace:
    """Flags; the defaults fit the machine."""
    gpus = gpu_count()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    add = parser.add_argument
    add(
        "--grid",
        action="store_true",
        help="five small models, plain PyTorch in one process, with three policies and two layouts",
    )
    add_models_flag(parser)
    add("--layouts", nargs="+", default=["clean_and_masked", "masked_only"])
    add("--stages", nargs="+", type=int, default=[0, 1, 2, 3], help="0: plain")
    add("--policies", nargs="+", default=["none", "full", "selective"])
    add("--precision", default="bf16", choices=["fp32", "bf16"])
    add("--image-size", type=int, default=224 if gpus else 112)
    add("--micro-batch", type=int, default=64 if gpus else 16, help="a rank")
    add("--accumulation", type=int, default=1, help="micro-batches a step")
    add("--ranks", type=int, default=gpus or 2)
    add("--reduce-bucket", type=int, default=1_000_000, help="elements")
    add("--timeline", action="store_true", help="live bytes by kind over the step, for a picture")
    add("--out", type=Path, default=RESULTS, help="JSON-lines file to append to")
    add_worker_flag(parser)
    arguments = parser.parse_args()
    if arguments.grid:
        arguments.models, arguments.stages = list(GRID), [0]
        arguments.image_size, arguments.micro_batch = 112, 8
    return arguments


def memory_jobs(arguments: argparse.Namespace) -> list[Job]:
    """Every combination."""
    names = ("image_size", "micro_batch", "precision", "accumulation", "reduce_bucket", "timeline")
    shared = {name: getattr(arguments, name) for name in names}
    shared["snapshots"] = str(arguments.out.parent)
    return [
        {
            "model": model,
            "layout": layout,
            "stage": stage,
            "policy": policy,
            "overrides": [],
            "ranks": arguments.ranks if stage else 1,
            **shared,
        }
        for model, layout, stage, policy in itertools.product(
            arguments.models, arguments.layouts, arguments.stages, arguments.policies
        )
    ]


def measured(job: Job) -> Row:
    """One row, measured in processes of its own."""
    with tempfile.TemporaryDirectory() as folder:
        ds_config = Path(folder) / "ds.json"
        zero = {"stage": job["stage"], "reduce_bucket_size": job["reduce_bucket"]}
        ds_config.write_text(json.dumps({"zero_optimization": zero}))
        found = launch(SCRIPT, {**job, "ds_config": str(ds_config)}, job["ranks"])
    return describe(job) | found


class Meter:
    """Bytes alive and their peak since the last reading: of the GPU's allocator, or of the live
    tensors."""

    def __init__(self, census: Census, device: torch.device) -> None:
        self.census, self._is_cuda = census, device.type == "cuda"

    def read(self) -> Row:
        """Waits: bytes alive now, the peak since the last reading with its kinds, and where in
        the step this is."""
        live = self.census.live
        peak, kinds = self.census.read_peak()
        if self._is_cuda:
            torch.cuda.synchronize()
            live, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        return {"live": live, "peak": peak, "ended_at": self.census.place, "kinds": kinds}


def measure(job: Job, world: World) -> Row:
    """Collective: the phases of a settled step, and what the planner says of it."""
    config = recipe_of(job)
    precision = resolve_precision(config.engine.precision, world.device)
    micro, accumulation = accumulation_steps(config, world.world_size)
    census = Census(is_logits_of(micro, config.model.num_classes))
    meter, phases = Meter(census, world.device), {}
    with census:
        model = joint_model(config)
        model.register_forward_hook(lambda *_: phases.update(forward=meter.read()))
        settings = engine_settings(config, micro, accumulation, precision, "torch")
        engine = build_engine(model, settings, world)
        batch = fixed_batch(config, world, micro)
        arguments = batch.arguments(is_joint=config.mim.weight > 0)
        del batch
        census.own(model, engine, input_tensors(arguments))
        phases["init"] = meter.read() | {"kinds": census.now()}
        for _ in range(WARMUP):
            one_step(engine, arguments, accumulation, meter, phases)
        wanted = range(1, census.place, max(1, census.place // POINTS)) if job["timeline"] else ()
        census.floor = NEAR * min(phases[name]["peak"] for name in PHASES[1:])
        with snapshot(job, world) as snapshot_path:
            one_step(engine, arguments, accumulation, meter, phases, wanted)
    row = compared(job, config, world, phases)
    if job["timeline"]:
        points = sorted(census.taken.items())
        row["timeline"] = [{"operation": place, **kinds} for place, kinds in points]
    return row | {"snapshot": snapshot_path}


def one_step(
    engine: Engine,
    arguments: tuple[Any, ...],
    accumulation: int,
    meter: Meter,
    phases: Row,
    wanted: Iterable[int] = (),
) -> None:
    """Collective: a whole step, read after each phase; census at the `wanted` operations."""
    meter.census.begin_step(wanted)
    for _ in range(accumulation):
        engine.forward_backward(*arguments)
        phases["backward"] = meter.read()
    engine.apply(LR)
    phases["step"] = meter.read()


def compared(job: Job, config: RunConfig, world: World, phases: Row) -> Row:
    """The row: measured and predicted peak, and what each is made of."""
    is_cuda = world.device.type == "cuda"
    fullest = max(PHASES[1:], key=lambda name: phases[name]["peak"])
    measured_peak, kinds = phases[fullest]["peak"], phases[fullest]["kinds"]
    setting = RecipeMemory(config).setting(config, world.world_size, pool=False)
    memory = setting.memory
    own_inputs = kinds["inputs"] if kinds else memory.inputs
    return {
        "accelerator": world.device.type,
        "world_size": world.world_size,
        "accumulation": setting.accumulation,
        "reduce_bucket": job["reduce_bucket"],
        "phases": {name: phases[name] for name in PHASES},
        "fullest_phase": fullest,
        "measured_peak_bytes": measured_peak,
        "measured_bytes": kinds,
        "predicted_peak_bytes": round(memory.peak),
        "peak_error": memory.peak / measured_peak - 1,
        "core_error": (memory.peak - memory.inputs) / (measured_peak - own_inputs) - 1,
        "predicted_bytes": {k: round(v) for k, v in asdict(memory).items()},
        "dali_pool_bytes": None,
        "dali_pool_reason": "the batch is fixed: DALI takes no part",
        "measure": "max_memory_allocated" if is_cuda else "live tensors",
        "steps_warmup": WARMUP,
        "digest": digest(config),
        **origin(),
    }


@contextmanager
def snapshot(job: Job, world: World) -> Iterator[str | None]:
    """The allocator's history of what runs inside, as a file beside the rows; on a GPU alone."""
    if world.device.type != "cuda" or not world.is_main:
        with nullcontext():
            yield None
        return
    names = (job["model"].replace(",", "_"), job["layout"], f"stage{job['stage']}", job["policy"])
    path = Path(job["snapshots"]) / f"memory_{'_'.join(names)}.pickle"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.cuda.memory._record_memory_history(max_entries=100_000)
    yield str(path)
    torch.cuda.memory._dump_snapshot(str(path))
    torch.cuda.memory._record_memory_history(enabled=None)


def describe(job: Job) -> Row:
    """A row's name columns."""
    names = ("model", "layout", "policy", "precision", "image_size", "micro_batch")
    engine = f"zero{job['stage']}" if job["stage"] else "plain"
    return {"engine": engine, **{name: job[name] for name in names}}

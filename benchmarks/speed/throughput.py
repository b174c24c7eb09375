#!/usr/bin/env python3
"""Images/s, step time, memory, FLOP/s and MFU of the joint training step, beside its baselines.

    python benchmarks/throughput.py                          small models, made for a CPU
    python benchmarks/throughput.py --models vit_l16 --micro-batch 64 --stages 1 3
    python benchmarks/throughput.py --micro-batch auto --ranks 1 --stages 1 3
    python benchmarks/throughput.py --vary engine.checkpoint_every_k=2,4 --policies every_k
    python benchmarks/throughput.py --data datasets/smoke    fed with samples: what a step waits
    python benchmarks/throughput.py --paired                 ratios, trusted on a noisy machine too
    python benchmarks/throughput.py --paired changes         with and without each part of the step

A row is a fresh set of processes on the same batch and seed. Rows of one model, objective and
batch must have the same loss as the first of them after the same number of steps: a faster step
that learns something else is an error. Beside ours run plain PyTorch by hand, plain PyTorch with
two whole forwards (DDP), timm's own step, and classification alone (`baselines.py`). `--paired`
runs two steps in one process that take turns, and says PASS or FAIL against the bound that is
stated for the device (`paired.py`). Rows go to a JSON-lines file; throughput_report.py makes a
page and a picture of them.
"""

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

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
from benchmarks.speed.baselines import BASELINES, baseline_step, ranks_of
from benchmarks.speed.guard import expected_mfu, guard
from benchmarks.speed.measuring import (
    matmul_roof,
    memory,
    one_profiled_step,
    planned,
    speed,
    time_steps,
)
from benchmarks.speed.paired import measure_pair
from benchmarks.speed.pairs import ALL, changes, usual_pairs
from benchmarks.speed.probing import largest_micro_batch
from benchmarks.speed.steps import (
    CLASSIFICATION,
    our_step,
    recipe_of,
    require_runnable,
    require_varied,
)
from benchmarks.speed.tables import line_of, pair_table, table
from supmim_scale.config import digest
from supmim_scale.engine.settings import resolve_precision
from supmim_scale.errors import EXIT_USER_ERROR, UserError
from supmim_scale.launch.world import World

SCRIPT = str(Path(__file__).parents[1] / "throughput.py")  # what ranks are started with
RESULTS = Path(__file__).parents[1] / "results" / "throughput.jsonl"


def main() -> int:
    """Measure everything asked for and print the tables."""
    arguments = parse_arguments()
    if arguments.worker:
        job = json.loads(arguments.worker)
        return work(job, arguments.out, TASKS[job["task"]])
    try:
        jobs = pair_jobs(arguments) if arguments.paired is not None else row_jobs(arguments)
        for job in jobs:
            require_runnable({**job, "micro_batch": job["micro_batch"] or 1})
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    rows: list[Row] = []
    for number, job in enumerate(jobs, start=1):
        started = time.time()
        row = measured(job, arguments.out)
        if job["task"] == "row":
            guard(row, rows)
        rows.append(row)
        append(arguments.out, row)
        print(f"[{number}/{len(jobs)}, {time.time() - started:.0f} s] {line_of(row)}", flush=True)
    print(pair_table(rows) if arguments.paired is not None else table(rows))
    return 0 if all("error" not in row and row.get("verdict") != "FAIL" for row in rows) else 1


def parse_arguments() -> argparse.Namespace:
    """Flags; the defaults fit the machine."""
    gpus = gpu_count()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    add = parser.add_argument
    add_models_flag(parser)
    add("--layouts", nargs="+", default=["clean_and_masked"], help="or classification")
    add("--stages", nargs="*", type=int, help="ZeRO stages; of --paired, 0 is plain PyTorch")
    add(
        "--policies",
        nargs="+",
        help="activation checkpointing; default: none full selective, of --paired none",
    )
    add("--precision", nargs="+", default=["auto"], choices=["auto", "fp32", "bf16"])
    add(
        "--vary",
        nargs="+",
        default=[],
        metavar="KEY=VALUE[,VALUE]",
        help="rows for every value of keys of a recipe's engine or input section",
    )
    add(
        "--baselines",
        nargs="*",
        choices=list(BASELINES),
        help="default: all, but timm_compiled on a GPU alone, as a CPU compiles for a minute; none "
        "with --data or --micro-batch auto",
    )
    add("--data", type=Path, help="folder of samples to feed our steps with; default: one batch")
    add("--image-size", type=int, default=224 if gpus else 112)
    add(
        "--micro-batch",
        nargs="+",
        type=batch_of,
        default=[64 if gpus else 8],
        help="images a rank; auto: the largest, by probing",
    )
    add("--ranks", type=int, default=gpus or 2)
    add("--warmup", type=int, default=3, help="steps before measuring")
    add("--steps", type=int, help="steps measured; default 10, of --paired 1 a turn")
    add(
        "--paired",
        nargs="*",
        choices=["changes", *ALL],
        metavar="PAIR",
        help="pairs that take turns, changes: what each part of the step brings; default: "
        f"against baselines; all: {', '.join(ALL)}",
    )
    add("--rounds", type=int, default=12, help="of --paired")
    add("--profile", type=Path, help="folder for a trace and a table of kernels of every row")
    add("--out", type=Path, default=RESULTS, help="JSON-lines file to append to")
    add_worker_flag(parser)
    return parser.parse_args()


def batch_of(word: str) -> int | None:
    """A micro-batch; None: to be probed."""
    return None if word == "auto" else int(word)


def row_jobs(arguments: argparse.Namespace) -> list[Job]:
    """What is measured, the plain engine first: its loss is what the others' must be."""
    stages = [1, 3] if arguments.stages is None else arguments.stages
    policies = arguments.policies or ["none", "full", "selective"]
    varied = require_varied(arguments.vary)
    sharded = [
        {"stage": stage, "policy": policy, "overrides": overrides, "baseline": None}
        for stage in stages
        for policy in policies
        for overrides in varied
    ]
    alone = {"stage": None, "policy": "none", "overrides": []}
    cases: list[Job] = [
        {"layout": layout, **case}
        for layout in arguments.layouts
        for case in ({**alone, "baseline": None}, *sharded)
    ]
    theirs = [
        {"layout": BASELINES[name][0], **alone, "baseline": name}
        for name in chosen_baselines(arguments)
    ]
    is_compared = any(job["layout"] == CLASSIFICATION for job in theirs)
    if is_compared and CLASSIFICATION not in arguments.layouts:
        cases.append({"layout": CLASSIFICATION, **alone, "baseline": None})
    combined = itertools.product(
        arguments.models, arguments.precision, arguments.micro_batch, [*cases, *theirs]
    )
    return [
        {
            "task": "row",
            "model": model,
            "precision": precision,
            "micro_batch": micro,
            **case,
            **shared(arguments, steps=10),
        }
        for model, precision, micro, case in combined
    ]


def chosen_baselines(arguments: argparse.Namespace) -> list[str]:
    """Those named or usual. Raises `UserError` for a baseline that would have to be fed."""
    if arguments.data is not None:
        if arguments.baselines:
            raise UserError(
                "--data",
                f"--baselines {' '.join(arguments.baselines)} beside it",
                "our steps alone: baselines take one batch again and again",
                "leave one away",
            )
        return []
    if arguments.baselines is None and None in arguments.micro_batch:
        return []  # a batch is probed for our steps alone
    usual = [name for name in BASELINES if gpu_count() or name != "timm_compiled"]
    return usual if arguments.baselines is None else list(arguments.baselines)


def pair_jobs(arguments: argparse.Namespace) -> list[Job]:
    """Pairs in one process each. Raises `UserError` for `--data`."""
    if arguments.data is not None:
        raise UserError(
            "--paired", f"--data {arguments.data} beside it", "a fixed batch", "leave one away"
        )
    stages = ([1] if gpu_count() else [0]) if arguments.stages is None else arguments.stages
    is_gpu = gpu_count() > 0
    named = [
        pair
        for word in arguments.paired or usual_pairs(is_gpu=is_gpu)
        for pair in (changes(is_gpu=is_gpu) if word == "changes" else [word])
    ]
    combined = itertools.product(
        arguments.models,
        arguments.precision,
        arguments.micro_batch,
        stages,
        arguments.policies or ["none"],
        require_varied(arguments.vary),
        named,
    )
    return [
        {
            "task": "pair",
            "pair": pair,
            "model": model,
            "precision": precision,
            "micro_batch": micro,
            "stage": stage or None,
            "policy": policy,
            "overrides": overrides,
            "layout": "clean_and_masked",
            "rounds": arguments.rounds,
            **shared(arguments, steps=1),
            "ranks": 1,
        }
        for model, precision, micro, stage, policy, overrides, pair in combined
    ]


def shared(arguments: argparse.Namespace, steps: int) -> Job:
    """What all jobs of a call have in common. Raises `UserError`."""
    if arguments.data is not None and not arguments.data.is_dir():
        raise UserError(
            "--data",
            f"no folder {arguments.data}",
            "one that holds a train split",
            f"make one: supmim-scale data synth {arguments.data}",
        )
    if arguments.warmup < 1:
        raise UserError(
            "--warmup", f"{arguments.warmup}", "1 or more: losses are compared", "raise it"
        )
    return {
        "image_size": arguments.image_size,
        "ranks": arguments.ranks,
        "warmup": arguments.warmup,
        "steps": arguments.steps or steps,
        "profile": str(arguments.profile) if arguments.profile else None,
        "data": str(arguments.data) if arguments.data else None,
    }


def measured(job: Job, out: Path = RESULTS) -> Row:
    """A job's row, from processes of its own; where the batch is open, it is probed first, and
    what is expected of the model stands in the rows of shapes.py in `out`."""
    ranks = ranks_of(job)
    names = ("model", "layout", "policy", "image_size", "overrides", "pair", "data")
    named = {name: job[name] for name in names if name in job}
    named |= {"kind": job["task"], "engine": engine_of(job)}
    job = {**job, "expected_mfu": expected_mfu(out, job)}
    if job["micro_batch"] is None:
        probed = launch(SCRIPT, {**job, "task": "probe", "micro_batch": 1}, ranks)
        if "error" in probed:
            return named | probed
        job = {**job, "micro_batch": probed["micro_batch"]}
        named |= probed
    return named | launch(SCRIPT, job, ranks)


def engine_of(job: Job) -> str:
    """Who runs the step."""
    return job.get("baseline") or (f"zero{job['stage']}" if job["stage"] else "plain")


def measure_row(job: Job, world: World) -> Row:
    """Collective: time the steps of one engine, or baseline, on a fixed batch."""
    config = recipe_of(job)
    precision = resolve_precision(config.engine.precision, world.device)
    baseline = job["baseline"]
    step = (
        baseline_step(baseline, config, world)
        if baseline
        else our_step(config, world, is_fed=job.get("data") is not None)
    )
    timed = time_steps(step, world, job["warmup"], job["steps"])
    peaks = memory(world)
    name = "_".join(str(job[key]) for key in ("model", "layout", "policy", "micro_batch"))
    folder = Path(job["profile"]) / f"{name}_{engine_of(job)}" if job["profile"] else None
    profiled = one_profiled_step(
        step.run, folder if world.is_main else None, timed["data_wait_s"] or 0.0
    )
    roof = matmul_roof(world, precision)
    rates = speed(timed, step, world, precision, roof)
    return {
        "micro_batch": job["micro_batch"],
        "precision": precision,
        "world_size": world.world_size,
        "global_batch": step.images,
        "threads_per_rank": torch.get_num_threads(),
        **timed,
        **rates,
        **planned(
            config,
            world,
            None if baseline or step.feed else rates["images_per_s"],
            job.get("expected_mfu"),
        ),
        **peaks,
        **profiled,
        "digest": digest(config),
        **origin(),
    }


TASKS: dict[str, Any] = {
    "row": measure_row,
    "pair": lambda job, world: measure_pair(job, world) | origin(),
    "probe": largest_micro_batch,
}

#!/usr/bin/env python3
"""Peak memory of a training step by phase, beside the planner's prediction and its error.

    python benchmarks/memory.py                              small models, made for a CPU
    python benchmarks/memory.py --models vit_l16 --micro-batch 64 --reduce-bucket 500000000

On a GPU the measure is `torch.cuda.max_memory_allocated`. On a CPU it is the bytes of all live
tensors, counted at every operation of the real run (`supmim_scale.planner.live`): the resident set
would count libraries and the allocator's caches too, and never falls. The planner knows the same
recipe and DeepSpeed file, and none of the run. DALI does not take part: the batch is fixed.

Every row is a fresh set of processes. DeepSpeed's reduction bucket of 5e8 elements would be most of
a small model's memory, and hide errors; it is made smaller here.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from throughput import CODES, fixed_batch, job_config

from supmim_scale import assemble
from supmim_scale.config import RunConfig, digest, load_config
from supmim_scale.config.checks import accumulation_steps
from supmim_scale.engine import World, build_engine, join_world, leave_world
from supmim_scale.engine.base import resolve_precision
from supmim_scale.errors import EXIT_USER_ERROR, UserError
from supmim_scale.models.masking import Masks
from supmim_scale.planner.live import LiveBytes
from supmim_scale.planner.setting import Planned
from supmim_scale.provenance import provenance
from supmim_scale.run import engine_settings
from supmim_scale.units import gib

RESULTS = Path(__file__).parent / "results" / "memory.jsonl"
STEPS = 2  # AdamW's states are there from the second on; that one is reported
PHASES = ("init", "forward", "backward", "step")


def main() -> int:
    """Measure every combination and print the table."""
    arguments = parse_arguments()
    if arguments.worker:
        return worker(json.loads(arguments.worker), Path(arguments.out))
    jobs = [
        {"model": model, "layout": layout, "stage": stage, "policy": policy}
        for model in arguments.models
        for layout in arguments.layouts
        for stage in arguments.stages
        for policy in arguments.policies
    ]
    names = ("image_size", "micro_batch", "ranks", "precision", "accumulation", "reduce_bucket")
    shared = {name: getattr(arguments, name) for name in names}
    rows = []
    for number, job in enumerate(jobs, start=1):
        started = time.time()
        row = launch({**job, **shared})
        rows.append(row)
        print(f"[{number}/{len(jobs)}, {time.time() - started:.0f} s] {name_of(row)}", flush=True)
        if "error" not in row:
            with open(arguments.out, "a") as file:
                file.write(json.dumps(row) + "\n")
    print(table(rows))
    return 0 if all("error" not in row for row in rows) else 1


def parse_arguments() -> argparse.Namespace:
    """Flags; the defaults fit the machine."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--models", nargs="+", default=["vit_l16" if gpus else "vit_ti16"])
    parser.add_argument("--layouts", nargs="+", default=["clean_and_masked", "masked_only"])
    parser.add_argument("--stages", nargs="+", type=int, default=[0, 1, 2, 3], help="0: plain")
    parser.add_argument("--policies", nargs="+", default=["none", "full", "selective"])
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--image-size", type=int, default=224 if gpus else 112)
    parser.add_argument("--micro-batch", type=int, default=64 if gpus else 16, help="a rank")
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches a step")
    parser.add_argument("--ranks", type=int, default=gpus or 2)
    parser.add_argument("--reduce-bucket", type=int, default=1_000_000, help="elements")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON-lines file to append to")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def launch(job: dict[str, Any]) -> dict[str, Any]:
    """One row, measured in processes of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out, ds_config = Path(folder) / "row.json", Path(folder) / "ds.json"
        zero = {"stage": job["stage"], "reduce_bucket_size": job["reduce_bucket"]}
        ds_config.write_text(json.dumps({"zero_optimization": zero}))
        ranks = job["ranks"] if job["stage"] else 1
        worker_job = json.dumps({**job, "ranks": ranks, "ds_config": str(ds_config)})
        threads = max(1, len(os.sched_getaffinity(0)) // ranks)
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            f"--nproc-per-node={ranks}", __file__, "--worker", worker_job, "--out", str(out),
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if not out.exists():
            found = [line for line in done.stderr.splitlines() if "rror:" in line]
            return {**describe(job), "error": (found or ["no output"])[0][:300]}
        return json.loads(out.read_text())  # type: ignore[no-any-return]


def worker(job: dict[str, Any], out: Path) -> int:
    """Collective: measure one row; rank 0 writes it."""
    try:
        config = config_of(job)
        world = join_world()
        row = measure(job, config, world)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    if world.is_main:
        out.write_text(json.dumps(row))
    leave_world(world)
    return 0


def config_of(job: dict[str, Any]) -> RunConfig:
    """The throughput benchmark's recipe with this job's DeepSpeed file and accumulation."""
    base = job_config({**job, "stage": None})
    images = job["micro_batch"] * job["accumulation"] * job["ranks"]
    engine = "deepspeed" if job["stage"] else "plain"
    own = [f"model.{name}=null" for name in ("patch_size", "width", "depth", "heads")]
    return load_config(
        "smoke",
        [
            *own, "model.decoder_width=null", f"model.name={job['model']}",
            f"model.image_size={job['image_size']}", f"model.num_classes={base.model.num_classes}",
            f"mim.layout={job['layout']}", f"mim.codebook_size={CODES}",
            f"engine.kind={engine}", f"engine.ds_config={job['ds_config']}",
            f"engine.activation_checkpointing={job['policy']}",
            f"engine.precision={job['precision']}", f"engine.micro_batch={job['micro_batch']}",
            "optim.lr=1e-4", f"optim.global_batch={images}",
        ],
    )  # fmt: skip


class Meter:
    """Bytes alive and their peak since the last reading, of the GPU or of the live tensors."""

    def __init__(self) -> None:
        self._live = None if torch.cuda.is_available() else LiveBytes()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts inside."""
        if self._live is None:
            torch.cuda.reset_peak_memory_stats()
            yield
        else:
            with self._live:
                yield

    def read(self) -> dict[str, int]:
        """Waits: bytes alive now, and the peak since the last reading."""
        if self._live is not None:
            return {"live": self._live.live, "peak": self._live.restart_peak()}
        torch.cuda.synchronize()
        found = {"live": torch.cuda.memory_allocated(), "peak": torch.cuda.max_memory_allocated()}
        torch.cuda.reset_peak_memory_stats()
        return found


def measure(job: dict[str, Any], config: RunConfig, world: World) -> dict[str, Any]:
    """Collective: the phases of the last step, and what the planner says of it."""
    precision = resolve_precision(config.engine.precision, world.device)
    micro, accumulation = accumulation_steps(config, world.world_size)
    meter = Meter()
    phases: dict[str, dict[str, int]] = {}
    with meter.running():
        model = assemble.joint_model(config, CODES)
        model.register_forward_hook(lambda *_: phases.update(forward=meter.read()))
        settings = engine_settings(config, micro, accumulation, precision, world.device)
        engine = build_engine(model, settings, world)
        arguments = cloned(fixed_batch(config, world, micro))
        phases["init"] = meter.read()
        for _ in range(STEPS):
            for _ in range(accumulation):
                engine.forward_backward(*arguments)
                phases["backward"] = meter.read()
            engine.apply(config.optim.lr)
            phases["step"] = meter.read()
    measured = max(phases[name]["peak"] for name in ("forward", "backward", "step"))
    is_cuda = world.device.type == "cuda"
    setting = Planned(config).setting(config, world.world_size, pool=False, fused_step=is_cuda)
    predicted = setting.memory.peak
    return {
        **describe(job),
        "accelerator": world.device.type,
        "world_size": world.world_size,
        "accumulation": accumulation,
        "reduce_bucket": job["reduce_bucket"],
        "phases": {name: phases[name] for name in PHASES},
        "measured_peak_bytes": measured,
        "predicted_peak_bytes": round(predicted),
        "peak_error": predicted / measured - 1,
        "predicted_bytes": {k: round(v) for k, v in asdict(setting.memory).items()},
        "measure": "max_memory_allocated" if is_cuda else "live tensors",
        "steps": STEPS,
        "digest": digest(config),
        "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **provenance(),
    }


def cloned(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """A rank's batch without the whole one that it is cut from."""
    return tuple(
        Masks(**{name: part.clone() for name, part in vars(argument).items()})
        if isinstance(argument, Masks)
        else argument.clone()
        for argument in arguments
    )


def describe(job: dict[str, Any]) -> dict[str, Any]:
    """A row's name columns."""
    names = ("model", "layout", "policy", "precision", "image_size", "micro_batch")
    engine = f"zero{job['stage']}" if job["stage"] else "plain"
    return {"engine": engine, **{name: job[name] for name in names}}


def name_of(row: dict[str, Any]) -> str:
    """A row for people."""
    found = row.get("error") or f"{gib(row['measured_peak_bytes'])}, {row['peak_error']:+.1%}"
    return f"{row['model']} {row['layout']} {row['engine']} {row['policy']}: {found}"


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table."""
    lines = [
        "| model | layout | engine | recompute | precision | ranks | forward | backward | step "
        "| measured peak | predicted | error |",
        "|---" * 12 + "|",
    ]
    for row in rows:
        names = f"| {row['model']} | {row['layout']} | {row['engine']} | {row['policy']} |"
        if "error" in row:
            lines.append(f"{names} failed: {row['error']} |" + " |" * 7)
            continue
        peaks = " | ".join(gib(row["phases"][name]["peak"]) for name in PHASES[1:])
        lines.append(
            f"{names} {row['precision']} | {row['world_size']} | {peaks} "
            f"| {gib(row['measured_peak_bytes'])} | {gib(row['predicted_peak_bytes'])} "
            f"| {row['peak_error']:+.1%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

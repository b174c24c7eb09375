#!/usr/bin/env python3
"""Images/s, step time, peak memory and MFU of the joint training step, against plain PyTorch.

    python benchmarks/throughput.py                          small models, made for a CPU
    python benchmarks/throughput.py --models vit_l16 --micro-batch 64 --stages 1 3

Every row is a fresh set of processes on the same batch and seed, so `loss` must agree between
the rows of a model and layout; the baseline row is the same model in a plain PyTorch loop (one
process, all threads, no recomputation). Rows go to a JSON-lines file, a table to the terminal.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from supmim_scale import assemble
from supmim_scale.config import RunConfig, digest, load_config
from supmim_scale.config.checks import accumulation_steps
from supmim_scale.engine import World, build_engine, join_world, leave_world
from supmim_scale.engine.base import resolve_precision
from supmim_scale.errors import EXIT_USER_ERROR, UserError
from supmim_scale.flops import PEAK_BF16_FLOPS, StepFlops, step_flops
from supmim_scale.models.losses import class_targets
from supmim_scale.models.masking import draw_masks
from supmim_scale.provenance import device_name, peak_memory_bytes, provenance
from supmim_scale.run import engine_settings
from supmim_scale.units import gib, si

RESULTS = Path(__file__).parent / "results" / "throughput.jsonl"
CODES = 1024
LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}  # relative, after all steps
CLASSES = 1000


def main() -> int:
    """Measure every combination and print the table."""
    arguments = parse_arguments()
    if arguments.worker:
        return worker(json.loads(arguments.worker), Path(arguments.out))
    jobs = [
        {"model": model, "layout": layout, "stage": stage, "policy": policy}
        for model in arguments.models
        for layout in arguments.layouts
        for stage, policy in [(None, "none")]
        + [(stage, policy) for stage in arguments.stages for policy in arguments.policies]
    ]
    shared = {
        name: getattr(arguments, name)
        for name in ("image_size", "micro_batch", "ranks", "warmup", "steps", "precision")
    }
    rows: list[dict[str, Any]] = []
    for number, job in enumerate(jobs, start=1):
        started = time.time()
        row = launch({**job, **shared}) | {"ratio_to_plain": None}
        baseline = next((r for r in rows if same_model(r, row) and r["engine"] == "plain"), None)
        if baseline and "images_per_s" in row and "images_per_s" in baseline:
            compare(row, baseline)
        rows.append(row)
        print(f"[{number}/{len(jobs)}, {time.time() - started:.0f} s] {name_of(row)}", flush=True)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        with open(arguments.out, "a") as file:
            file.write(json.dumps(row) + "\n")
    print(table(rows))
    return 0 if all("images_per_s" in row for row in rows) else 1


def compare(row: dict[str, Any], baseline: dict[str, Any]) -> None:
    """Add the speed ratio; a row that learned something else is no measurement of speed."""
    gap = abs(row["loss"] - baseline["loss"]) / abs(baseline["loss"])
    if gap > LOSS_TOLERANCE[row["precision"]]:
        row["error"] = f"loss {row['loss']:.6f} where plain PyTorch has {baseline['loss']:.6f}"
        del row["images_per_s"]
    else:
        row["ratio_to_plain"] = row["images_per_s"] / baseline["images_per_s"]


def parse_arguments() -> argparse.Namespace:
    """Flags; the defaults fit the machine."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--models", nargs="+", default=["vit_l16" if gpus else "vit_ti16"])
    parser.add_argument("--layouts", nargs="+", default=["clean_and_masked"])
    parser.add_argument("--stages", nargs="+", type=int, default=[1, 3], help="ZeRO stages")
    parser.add_argument("--policies", nargs="+", default=["none", "full", "selective"])
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--image-size", type=int, default=224 if gpus else 112)
    parser.add_argument("--micro-batch", type=int, default=64 if gpus else 8, help="a rank")
    parser.add_argument("--ranks", type=int, default=gpus or 2)
    parser.add_argument("--warmup", type=int, default=3, help="steps before measuring")
    parser.add_argument("--steps", type=int, default=10, help="steps measured")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON-lines file to append to")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def launch(job: dict[str, Any]) -> dict[str, Any]:
    """One row, measured in processes of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        ranks = 1 if job["stage"] is None else job["ranks"]
        environment = dict(os.environ)
        if not torch.cuda.is_available():
            cores = len(os.sched_getaffinity(0))
            environment["OMP_NUM_THREADS"] = str(max(1, cores // ranks))
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            f"--nproc-per-node={ranks}", __file__, "--worker", json.dumps(job), "--out", str(out),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if not out.exists():
            lines = [
                line for line in done.stderr.splitlines() if "Error" in line or "error:" in line
            ]
            return {**describe(job), "error": (lines or ["no output"])[0][:300]}
        return json.loads(out.read_text())  # type: ignore[no-any-return]


def worker(job: dict[str, Any], out: Path) -> int:
    """Collective: measure one row; rank 0 writes it."""
    try:
        config = job_config(job)
        world = join_world()
        row = measure(job, config, world)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    if world.is_main:
        out.write_text(json.dumps(row))
    leave_world(world)
    return 0


def job_config(job: dict[str, Any]) -> RunConfig:
    """The smoke recipe with the job's model at its own size."""
    ranks = job["ranks"]
    engine = (
        ["engine.kind=plain"]
        if job["stage"] is None
        else ["engine.kind=deepspeed", f"engine.ds_config=zero{job['stage']}"]
    )
    own_size = [f"model.{name}=null" for name in ("patch_size", "width", "depth", "heads")]
    return load_config(
        "smoke",
        [
            *engine, *own_size, "model.decoder_width=null", f"model.name={job['model']}",
            f"model.image_size={job['image_size']}", f"model.num_classes={CLASSES}",
            f"mim.layout={job['layout']}", f"mim.codebook_size={CODES}",
            f"engine.activation_checkpointing={job['policy']}",
            f"engine.precision={job['precision']}", "engine.micro_batch=null",
            "optim.lr=1e-4", f"optim.global_batch={job['micro_batch'] * ranks}",
        ],
    )  # fmt: skip


def measure(job: dict[str, Any], config: RunConfig, world: World) -> dict[str, Any]:
    """Collective: time the steps of one engine on a fixed batch."""
    precision = resolve_precision(config.engine.precision, world.device)
    micro, accumulation = accumulation_steps(config, world.world_size)
    engine = build_engine(
        assemble.joint_model(config, CODES),
        engine_settings(config, micro, accumulation, precision, world.device),
        world,
    )
    arguments = fixed_batch(config, world, micro)
    times, loss = [], torch.zeros(())
    for step in range(job["warmup"] + job["steps"]):
        if world.device.type == "cuda":
            torch.cuda.synchronize()
        world.barrier()
        started = time.perf_counter()
        loss = engine.forward_backward(*arguments).loss.detach()
        engine.apply(config.optim.lr)
        if world.device.type == "cuda":
            torch.cuda.synchronize()
        world.barrier()
        if step >= job["warmup"]:
            times.append(time.perf_counter() - started)
    mean_loss = world.sum(loss.double()).item() / world.world_size
    shape = assemble.joint_shape(config, CODES)
    flops = step_flops(shape, job["policy"], config.engine.checkpoint_every_k)
    peak = world.max(torch.tensor([float(peak_memory_bytes())], device=world.device)).item()
    return {
        **describe(job),
        "precision": precision,
        "world_size": world.world_size,
        "global_batch": config.optim.global_batch,
        "threads_per_rank": torch.get_num_threads(),
        **speed(times, config.optim.global_batch, world.world_size, flops, precision),
        "peak_memory_bytes": peak,
        "train_flops_per_image": flops.model,
        "hardware_flops_per_image": flops.hardware,
        "loss": mean_loss,
        "digest": digest(config),
        "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **provenance(),
    }


def speed(
    times: list[float], global_batch: int, ranks: int, flops: StepFlops, precision: str
) -> dict[str, Any]:
    """Rates from step times; MFU is null with a reason where the peak is unknown."""
    median = statistics.median(times)
    rate = global_batch / median
    peak = PEAK_BF16_FLOPS.get(device_name()) if precision == "bf16" else None
    reason = None if peak else f"no sourced {precision} peak for {device_name()}"
    return {
        "steps_measured": len(times),
        "images_per_s": rate,
        "images_per_s_per_rank": rate / ranks,
        "step_time_median_s": median,
        "step_time_p95_s": float(np.percentile(times, 95)),
        "achieved_flops_per_s": rate * flops.model,
        "mfu": rate * flops.model / (ranks * peak) if peak else None,
        "hfu": rate * flops.hardware / (ranks * peak) if peak else None,
        "mfu_reason": reason,
    }


def fixed_batch(config: RunConfig, world: World, micro: int) -> tuple[Any, ...]:
    """This rank's slice of one global batch, the same for every world size."""
    whole = config.optim.global_batch
    rng = torch.Generator().manual_seed(config.seed)
    spec = assemble.mask_spec(config, assemble.encoder_geometry(config).grid)
    size = config.model.image_size
    images = torch.randn(whole, 3, size, size, generator=rng)
    labels = torch.randint(CLASSES, (whole, 1), generator=rng)
    codes = torch.randint(CODES, (whole, spec.num_patches), generator=rng)
    mine = slice(world.rank * micro, (world.rank + 1) * micro)
    ids = np.arange(whole)[mine]
    masks = draw_masks(spec, config.seed, np.zeros_like(ids), ids).to(world.device)
    targets = class_targets(labels[mine], CLASSES, config.loss.kind, config.loss.label_smoothing)
    device = world.device
    return images[mine].to(device), targets.to(device), masks, codes[mine].to(device)


def describe(job: dict[str, Any]) -> dict[str, Any]:
    """A row's name columns."""
    return {
        "model": job["model"],
        "layout": job["layout"],
        "engine": "plain" if job["stage"] is None else f"zero{job['stage']}",
        "policy": job["policy"],
        "image_size": job["image_size"],
        "micro_batch": job["micro_batch"],
        "steps_warmup": job["warmup"],
    }


def same_model(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two rows train the same model on the same batch."""
    return all(a[name] == b[name] for name in ("model", "layout", "image_size"))


def name_of(row: dict[str, Any]) -> str:
    """A row for people."""
    rate = f"{row['images_per_s']:.1f} img/s" if "images_per_s" in row else row["error"]
    return f"{row['model']} {row['layout']} {row['engine']} {row['policy']}: {rate}"


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table."""
    lines = [
        "| model | layout | engine | recompute | ranks | images/s | x plain | step median | p95 "
        "| peak memory a rank | FLOP/image | MFU | loss |",
        "|---" * 13 + "|",
    ]
    for row in rows:
        names = f"| {row['model']} | {row['layout']} | {row['engine']} | {row['policy']} |"
        if "images_per_s" not in row:
            lines.append(f"{names} failed: {row['error']} |" + " |" * 8)
            continue
        ratio = f"{row['ratio_to_plain']:.2f}" if row["ratio_to_plain"] else "1"
        mfu = f"{row['mfu']:.1%}" if row["mfu"] is not None else "null"
        lines.append(
            f"{names} {row['world_size']} | {row['images_per_s']:.2f} | {ratio} "
            f"| {row['step_time_median_s']:.3f} s | {row['step_time_p95_s']:.3f} s "
            f"| {gib(row['peak_memory_bytes'])} | {si(row['train_flops_per_image'])} | {mfu} "
            f"| {row['loss']:.5f} |"
        )
    reasons = {row["mfu_reason"] for row in rows if row.get("mfu_reason")}
    return "\n".join([*lines, *(f"MFU is null: {reason}." for reason in sorted(reasons))])


if __name__ == "__main__":
    sys.exit(main())

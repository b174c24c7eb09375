"""Our runs' folders as table rows: the recipe from `run.json`, the rest from `log.jsonl`."""

import json
from pathlib import Path
from typing import Any

from supmim_scale.errors import UserError
from supmim_scale.hardware.gpus import gpu_of_device
from supmim_scale.scaling.columns import Row


def is_run(path: Path) -> bool:
    """Whether a path is a run's folder."""
    return (path / "run.json").is_file()


def find_runs(folders: list[Path]) -> list[Path]:
    """Run folders among these and directly below them."""
    found = []
    for folder in folders:
        below = sorted(p for p in folder.glob("*") if is_run(p)) if folder.is_dir() else []
        runs = [folder] if is_run(folder) else below
        if not runs:
            raise UserError(
                str(folder),
                "no run.json in it or below it",
                "runs, or a CSV or Parquet table",
                "check the path",
            )
        found += runs
    return found


def run_row(run_dir: Path, place: int) -> Row:
    """A finished run as a row: `params` of the encoder without its head, `samples_seen`,
    `train_flops` of its joint step without recomputation, last figures; `error` is 1 - held-out
    top-1. Raises `UserError` for an unfinished run."""
    facts = json.loads((run_dir / "run.json").read_text())
    last, recipe = _last_rows(run_dir), facts["recipe"]
    start, figures = last["start"], last["train"]
    samples = int(figures["steps_done"]) * start["global_batch"]
    row = {
        "row": place,
        "run": str(run_dir),
        "digest": facts["digest"],
        "seed": recipe["seed"],
        "objective": _objective(recipe),
        "schedule": recipe["optim"]["schedule"],
        "model": recipe["model"]["name"],
        "params": start["encoder_params"],
        "samples_seen": samples,
        "train_flops": samples * start["train_flops_per_image"],
        "world_size": start["world_size"],
        **{key: figures[key] for key in _TRAINED if key in figures},
    }
    gpu = gpu_of_device(facts.get("device", ""))
    if gpu is not None:
        rate = start["train_flops_per_image"] * figures["images_per_s"]
        row["mfu"] = rate / (gpu.bf16_flops_per_s * start["world_size"])
    if "eval" in last:
        row |= {"top1": last["eval"]["top1"], "error": 1 - last["eval"]["top1"]}
    return row


_TRAINED = ("loss", "class_loss", "mim_loss", "images_per_s", "data_wait", "peak_memory_bytes")


def _objective(recipe: dict[str, Any]) -> str:
    mim = recipe["mim"]
    return f"supervised + MIM, {mim['layout']}" if mim["weight"] else "supervised"


def _last_rows(run_dir: Path) -> dict[str, Any]:
    """The last log row of every kind."""
    path = run_dir / "log.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    try:
        last = {row["kind"]: row for row in map(json.loads, lines)}
    except ValueError:
        raise UserError(str(path), "a broken line", "JSON lines", "let the run resume") from None
    if not {"start", "train"} <= last.keys():
        raise UserError(
            str(run_dir),
            "no training step in log.jsonl",
            "a finished run",
            "let it finish, or leave it out",
        )
    return last

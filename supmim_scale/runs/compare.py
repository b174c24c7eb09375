"""Finished runs side by side, read from their files alone."""

from pathlib import Path
from typing import Any

from supmim_scale.errors import UserError
from supmim_scale.runs.rows import read_log
from supmim_scale.units import gib


def compare(run_dirs: list[Path]) -> str:
    """A table of the runs' last figures and the files worth opening."""
    runs = [_last_figures(run_dir) for run_dir in run_dirs]
    rows = {
        "held-out top-1": [_share(run, "eval", "top1") for run in runs],
        "held-out top-5": [_share(run, "eval", "top5") for run in runs],
        "class loss": [_number(run, "train", "class_loss") for run in runs],
        "MIM loss": [_number(run, "train", "mim_loss") for run in runs],
        "images/s": [f"{run['images_per_s']:.1f}" for run in runs],
        "peak memory a rank": [gib(run["train"]["peak_memory_bytes"]) for run in runs],
        "steps": [str(run["train"]["steps_done"]) for run in runs],
    }
    heads = [run_dir.name for run_dir in run_dirs]
    width = max(14, *(len(head) for head in heads)) + 2
    lines = [" " * 20 + "".join(head.rjust(width) for head in heads)]
    lines += [name.ljust(20) + "".join(v.rjust(width) for v in vs) for name, vs in rows.items()]
    lines.append("")
    for run_dir in run_dirs:
        for name, what in (
            ("reconstruction.png", "input, masked input, reconstruction"),
            ("log.jsonl", "every logged step"),
            ("recipe.yaml", "the resolved recipe"),
        ):
            if (run_dir / name).exists():
                lines.append(f"{run_dir / name}  ({what})")
    parent = run_dirs[0].parent
    lines.append(f"curves: tensorboard --logdir {parent} --host localhost")
    return "\n".join(lines)


def _last_figures(run_dir: Path) -> dict[str, Any]:
    rows = read_log(run_dir)
    last = {row["kind"]: row for row in rows}
    if not {"train", "eval"} <= set(last):
        raise UserError(
            str(run_dir), "an unfinished run", "one that was evaluated", "let it finish"
        )
    # The first interval warms up.
    training = [row["images_per_s"] for row in rows if row["kind"] == "train"]
    steady = training[1:] or training
    return last | {"images_per_s": sum(steady) / len(steady)}


def _share(run: dict[str, Any], kind: str, name: str) -> str:
    return f"{run[kind][name]:.2%}"


def _number(run: dict[str, Any], kind: str, name: str) -> str:
    return f"{run[kind][name]:.4f}" if run[kind][name] else "-"

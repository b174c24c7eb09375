"""The finished runs of a study as one table."""

import csv
import math
from collections.abc import Mapping
from pathlib import Path

import pyarrow
import pyarrow.parquet

from supmim_scale.config import digest
from supmim_scale.errors import UserError
from supmim_scale.files.whole import whole_file
from supmim_scale.jobs.manifest import StudyRun, read_design, read_manifest
from supmim_scale.jobs.status import RunState, run_states
from supmim_scale.scaling.columns import Row
from supmim_scale.scaling.runs import run_row
from supmim_scale.slurm.commands import JobState

TABLE = "runs"


def collect(folder: Path, jobs: Mapping[str, JobState]) -> tuple[Path, list[str]]:
    """Write `runs.csv` and `runs.parquet`, a row a finished run; returns the CSV, and a line for
    every run that is left out: not over, diverged, or run under another recipe than the study's.

    Columns are those of `scaling.runs.run_row`; losses are means since the log line before the
    last. Raises `UserError` where no run is left.
    """
    study, states = read_manifest(folder), run_states(folder, jobs)
    design = read_design(folder).get("runs", {})
    first_losses = {
        one.name: state.first_loss for one, state in zip(study.runs, states, strict=True)
    }
    rows: list[Row] = []
    left_out: list[str] = []
    for run, state in zip(study.runs, states, strict=True):
        trunk = design.get(run.name, {}).get("trunk", run.name)
        problem = _problem(run, state, first_losses[trunk])
        if problem:
            left_out.append(f"{run.name}: {problem}")
        else:
            row = {**run_row(folder / run.name, len(rows)), **design.get(run.name, {})}
            rows.append({**row, "run": run.name, "requeues": state.requeues})
    if not rows:
        raise UserError(
            str(folder),
            f"no run that is over ({'; '.join(left_out[:3])})",
            "one or more",
            f"look at supmim-scale jobs {folder}",
        )
    return _write(rows, folder), left_out


def _problem(run: StudyRun, state: RunState, first: float) -> str:
    """Why a run is no row of the table; `first` is the loss that it, or its trunk, began with."""
    if not state.is_over:
        return state.state + (f" ({state.why})" if state.why else "")
    if state.start["digest"] != digest(run.config()):
        ran, now = state.start["digest"], digest(run.config())
        return f"drifted: ran as digest {ran}, not {now}; remove its folder and resume"
    loss = state.figures["loss"]
    if not math.isfinite(loss) or loss > first:
        return f"diverged: loss {loss:.4g} at the end, {first:.4g} at the first log line"
    return ""


def _write(rows: list[Row], folder: Path) -> Path:
    path = folder / f"{TABLE}.csv"
    names = list(dict.fromkeys(key for row in rows for key in row))
    rows = [{name: row.get(name) for name in names} for row in rows]  # mfu of known GPUs only
    with whole_file(path) as part, open(part, "w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    with whole_file(path.with_suffix(".parquet")) as part:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), part)
    return path

"""The finished runs of a study as one table."""

import csv
import math
from collections.abc import Mapping
from pathlib import Path

import pyarrow
import pyarrow.parquet

from supmim_scale.cluster.jobs import RunState, run_states
from supmim_scale.cluster.slurm import JobState
from supmim_scale.cluster.study import StudyRun, read_manifest
from supmim_scale.config import digest
from supmim_scale.errors import UserError
from supmim_scale.scaling.runs import run_row
from supmim_scale.scaling.table import Row

TABLE = "runs"


def collect(folder: Path, jobs: Mapping[str, JobState]) -> tuple[Path, list[str]]:
    """Write `runs.csv` and `runs.parquet`, a row a finished run; returns the CSV, and a line for
    every run that is left out: not over, diverged, or run under another recipe than the study's.

    Columns are those of `scaling.runs.run_row`; losses are means since the log line before the
    last. Raises `UserError` where no run is left.
    """
    study, states = read_manifest(folder), run_states(folder, jobs)
    rows: list[Row] = []
    left_out: list[str] = []
    for run, state in zip(study.runs, states, strict=True):
        problem = _problem(run, state)
        if problem:
            left_out.append(f"{run.name}: {problem}")
        else:
            row = run_row(folder / run.name, len(rows))
            rows.append({**row, "run": run.name, "requeues": state.requeues})
    if not rows:
        raise UserError(
            str(folder), f"no run that is over ({'; '.join(left_out[:3])})", "one or more",
            f"look at supmim-scale jobs {folder}",
        )  # fmt: skip
    return _write(rows, folder), left_out


def _problem(run: StudyRun, state: RunState) -> str:
    """Why a run is no row of the table."""
    if not state.is_over:
        return state.state + (f" ({state.why})" if state.why else "")
    if state.start["digest"] != digest(run.config()):
        return f"drifted: ran as digest {state.start['digest']}, not {digest(run.config())}"
    loss, first = state.figures["loss"], state.first_loss
    if not math.isfinite(loss) or loss > first:
        return f"diverged: loss {loss:.4g} at the end, {first:.4g} at the first log line"
    return ""


def _write(rows: list[Row], folder: Path) -> Path:
    path = folder / f"{TABLE}.csv"
    part = path.with_suffix(".part")
    with open(part, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    part.replace(path)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path.with_suffix(".parquet"))
    return path

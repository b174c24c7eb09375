"""Runs at a glance: what Slurm says of their jobs, and what their folders say of the runs."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supmim_scale.cluster.slurm import JobState
from supmim_scale.cluster.study import MANIFEST, read_manifest
from supmim_scale.cluster.submission import SUBMITTED
from supmim_scale.units import duration

ENDED_WELL, UNKNOWN = "COMPLETED", "UNKNOWN"
IN_QUEUE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED")
_TAIL_BYTES = 64 * 1024  # of a job's log, searched for its last error


@dataclass(frozen=True)
class RunState:
    """A line of the table. `start`, `figures` and `held_out` are the last rows of the run's log:
    how it started, a log step, an evaluation; empty where there is none."""

    name: str
    job: str | None
    state: str
    steps_done: int
    num_steps: int | None
    start: Mapping[str, Any]
    figures: Mapping[str, float]
    held_out: Mapping[str, float]
    requeues: int
    why: str

    @property
    def is_over(self) -> bool:
        """Whether all steps are done and evaluated."""
        return self.state == ENDED_WELL

    @property
    def is_in_queue(self) -> bool:
        """Whether Slurm has it, waiting or running."""
        return self.state in IN_QUEUE


def run_states(folder: Path, jobs: Mapping[str, JobState]) -> list[RunState]:
    """Of every run under a folder: a study's in the order of its manifest, others by name."""
    if (folder / MANIFEST).is_file():
        elements = _elements(_rows(folder / SUBMITTED))
        runs = read_manifest(folder).runs
        return [_state(folder / run.name, jobs, elements.get(i)) for i, run in enumerate(runs)]
    found = []
    for path in sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []:
        if (path / MANIFEST).is_file():
            found += run_states(path, jobs)
        elif (path / "log.jsonl").is_file() or (path / SUBMITTED).is_file():
            submitted = _rows(path / SUBMITTED)
            found.append(_state(path, jobs, submitted[-1] if submitted else None))
    return found


def table(states: Iterable[RunState]) -> str:
    """For people: a line a run, and under it why it failed."""
    heads = ("run", "job", "state", "step", "loss", "img/s", "ETA", "requeues")
    lines, whys = [heads], {}
    for place, one in enumerate(states, start=1):
        figures = one.figures
        lines.append((
            one.name, one.job or "-", one.state,
            f"{one.steps_done}/{one.num_steps}" if one.num_steps else "-",
            f"{figures['loss']:.4f}" if "loss" in figures else "-",
            f"{figures['images_per_s']:.1f}" if "images_per_s" in figures else "-",
            duration(figures["eta_s"]) if one.state == "RUNNING" and "eta_s" in figures else "-",
            str(one.requeues),
        ))  # fmt: skip
        if one.why:
            whys[place] = one.why
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    shown = []
    for place, line in enumerate(lines):
        cells = [
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        shown.append("  ".join(cells).rstrip())
        if place in whys:
            shown.append(f"  {whys[place]}")
    return "\n".join(shown)


def _state(
    path: Path, jobs: Mapping[str, JobState], submitted: Mapping[str, Any] | None
) -> RunState:
    log = _rows(path / "log.jsonl")
    last = {row["kind"]: row for row in log}
    start, train = last.get("start", {}), last.get("train", {})
    job = _newest(start.get("job"), submitted["job"] if submitted else None)
    known = jobs.get(job) if job else None
    is_over = "eval" in last and train.get("steps_done") == start.get("num_steps")
    state = known.state if known else ENDED_WELL if is_over else _from_files(path)
    why = ""
    if state not in (ENDED_WELL, *IN_QUEUE):
        code = known.exit_code if known else ""
        why = _last_error(path, job, submitted) or (f"exit code {code}" if code else "")
    return RunState(
        path.name, job, state, train.get("steps_done", 0), start.get("num_steps"), start, train,
        last.get("eval", {}), known.restarts if known else start.get("restart", 0), why,
    )  # fmt: skip


def _from_files(path: Path) -> str:
    """What is left to say of an unfinished run that Slurm does not know."""
    if (path / "stopped").is_file():
        return "STOPPED"
    return UNKNOWN if (path / "log.jsonl").is_file() else "NOT STARTED"


def _newest(*jobs: str | None) -> str | None:
    """The job with the highest number: the last one that was submitted."""
    named = [job for job in jobs if job]
    return max(named, key=lambda job: int(re.match(r"\d*", job)[0] or 0)) if named else None  # type: ignore[index]


def _elements(submitted: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The last submission of every element of a study's arrays."""
    return {
        element: {**row, "job": f"{row['job']}_{element}"}
        for row in submitted
        for element in row.get("elements", [])
    }


def _last_error(path: Path, job: str | None, submitted: Mapping[str, Any] | None) -> str:
    """The last `error:` line of the job's log."""
    names = [f"*_{job}.log"] if job else []
    folders = [path, path.parent] if submitted else []
    for log in (log for folder in folders for name in names for log in folder.glob(name)):
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        own = [line for line in lines if line.startswith("error: ")]
        others = [line for line in lines if "error: " in line]
        if own or others:
            return (own or others)[-1]
    return ""


def _rows(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON-lines file; one that is being written is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows

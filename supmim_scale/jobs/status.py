"""Runs at a glance: what Slurm says of their jobs, and what their folders say of the runs."""

import json
import math
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supmim_scale.errors import UserError
from supmim_scale.jobs.manifest import MANIFEST, SUBMITTED, read_manifest
from supmim_scale.slurm.commands import JobState, job_states
from supmim_scale.units import duration

OVER = "COMPLETED"  # all steps done and evaluated, whatever became of the job after that
# man squeue, JOB STATE CODES: states that a job does not leave by itself. All others wait or run.
_ENDED = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
)
_JOBS = "jobs.tsv"  # of a run: a line a start, job and log, written by the batch script
_TAIL_BYTES = 64 * 1024  # of a job's log, searched for its last error


@dataclass(frozen=True)
class RunState:
    """A line of the table. `start`, `figures` and `held_out` are the last rows of the run's log:
    how it started, a log step, an evaluation; empty where there is none. `first_loss` is that of
    its first log line."""

    name: str
    job: str | None
    state: str
    is_in_queue: bool
    steps_done: int
    num_steps: int | None
    start: Mapping[str, Any]
    first_loss: float
    figures: Mapping[str, float]
    held_out: Mapping[str, float]
    requeues: int
    why: str

    @property
    def is_over(self) -> bool:
        """Whether all steps are done and evaluated."""
        return self.state == OVER


def run_states(folder: Path, jobs: Mapping[str, JobState], prefix: str = "") -> list[RunState]:
    """The state of every run in a folder: a study's in its manifest's order, others by name."""
    if (folder / MANIFEST).is_file():
        elements = _elements(_rows(folder / SUBMITTED))
        runs = read_manifest(folder).runs
        return [
            _state(folder / run.name, prefix + run.name, jobs, elements.get(place))
            for place, run in enumerate(runs)
        ]
    if _is_run(folder):
        return [_state(folder, folder.name, jobs, None)]
    found = []
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        if (path / MANIFEST).is_file():
            found += run_states(path, jobs, f"{path.name}/")
        elif _is_run(path):
            found.append(_state(path, path.name, jobs, None))
    return found


def known_jobs() -> dict[str, JobState]:
    """What Slurm says of the user's jobs; nothing where there is none, or it does not answer."""
    if shutil.which("squeue") is None:
        return {}
    try:
        return job_states()
    except UserError as error:
        print(
            f"warning: Slurm did not answer; showing only what the run folders say: {error}",
            file=sys.stderr,
        )
        return {}


def states_of(folder: Path, jobs: Mapping[str, JobState]) -> str:
    """The table of a folder's runs. Raises `UserError` where there is no folder."""
    if not folder.is_dir():
        raise UserError(str(folder), "no such folder", "one of runs", "name it, or train first")
    return status_text(run_states(folder, jobs))


def status_text(states: Iterable[RunState]) -> str:
    """For people: a line a run, and under it why it failed."""
    heads = ("run", "job", "state", "step", "loss", "img/s", "ETA", "requeues")
    lines, whys = [heads], [""]
    for one in states:
        figures = one.figures
        lines.append(
            (
                one.name,
                one.job or "-",
                one.state,
                f"{one.steps_done}/{one.num_steps}" if one.num_steps else "-",
                f"{figures['loss']:.4f}" if "loss" in figures else "-",
                f"{figures['images_per_s']:.1f}" if "images_per_s" in figures else "-",
                duration(figures["eta_s"])
                if one.state == "RUNNING" and "eta_s" in figures
                else "-",
                str(one.requeues),
            )
        )
        whys.append(one.why)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = []
    for line, why in zip(lines, whys, strict=True):
        cells = [
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        shown += ["  ".join(cells).rstrip(), *([f"  {why}"] if why else [])]
    return "\n".join(shown)


def _is_run(path: Path) -> bool:
    return any((path / name).is_file() for name in ("log.jsonl", SUBMITTED, _JOBS))


def _state(path: Path, name: str, jobs: Mapping[str, JobState], element: str | None) -> RunState:
    log = _rows(path / "log.jsonl")
    last = {row["kind"]: row for row in log}
    first_loss = next((row["loss"] for row in log if row["kind"] == "train"), math.nan)
    start, train, held_out = (last.get(kind, {}) for kind in ("start", "train", "eval"))
    started = _started(path / _JOBS)
    submitted = [row["job"] for row in _rows(path / SUBMITTED)]
    job = _newest(element, *submitted, *started)
    known = jobs.get(job) if job else None
    steps_done, num_steps = train.get("steps_done", 0), start.get("num_steps")
    is_over = num_steps is not None and held_out.get("steps_done") == num_steps
    in_queue, state, why = False, OVER if is_over else _unfinished(path, known), ""
    if known is not None and known.state not in _ENDED:
        in_queue, state = True, known.state
    if not in_queue and not is_over and job:
        code = f"exit code {known.exit_code}" if known else ""
        why = _mistake(path) or _last_error(started.get(job)) or code
    requeues = known.restarts if known else start.get("restart", 0)
    return RunState(
        name,
        job,
        state,
        in_queue,
        steps_done,
        num_steps,
        start,
        first_loss,
        train,
        held_out,
        requeues,
        why,
    )


def _unfinished(path: Path, known: JobState | None) -> str:
    """What to call a run that is not over and not in the queue."""
    if known is not None:
        return "ENDED EARLY" if known.state == "COMPLETED" else known.state
    if (path / "stopped").is_file():
        return "STOPPED"
    return "UNFINISHED" if (path / "log.jsonl").is_file() else "NOT STARTED"


def _newest(*jobs: str | None) -> str | None:
    """The job with the highest number: the last one that was submitted."""
    named = [(int(found[0]), job) for job in jobs if job and (found := re.match(r"\d+", job))]
    return max(named)[1] if named else None


def _elements(submitted: list[dict[str, Any]]) -> dict[int, str]:
    """The last job of every element of a study's arrays."""
    arrays = [row for row in submitted if "elements" in row]
    return {place: f"{row['job']}_{place}" for row in arrays for place in row["elements"]}


def _started(path: Path) -> dict[str, Path]:
    """Job and log of every start of a run."""
    lines = path.read_text().splitlines() if path.is_file() else []
    pairs = (line.partition("\t")[::2] for line in lines)
    return {job: Path(log) for job, log in pairs}


def _mistake(path: Path) -> str:
    """The line that the run ended with."""
    file = path / "mistake"
    return file.read_text().strip() if file.is_file() else ""


def _last_error(log: Path | None) -> str:
    """The last line of a job's log that says what was wrong: ours before Slurm's."""
    if log is None or not log.is_file():
        return ""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    own = [line for line in lines if line.startswith("error: ")]
    return (own or [line for line in lines if "error: " in line] or [""])[-1]


def _rows(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON-lines file; one that is being written is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows

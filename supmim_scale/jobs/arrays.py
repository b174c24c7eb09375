"""A study's runs as jobs: arrays of those that are not over, and the report after them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from supmim_scale.errors import UserError
from supmim_scale.jobs import templates
from supmim_scale.jobs.manifest import MANIFEST, Study
from supmim_scale.jobs.status import run_states
from supmim_scale.jobs.submit import Submission, require_data, require_plain, require_shape
from supmim_scale.slurm import commands

_PAYS = ("account", "qos", "reservation")


@dataclass(frozen=True)
class Wave:
    """Runs that can be submitted together: places in the manifest, and their job array."""

    elements: tuple[int, ...]
    array: Submission


@dataclass(frozen=True)
class StudyJobs:
    """Arrays of a study's unfinished runs, one after the other, and the job that waits for all.
    `waiting` are runs left out, since what they branch off from is in the queue."""

    waves: tuple[Wave, ...]
    fit: Submission
    waiting: tuple[str, ...]

    def text(self) -> str:
        """What would be submitted, for people."""
        return "\n# then\n".join(job.text() for job in (*(w.array for w in self.waves), self.fit))

    def require_acceptable(self) -> None:
        """Raise `UserError` where Slurm would refuse any of them; submits nothing."""
        for job in (*(wave.array for wave in self.waves), self.fit):
            job.require_acceptable()

    def submit(self) -> Iterator[str]:
        """Submit one after the other; a line for people as soon as each has its id."""
        arrays: list[str] = []
        for wave in self.waves:
            record = {"elements": list(wave.elements)}
            arrays.append(wave.array.submit(record, after=arrays[-1:]))
            yield f"job array {arrays[-1]}: {len(wave.elements)} runs"
        yield f"then job {self.fit.submit(after=arrays)}"
        yield from self.left_out()

    def left_out(self) -> list[str]:
        """A line for every run that waits."""
        why = "what it branches off from is queued; resume again later"
        return [f"left out: {name}, {why}" for name in self.waiting]


def study_jobs(
    folder: Path,
    study: Study,
    limit: int,
    options: Mapping[str, str],
    fit_options: Mapping[str, str],
    *,
    checks_data: bool = True,
) -> StudyJobs:
    """Jobs of the runs that are neither over nor in the queue.

    `limit`: runs of an array side by side. `fit_options` are those of the job after them, which
    also takes over who pays. Raises `UserError` where a run cannot work.
    """
    states = run_states(folder, commands.job_states()) if (folder / MANIFEST).is_file() else []
    over = {one.name for one in states if one.is_over}
    queued = {one.name for one in states if one.is_in_queue}
    waves, waiting = waves_of(study, over, queued)
    if limit < 1:
        raise UserError("--limit", f"{limit}", "1 or more", "say how many may run side by side")
    array, fit = (templates.find_template(name) for name in ("scaling_study", "scaling_fit"))
    head = templates.options_of(array.read_text()) | dict(options)
    for run in study.runs:
        require_shape(run.config(), head)
        if checks_data:
            require_data(run.config())
    require_plain(folder)
    own = {"job-name": study.name, "output": f"{folder}/%x_%A_%a.log", **options}
    after = {
        "job-name": f"{study.name}_fit",
        "output": f"{folder}/%x_%j.log",
        **{key: options[key] for key in _PAYS if key in options},
        **fit_options,
    }
    return StudyJobs(
        tuple(Wave(w, _array(array, own, w, limit, folder)) for w in waves),
        Submission(fit, after, (str(folder),), folder, "fit_job.sh"),
        waiting,
    )


def waves_of(
    study: Study, over: set[str], queued: set[str]
) -> tuple[list[tuple[int, ...]], tuple[str, ...]]:
    """Places of the runs to submit, each after the wave of the run that it branches off from; and
    the names of those whose parent is in the queue already."""
    depth: dict[str, int] = {}
    waiting: list[str] = []
    for run in study.runs:  # a parent stands before its children
        if run.name in over or run.name in queued:
            continue
        if run.parent in queued or run.parent in waiting:
            waiting.append(run.name)
        else:
            depth[run.name] = depth[run.parent] + 1 if run.parent in depth else 0
    last = max(depth.values(), default=-1)
    waves = [
        tuple(place for place, run in enumerate(study.runs) if depth.get(run.name) == level)
        for level in range(last + 1)
    ]
    return waves, tuple(waiting)


def _array(
    template: Path, options: Mapping[str, str], elements: Sequence[int], limit: int, folder: Path
) -> Submission:
    places = {"array": f"{','.join(map(str, elements))}%{limit}"}
    return Submission(template, places | dict(options), (str(folder / MANIFEST),), folder)

"""A study's runs as jobs: an array for those that are not over, the table and the fit after it."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from supmim_scale.cluster import slurm, templates
from supmim_scale.cluster.jobs import RunState, run_states
from supmim_scale.cluster.study import MANIFEST, Study, read_manifest
from supmim_scale.cluster.submission import (
    Submission,
    require_data,
    require_plain,
    require_shape,
)
from supmim_scale.errors import UserError

TABLE = "runs.csv"
_FIGURES = ("loss", "class_loss", "mim_loss", "top1", "images_per_s", "data_wait",
            "peak_memory_bytes")  # fmt: skip
_PAYS = ("account", "qos", "reservation")
_FACTS = ("digest", "encoder_params", "train_flops_per_image", "global_batch", "world_size")


@dataclass(frozen=True)
class StudyJobs:
    """The array of a study's unfinished runs, and the job that waits for it."""

    elements: tuple[int, ...]
    array: Submission
    fit: Submission
    limit: int

    def text(self) -> str:
        """What would be submitted, for people."""
        return self.array.text() + "\n# then, when the array is over:\n" + self.fit.text()

    def require_acceptable(self) -> None:
        """Raise `UserError` where Slurm would refuse either; submits nothing."""
        self.array.require_acceptable()
        self.fit.require_acceptable()

    def submit_array(self) -> str:
        """Submit the runs; returns the array's id."""
        return self.array.submit({"elements": list(self.elements)})

    def submit_fit(self, array: str) -> str:
        """Submit the job that waits for the array; returns its id."""
        return self.fit.submit(after=array)


def study_jobs(
    folder: Path,
    study: Study,
    limit: int,
    options: Mapping[str, str],
    fit_options: Mapping[str, str],
    *,
    checks_data: bool = True,
) -> StudyJobs | None:
    """Jobs of the runs that are neither over nor in the queue; None where there are none.

    `limit`: elements that run side by side. `fit_options` are those of the job after them, which
    also takes over who pays. Raises `UserError` where a run cannot work.
    """
    states = run_states(folder, slurm.job_states()) if (folder / MANIFEST).is_file() else []
    busy = {one.name for one in states if one.is_over or one.is_in_queue}
    elements = tuple(i for i, run in enumerate(study.runs) if run.name not in busy)
    if not elements:
        return None
    if limit < 1:
        raise UserError("--limit", f"{limit}", "1 or more", "say how many may run side by side")
    array, fit = (templates.find_template(name) for name in ("scaling_study", "scaling_fit"))
    head = templates.options_of(array.read_text()) | dict(options)
    for run in study.runs:
        require_shape(run.config(), head)
        if checks_data:
            require_data(run.config())
    require_plain(folder)
    own = {"array": f"{','.join(map(str, elements))}%{limit}",
           "job-name": study.name, "output": f"{folder}/%x_%A_%a.log", **options}  # fmt: skip
    after = {"job-name": f"{study.name}_fit", "output": f"{folder}/%x_%j.log",
             **{key: options[key] for key in _PAYS if key in options}, **fit_options}  # fmt: skip
    return StudyJobs(
        elements,
        Submission(array, own, (str(folder / MANIFEST),), folder),
        Submission(fit, after, (str(folder),), folder, "fit_job.sh"),
        limit,
    )


def collect(folder: Path) -> tuple[Path, list[RunState]]:
    """Write `runs.csv`: a row for every run that is over; returns it and the runs left out.

    `images_seen` and `train_flops` are of the whole run; losses are means since the log line
    before the last, top-1 and top-5 those of the held-out set.
    """
    study, states = read_manifest(folder), run_states(folder, _known_jobs())
    rows = [
        _row(run.name, run.overrides, state)
        for run, state in zip(study.runs, states, strict=True)
        if state.is_over
    ]
    if not rows:
        raise UserError(str(folder), "no run that is over", "one or more",
                        f"look at supmim-scale jobs {folder}")  # fmt: skip
    path = folder / TABLE
    with open(path.with_suffix(".part"), "w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    path.with_suffix(".part").replace(path)
    return path, [state for state in states if not state.is_over]


def _known_jobs() -> dict[str, slurm.JobState]:
    """Slurm's word on the jobs; folders alone speak where there is no Slurm."""
    try:
        return slurm.job_states()
    except UserError:
        return {}


def _row(name: str, overrides: Sequence[str], state: RunState) -> dict[str, object]:
    start, figures, held_out = state.start, state.figures, state.held_out
    images = state.steps_done * start["global_batch"]
    return {
        "run": name,
        **{f"set:{key}": value for key, _, value in (word.partition("=") for word in overrides)},
        **{key: start[key] for key in _FACTS},
        "steps_done": state.steps_done,
        "images_seen": images,
        "train_flops": images * start["train_flops_per_image"],
        **{f"train_{key}": figures[key] for key in _FIGURES},
        **{f"eval_{key}": value for key, value in held_out.items() if key.startswith("top")},
    }

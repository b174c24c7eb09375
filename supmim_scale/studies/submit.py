"""A study as jobs: arrays of the runs that are not over or queued, and the report after them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from supmim_scale.jobs.arrays import StudyJobs, study_jobs
from supmim_scale.jobs.manifest import require_begun, write_manifest
from supmim_scale.jobs.submit import job_options, parse_options
from supmim_scale.planner.jobs import require_fits
from supmim_scale.studies.design import Design


def jobs_of(
    design: Design,
    folder: Path,
    *,
    resume: bool = False,
    limit: int = 4,
    nodes: int | None = None,
    gpus_per_node: str | None = None,
    sbatch: Sequence[str] = (),
    fit_sbatch: Sequence[str] = (),
    checks_data: bool = True,
) -> StudyJobs:
    """What would be submitted. `limit`: runs of an array side by side; `sbatch`, `fit_sbatch`:
    options of sbatch for the arrays and for the job after them. What is not given is the study's.

    Raises `UserError` where a study is submitted twice, or resumed before it was submitted.
    """
    shape = design.cluster
    if gpus_per_node is None and "gpus_per_node" in shape:
        gpus_per_node = str(shape["gpus_per_node"])
    require_begun(folder, resume)
    return study_jobs(
        folder,
        design.study,
        limit,
        job_options(nodes or shape.get("nodes"), gpus_per_node, sbatch),
        parse_options(fit_sbatch),
        checks_data=checks_data,
    )


def submit_study(
    design: Design, folder: Path, jobs: StudyJobs, *, gpu: str | None = None, planned: bool = True
) -> None:
    """Submit the arrays and the job after them, saying each as it gets its number.

    `gpu`: of the partition; `planned`: ask first whether the runs fit on it. Raises `UserError`
    where they do not, or where Slurm refuses.
    """
    if planned:
        alike = {
            replace(one.config, seed=0, optim=replace(one.config.optim, steps=None)): one.config
            for one in design.runs
        }
        require_fits(list(alike.values()), jobs.waves[0].array, gpu or design.cluster.get("gpu"))
    jobs.require_acceptable()
    write_manifest(design.study, folder, design.text, design.facts())
    print(f"{design.name}, {len(design.runs)} runs")
    for line in jobs.submit():
        print(line, flush=True)

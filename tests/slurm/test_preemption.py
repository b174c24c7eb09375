"""Told to go, requeued, and gone on: the losses are those of the run that nobody disturbed.

A rank is held still before Slurm is asked to disturb the run, so that the run cannot be over
first; Slurm continues it with the signal that it sends.
"""

import os
import signal

import pytest
from conftest import ROOT, command
from forked import once
from slurm_fixture import Jobs, curve, rows, settled, wait_for

RECIPE = ["optim.steps=24", "checkpoint.every=4"]


@pytest.fixture(scope="module")
def calm(shards, tmp_path_factory):
    """The undisturbed run on as many ranks."""
    folder = tmp_path_factory.mktemp("calm")
    words = Jobs(None, shards, folder).smoke
    command("train", *words, *RECIPE, "--ranks", 2, f"log.run_dir={folder}/run")
    return curve(folder / "run")


def held(jobs, job, step=3):
    """The run after some steps, one of its ranks held still."""
    jobs.wait_for_step(step)
    os.kill(jobs.ranks()[-1], signal.SIGSTOP)
    assert jobs.facts(job)["JobState"] == "RUNNING"


def assert_went_on(jobs, job, calm):
    """Requeued once, finished, the same losses, and not one step done twice."""
    facts = jobs.end_of(job)
    assert facts["JobState"] == "COMPLETED", jobs.log(job)
    assert facts["Restarts"] == "1", jobs.log(job)
    assert curve(jobs.runs / "run") == calm
    assert "restart 0: srun ended with 75" in jobs.log(job)
    assert f"job {job}, restart 1: on" in jobs.log(job)
    first, second = rows(jobs.runs / "run", "start")
    assert (first["restart"], second["restart"]) == (0, 1)
    assert f"stopped after step {second['steps_done']} (" in jobs.log(job)  # zero steps lost


def test_an_administrators_requeue(jobs, calm):
    job = jobs.train(*RECIPE)
    held(jobs, job)
    jobs.slurm.command("scontrol", "requeue", job)
    assert_went_on(jobs, job, calm)
    assert "(SIGTERM), saved" in jobs.log(job)


def test_the_warning_of_the_time_limit(jobs, calm):
    """Slurm looks every 30 s and warns up to 60 s early: of a minute, after 29 s at least."""
    job = jobs.train(*RECIPE, options=["--time=1", "--signal=USR1@1"])
    held(jobs, job)
    wait_for(lambda: "(SIGUSR1), saved" in jobs.log(job), 90)
    jobs.slurm.command("scontrol", "update", f"JobId={job}", "TimeLimit=30", check=False)
    assert_went_on(jobs, job, calm)
    assert f"job {job}, restart 0: requeued" in jobs.log(job)


@pytest.mark.parametrize("partition", ["low", "grace"])
def test_a_job_of_higher_priority(jobs, calm, partition):
    """`low` requeues at once; of `grace` Slurm would end the job for good if it ends in time."""
    job = jobs.train(*RECIPE, options=[f"--partition={partition}", "--exclusive"])
    held(jobs, job)
    jobs.sbatch("--partition=high", "--nodes=2", "--exclusive", "--job-name=high", "--wrap=sleep 3")
    assert_went_on(jobs, job, calm)


def test_a_cancelled_job_is_not_requeued(jobs):
    job = jobs.train(*RECIPE, tasks=1)
    held(jobs, job)
    jobs.slurm.command("scancel", job)
    facts = jobs.end_of(job)
    settled()
    assert (jobs.facts(job)["JobState"], facts["Restarts"]) == ("CANCELLED", "0"), jobs.log(job)
    assert "restart 0: requeued" not in jobs.log(job)
    last = jobs.steps_done()
    assert (jobs.runs / "run/stopped").read_text() == f"after step {last} (SIGTERM), saved\n"


def test_requeues_without_progress_come_to_an_end(jobs):
    """Checkpoints cannot be written, so that every start does the same step again: of two such
    starts, the second is the first's requeue, and the third ends at once."""
    (jobs.runs / "run").mkdir(parents=True)
    (jobs.runs / "run/checkpoints").write_text("in the way")
    job = jobs.train(
        *RECIPE,
        "checkpoint.on_failure=continue",
        "checkpoint.time_budget_s=0.01",
        tasks=1,
        SUPMIM_IDLE_STARTS="2",
    )
    facts = jobs.end_of(job)
    assert (facts["JobState"], facts["Restarts"]) == ("FAILED", "2"), jobs.log(job)
    assert jobs.log(job).count("NOT saved") == 2
    assert "2 starts without a new checkpoint: not started again" in jobs.log(job)


def test_an_element_of_an_array_is_requeued_alone(jobs):
    """Both ways round: the last element's own job id is the whole array's."""
    lines = [
        f"{name}\t" + "\t".join(once([*jobs.smoke, *RECIPE[1:], "optim.steps=2", *own]))
        for name, own in (
            ("a", []),
            ("b", ["checkpoint.time_budget_s=0.01"]),
            ("c", ["checkpoint.time_budget_s=0.01"]),
        )
    ]
    jobs.runs.mkdir()
    (jobs.runs / "manifest.tsv").write_text("\n".join(lines) + "\n")
    array = jobs.sbatch(
        "--nodes=1",
        "--ntasks-per-node=1",
        "--gpus-per-node=1",
        "--cpus-per-task=3",
        "--array=0-2%2",
        str(ROOT / "slurm/scaling_study.sh"),
        str(jobs.runs / "manifest.tsv"),
    )
    facts = [jobs.end_of(f"{array}_{element}") for element in range(3)]
    assert [one["JobState"] for one in facts] == ["COMPLETED"] * 3, jobs.log(array)
    assert [one["Restarts"] for one in facts] == ["0", "1", "1"], jobs.log(array)
    for name in ("b", "c"):
        assert [row["steps_done"] for row in rows(jobs.runs / name, "start")] == [0, 1]

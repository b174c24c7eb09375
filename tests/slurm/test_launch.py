"""Jobs on a real Slurm: templates as they stand train, and what cannot work says so at once."""

import os
import subprocess
from datetime import timedelta

import pytest
from conftest import ROOT, command
from slurm_fixture import PIXELS, assert_one_line, curve, rows

from supmim_scale.errors import RankError
from supmim_scale.launch.join import meet
from supmim_scale.slurm.allocation import read_allocation

STEPS = "optim.steps=6"


def test_four_tasks_on_two_nodes_learn_what_one_process_learns(jobs, tmp_path):
    jobs.smoke.remove(PIXELS)
    job = jobs.train(STEPS, nodes=2, tasks=2)
    alone = tmp_path / "alone"
    command("train", *jobs.smoke, STEPS, "engine.kind=plain", f"log.run_dir={alone}")
    assert jobs.end_of(job)["JobState"] == "COMPLETED", jobs.log(job)
    log = jobs.log(job)
    assert "preflight: 2 nodes, 4 ranks" in log
    assert f"job {job}, restart 0, on node[1-2]" in log
    assert "4 ranks on cpu (started by srun)  zero3" in log
    ours, theirs = curve(jobs.runs / "run"), curve(alone)
    assert [step for step, _, _ in ours] == [1, 2, 3, 4, 5, 6]
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    assert rows(jobs.runs / "run", "eval")[-1]["top1"] == rows(alone, "eval")[-1]["top1"]
    (start,) = rows(jobs.runs / "run", "start")
    assert (start["job"], start["world_size"], start["num_steps"]) == (job, 4, 6)


def test_what_cannot_work_is_one_line_in_the_log_in_the_first_seconds(jobs, tmp_path):
    """Submitted together, for they wait for nothing but Python."""
    cases = {
        "recipe": ({"words": ["model.widht=3"]}, ["model.widht: found an unknown", "mean width"]),
        "data": ({"words": ["input.root=/nowhere"]}, ["input.root", "/nowhere"]),
        "read_only": ({"words": ["log.run_dir=/proc/run"]}, ["log.run_dir", "/proc/run"]),
        "one_each": (
            {"options": ["--gpus-per-task=1"], "words": ["engine.device=auto"]},
            ["node", "no GPU that torch can use"],
        ),
        "shape": (
            {"tasks": 1, "options": ["--gpus-per-node=2"], "words": ["engine.device=auto"]},
            ["1 tasks and 2 GPUs", "--ntasks-per-node=2"],
        ),
        "cores": ({"options": ["--cpus-per-task=2"]}, ["--cpus-per-task", "input.threads=2"]),
        "gpus": (
            {"words": ["engine.device=auto"]},
            ["node", "no GPU that torch can use", "engine.device=cpu"],
        ),
    }
    submitted = {}
    for name, (how, _) in cases.items():
        words, options = how.pop("words", []), ["--mem=1G", *how.pop("options", [])]
        tasks = how.pop("tasks", 2)
        submitted[name] = jobs.train(STEPS, *words, run=name, tasks=tasks, options=options)
    for name, (_, expected) in cases.items():
        facts = jobs.end_of(submitted[name])
        assert (facts["JobState"], facts["ExitCode"]) == ("FAILED", "2:0"), jobs.log(
            submitted[name]
        )
        assert_one_line(jobs.log(submitted[name]), *expected)


def test_gpus_that_the_partition_lacks_are_refused_at_submission(jobs):
    done = jobs.sbatch(
        "--nodes=1",
        "--gpus-per-node=8",
        "--cpus-per-task=1",
        str(ROOT / "slurm/vitl_in21k.sh"),
        check=False,
    )
    assert done.returncode == 1
    assert "Requested node configuration is not available" in done.stderr
    assert not jobs.runs.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_under_the_run_folder_is_one_line(jobs, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", small], check=False)
    if done.returncode:
        pytest.skip("no right to mount")
    try:
        (small / "filler").write_bytes(b"x" * 12 * 1024)
        job = jobs.train(STEPS, f"log.run_dir={small}/run")
        assert jobs.end_of(job)["ExitCode"] == "2:0", jobs.log(job)
        assert_one_line(jobs.log(job), "log.run_dir", "No space left")
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_node_that_does_not_come_is_named(slurm, monkeypatch):
    """Rank 0 of three, the other two on a node whose tasks never start."""
    monkeypatch.setenv("SLURM_CONF", str(slurm.conf))
    given = read_allocation(
        {
            "SLURM_PROCID": "0",
            "SLURM_NTASKS": "3",
            "SLURM_LOCALID": "0",
            "SLURM_JOB_ID": "7",
            "SLURM_STEP_NODELIST": "node[1-2]",
            "SLURM_STEP_TASKS_PER_NODE": "1,2",
        }
    )
    with pytest.raises(RankError, match=r"node2: found 2 of 3 ranks not there .*--exclude=node2"):
        meet(given, "127.0.0.1", 0, "cpu", within=timedelta(seconds=1))

"""A task or a node that dies: the job ends soon, the log names the node, and it goes on."""

import os
import signal
import time

from slurm_fixture import curve, rows, wait_for

RECIPE = ["optim.steps=24", "checkpoint.every=2"]


def test_a_killed_task_ends_the_job_and_a_requeue_finishes_it(jobs):
    job = jobs.train(*RECIPE, nodes=2, tasks=1)
    jobs.wait_for_step(3)
    os.kill(jobs.ranks()[0], signal.SIGSTOP)  # so that the run is not over first
    os.kill(jobs.ranks()[1], signal.SIGKILL)
    began = time.time()
    facts = jobs.end_of(job)
    assert time.time() - began < 60
    assert facts["JobState"] == "FAILED", jobs.log(job)
    assert "node2: task 1: Killed" in jobs.log(job)
    jobs.slurm.command("scontrol", "requeue", job)
    wait_for(lambda: jobs.facts(job)["Restarts"] == "1", 30)
    assert jobs.end_of(job)["JobState"] == "COMPLETED", jobs.log(job)
    assert [step for step, _, _ in curve(jobs.runs / "run")] == list(range(1, 25))


def test_a_crash_is_requeued_where_the_site_says_so(jobs):
    job = jobs.train(*RECIPE, SUPMIM_REQUEUE_CRASHED="yes")
    wait_for(lambda: (jobs.runs / "run/checkpoints/latest").exists(), 120, every=0.01)
    os.kill(jobs.ranks()[0], signal.SIGSTOP)
    os.kill(jobs.ranks()[1], signal.SIGKILL)
    wait_for(lambda: jobs.facts(job)["Restarts"] == "1", 60)
    assert jobs.end_of(job)["JobState"] == "COMPLETED", jobs.log(job)


def test_a_dead_node_is_named_and_the_run_goes_on_with_the_others(jobs):
    job = jobs.train(
        "optim.steps=400", "optim.schedule=wsd", "checkpoint.every=2", nodes=2, tasks=1
    )
    jobs.wait_for_step(5)
    began = time.time()
    jobs.slurm.kill_node("node2")
    try:
        wait_for(lambda: jobs.facts(job)["Restarts"] == "1", 90)
        assert time.time() - began < 60
        assert "node2" in jobs.log(job)
        jobs.slurm.command("scancel", job)
        jobs.end_of(job)
        done = jobs.steps_done()
        # The requeued job keeps its two nodes; a new one takes what is there.
        again = jobs.train(
            f"optim.steps={done + 3}",
            "optim.schedule=wsd",
            "checkpoint.every=2",
            "--allow-drift",
            "optim.steps",
            nodes=1,
            tasks=1,
        )
        assert jobs.end_of(again)["JobState"] == "COMPLETED", jobs.log(again)
    finally:
        jobs.slurm.start_node("node2")
        jobs.slurm.wait_for_nodes()
    starts = rows(jobs.runs / "run", "start")
    assert [row["world_size"] for row in starts] == [2, 1]
    assert starts[1]["steps_done"] > 0
    assert jobs.steps_done() == done + 3

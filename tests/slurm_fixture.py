"""A real Slurm for tests, and jobs as users submit them."""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import pytest
from forked import once
from local_slurm import LocalSlurm, missing, wait_for

ROOT = Path(__file__).resolve().parents[1]
PIXELS = "mim.target=pixel"
JOB_S = 240  # within which a small job ends, on a machine that is busy
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")


def started(**size):
    """A cluster, stopped at the end. Nothing is installed: without Slurm, tests are skipped."""
    if absent := missing():
        pytest.skip(f"no {', '.join(absent)} (Debian: apt-get install slurm-wlm munge)")
    cluster = LocalSlurm(tempfile.mkdtemp(prefix="slurm_"), **size)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def slurm():
    """Two nodes of 16 cores and two GPUs that are counted, not there."""
    yield from started()


@pytest.fixture
def jobs(slurm, shards, tmp_path):
    return Jobs(slurm, shards, tmp_path)


class Jobs:
    """Templates submitted as they stand, with small recipes, into a folder of the test's."""

    def __init__(self, slurm, shards, folder):
        from conftest import SMALL

        self.slurm, self.folder, self.shards = slurm, folder, shards
        self.runs = folder / "runs"
        self.environment = {
            "SUPMIM_HOME": str(ROOT),
            "SUPMIM_PYTHON": sys.executable,
            "OMP_NUM_THREADS": "1",
            "SUPMIM_RUNS": str(self.runs),
        }
        # Words after a template's name: a smoke run on the CPU, without clustering first.
        small = [word for word in SMALL if not word.startswith("log.every")]
        self.smoke = [
            "smoke",
            *small,
            f"input.root={shards}",
            "engine.device=cpu",
            "log.every=1",
            PIXELS,
        ]

    def sbatch(self, *words, check=True, **environment):
        done = self.slurm.command(
            "sbatch",
            "--parsable",
            f"--output={self.folder}/%x_%A.log",
            *once(words),
            check=check,
            **self.environment,
            **environment,
        )
        return done.stdout.strip() if check else done

    def train(
        self,
        *words,
        nodes=1,
        tasks=2,
        options=(),
        script="slurm/vitl_in21k.sh",
        run="run",
        **environment,
    ):
        """Submit a template with overrides; returns the job's id."""
        return self.sbatch(
            f"--nodes={nodes}",
            f"--ntasks-per-node={tasks}",
            f"--gpus-per-node={tasks}",
            "--cpus-per-task=3",
            *options,
            str(ROOT / script),
            *self.smoke,
            f"log.run_dir={self.runs / run}",
            *words,
            **environment,
        )

    def facts(self, job):
        """What scontrol says of a job."""
        text = self.slurm.command("scontrol", "show", "job", job).stdout.partition("\n\n")[0]
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def end_of(self, job, seconds=JOB_S):
        """A job's facts once it is over and not queued again."""
        try:
            wait_for(lambda: self.facts(job)["JobState"] in ENDED, seconds, every=0.5)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.facts(job)}\n{self.log(job)}") from None
        return self.facts(job)

    def log(self, job):
        found = [p for p in self.folder.rglob("*.log") if f"_{job}" in p.name]
        return "\n".join(path.read_text() for path in found)

    def command(self, *words, check=True, **environment):
        """`supmim-scale ...` on the login node."""
        from conftest import command

        given = {**self.slurm.environ, **self.environment, **environment}
        return command(*words, check=check, **given)

    def wait_for_step(self, step, run="run", seconds=JOB_S):
        wait_for(lambda: self.steps_done(run) >= step, seconds, every=0.05)

    def steps_done(self, run="run"):
        return max((row["steps_done"] for row in rows(self.runs / run)), default=0)

    def ranks(self, run="run"):
        """Process ids of a run's ranks, in order."""
        found = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline") as file:
                    words = file.read().split("\0")
                with open(f"/proc/{pid}/environ") as file:
                    variables = dict(v.partition("=")[::2] for v in file.read().split("\0"))
            except OSError:
                continue
            is_rank = words[1:4] == ["-m", "supmim_scale", "train"] and "SLURM_STEPID" in variables
            if is_rank and f"log.run_dir={self.runs / run}" in words:
                found[int(variables["SLURM_PROCID"])] = int(pid)
        return [found[rank] for rank in sorted(found)]


def rows(run_dir, kind="train"):
    """Whole lines of a run's log."""
    path, found = run_dir / "log.jsonl", []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:  # being written
            continue
    return [row for row in found if row["kind"] == kind]


def curve(run_dir):
    return [(row["steps_done"], row["loss"], row["grad_norm"]) for row in rows(run_dir)]


def assert_one_line(log, *words):
    """One `error:` line of ours, without a traceback."""
    assert "Traceback" not in log, log
    lines = [line for line in log.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, log
    for word in words:
        assert word in lines[0], lines[0]


def settled(seconds=1.0):
    """Time for Slurm to do what it should not."""
    time.sleep(seconds)

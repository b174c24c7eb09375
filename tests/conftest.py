"""Fixtures: a small data set of real JPEGs, and commands as users start them.

Three quarters of a small run are imports. One process a session does them once and forks every
command and rank from there (tests/fork_server.py); a fork does what `python -m supmim_scale` does.
Some tests start interpreters of their own: `command_of_its_own`, torchrun, DeepSpeed's launcher,
and all of Slurm. Workers follow the cores. What a session started ends with it,
also where pytest is killed: the server of forks by its end of a socket, Slurm by tests/keeper.py.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import forked
import pytest
from fork_server import die_with_parent

# Before torch: two workers with two threads each make small products many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from supmim_scale.data.synth import SynthSpec, write_synthetic

pytest_plugins = ["slurm_fixture", "eval_fixture"]
ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "model.width=32",
    "model.depth=2",
    "model.heads=2",
    "mim.codebook_size=16",
    "mim.codebook_images=16",
    "optim.global_batch=8",
    "optim.steps=4",
    "optim.warmup_steps=1",
    "log.every=2",
]
AUGMENTED = [
    "augment.kind=three_augment",
    "augment.color_jitter=0.3",
    "augment.erase_prob=0.25",
    "augment.mixup_alpha=0.8",
    "augment.cutmix_alpha=1.0",
]


# Files that take longest, begun first so that no worker is left alone with one.
LONGEST = (
    "slurm/test_preemption",
    "engine/test_zero",
    "test_resume",
    "slurm/test_failures",
    "studies/test_study_end_to_end",
    "slurm/test_study",
    "slurm/test_launch",
    "evaluate/test_eval_commands",
    "test_end_to_end",
    "export/test_parity_of_sizes",
    "data/test_tools",
    "test_checkpoints",
    "test_scripts",
)


def pytest_collection_modifyitems(items):
    def place(item):
        name = item.nodeid.partition("::")[0].removesuffix(".py").removeprefix("tests/")
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=place)


def pytest_xdist_auto_num_workers():
    """One more than cores: tests of Slurm wait for it most of the time."""
    return len(os.sched_getaffinity(0)) + 1


SERVER = pytest.StashKey()


def pytest_configure(config):
    is_worker = hasattr(config, "workerinput")
    if is_worker:
        die_with_parent(os.getppid())
    elif not forked.GPU.exists() and not config.option.collectonly:
        config.stash[SERVER] = forked.ForkServer()


def pytest_sessionstart(session):
    if SERVER in session.config.stash:
        session.config.stash[SERVER].owns(session.config._tmp_path_factory.getbasetemp())


def pytest_unconfigure(config):
    if SERVER in config.stash:
        config.stash[SERVER].stop()


@pytest.fixture(autouse=True)
def _signals_as_they_were():
    """A command that was refused in this process ignores them, and so would its children."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """96 training images in 3 shards and 33 held out in 2, of 16 classes."""
    root = tmp_path_factory.mktemp("datasets") / "small"
    write_synthetic(root, SynthSpec(num_train=96, num_val=33, shard_size=32), workers=2)
    return root


def command(*arguments, check=True, timeout=240, **environment):
    """What `python -m supmim_scale ...` does, in a process forked for it."""
    return forked.run(
        ["-m", "supmim_scale", *arguments],
        check=check,
        timeout=timeout,
        env={**os.environ, **environment},
    )


def command_of_its_own(*arguments, timeout=240):
    """Run `python -m supmim_scale ...` as a user does: a new interpreter, and one a rank."""
    return subprocess.run(
        [sys.executable, "-m", "supmim_scale", *forked.once(arguments)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        timeout=timeout,
    )


def run_ranks(script, *arguments, ranks=2, timeout=400):
    """Run a script on several ranks; its output is shown if it fails."""
    done = forked.run_ranks([script, *arguments], ranks, timeout=timeout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done


def assert_refused(done, *words):
    """Exit code 2 and one line that holds the words."""
    assert done.returncode == 2, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[0], lines[0]

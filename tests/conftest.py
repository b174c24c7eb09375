"""Fixtures: a small data set of real JPEGs, and processes as users start them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Before torch: two workers with two threads each make small products many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from supmim_scale.data.synth import SynthSpec, write_synthetic

pytest_plugins = ["slurm_fixture", "eval_fixture"]
ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "model.width=32", "model.depth=2", "model.heads=2", "mim.codebook_size=16",
    "mim.codebook_images=16", "optim.global_batch=8", "optim.steps=4", "optim.warmup_steps=1",
    "log.every=2",
]  # fmt: skip
AUGMENTED = [
    "augment.kind=three_augment", "augment.color_jitter=0.3", "augment.erase_prob=0.25",
    "augment.mixup_alpha=0.8", "augment.cutmix_alpha=1.0",
]  # fmt: skip


# Files that take longest, begun first so that neither worker is left alone with one.
LONGEST = ("slurm/test_preemption", "engine/test_zero", "test_resume", "slurm/test_failures",
           "studies/test_study_end_to_end", "slurm/test_study", "slurm/test_launch",
           "evaluate/test_eval_commands", "test_end_to_end", "export/test_parity_of_sizes",
           "data/test_tools", "test_checkpoints", "test_scripts")  # fmt: skip


def pytest_collection_modifyitems(items):
    def place(item):
        name = item.nodeid.partition("::")[0].removesuffix(".py").removeprefix("tests/")
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=place)


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """96 training images in 3 shards and 33 held out in 2, of 16 classes."""
    root = tmp_path_factory.mktemp("datasets") / "small"
    write_synthetic(root, SynthSpec(num_train=96, num_val=33, shard_size=32), workers=2)
    return root


def command(*arguments, check=True, timeout=240, **environment):
    """Run `python -m supmim_scale ...` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "supmim_scale", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=check,
        cwd=ROOT,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def torchrun(script, *arguments, ranks=2, timeout=400):
    """Run a script on several ranks; its output is shown if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone",
         f"--nproc-per-node={ranks}", str(script), *map(str, arguments)],
        capture_output=True, text=True, cwd=ROOT, timeout=timeout, check=False,
    )  # fmt: skip
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

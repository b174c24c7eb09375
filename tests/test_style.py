"""The checks of pre-commit, so that the one test command runs them all."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "check",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["mypy"],
        ["shellcheck", "-x", *(str(p) for p in sorted(ROOT.glob("*/*.sh"))), ".ci/run"],
    ],
    ids=lambda check: " ".join(check[:2])[:20],
)
def test_the_tree_passes(check):
    done = subprocess.run(
        [BIN / check[0], *check[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr

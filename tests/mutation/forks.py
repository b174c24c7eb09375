"""Test runs that begin with everything heavy imported: forks of this process, a copy of the tree
each. Linux."""

import contextlib
import ctypes
import importlib
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# What the tests import beside our package, of which each fork takes its own copy.
_HEAVY = (
    "torch",
    "torch.utils.tensorboard",
    "timm",
    "scipy.stats",
    "scipy.optimize",
    "PIL.Image",
    "sklearn.linear_model",
    "sklearn.neighbors",
    "sklearn.metrics",
    "sklearn.cluster",
    "safetensors.torch",
    "pyarrow",
    "yaml",
    "matplotlib",
    "psutil",
    "_pytest.assertion",
    "nvidia.dali.plugin.pytorch",
)
_COPIED = (
    "supmim_scale",
    "tests",
    "benchmarks",
    "ds_configs",
    "slurm",
    "setup.cfg",
    "pyproject.toml",
    "README.md",
    "quickstart.py",
)
# The one module of ours that a fork finds imported: torch lets its operators be declared once.
_OPERATORS = "supmim_scale.models.torchvision_ops"
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux's prctl
_MOST_BYTES = 24 << 30  # of addresses: a fault must not eat the machine


def warm_up() -> None:
    """Import once what every run would."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(ROOT))
    importlib.import_module(_OPERATORS).declare_missing_ops()
    for name in list(sys.modules):
        if name.partition(".")[0] == "supmim_scale" and name != _OPERATORS:
            del sys.modules[name]
    sys.path.remove(str(ROOT))
    for name in _HEAVY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def copy_tree(target: Path) -> Path:
    """A copy of what the tests need."""
    for name in _COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        elif (ROOT / name).exists():
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


@dataclass
class TestRun:
    """A pytest run in a fork, over some files of a tree."""

    __test__ = False
    tree: Path
    files: list[str]
    limit_s: float
    started: float = field(default_factory=time.monotonic)
    pid: int = 0

    def start(self) -> "TestRun":
        """Fork."""
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._become()
        return self

    @property
    def log(self) -> Path:
        """What the run printed."""
        return self.tree / "log.txt"

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.started

    def poll(self) -> str | None:
        """passed, failed, timed out; None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self._kill_group()
            return "passed" if os.waitstatus_to_exitcode(status) == 0 else "failed"
        if self.seconds > self.limit_s:
            self.kill()
            return "timed out"
        return None

    def kill(self) -> None:
        """End it, and what it started."""
        self._kill_group()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def _become(self) -> None:
        """The fork's whole life."""
        code: Any = 3
        try:
            os.setsid()
            ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
            resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
            out = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for handle in (1, 2):
                os.dup2(out, handle)
            os.chdir(self.tree)
            os.environ |= {"PYTHONPATH": str(self.tree), "PYTHONDONTWRITEBYTECODE": "1"}
            sys.path[:0] = [str(self.tree)]
            import pytest

            options = [
                "-x",
                "-q",
                "-n",
                "0",
                "-p",
                "no:cacheprovider",
                "-W",
                "ignore::pytest.PytestAssertRewriteWarning",
            ]
            code = pytest.main([*options, f"--basetemp={self.tree / 'tmp'}", *self.files])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(int(code))

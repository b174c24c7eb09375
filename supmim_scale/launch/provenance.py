"""What a run and a benchmark row say of where they came from."""

import os
import platform
import resource
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from supmim_scale.slurm.allocation import job_label

_PACKAGES = ("torch", "deepspeed", "timm", "nvidia-dali-cuda120", "nvidia-dali-cuda130", "numpy")


def provenance() -> dict[str, object]:
    """Versions, hardware and the commit of the source tree (None outside a checkout)."""
    return {
        "commit": _commit(),
        "versions": versions(),
        "python": platform.python_version(),
        "device": device_name(),
        "device_count": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "host_cpus": os.cpu_count(),
    }


def launched_by() -> dict[str, object]:
    """Slurm's job, how often it was requeued, and its nodes; None outside Slurm."""
    return {
        "job": job_label(os.environ),
        "restart": int(os.environ.get("SLURM_RESTART_COUNT", 0)),
        "nodes": os.environ.get("SLURM_STEP_NODELIST"),
    }


def versions() -> dict[str, str]:
    """Versions of the installed packages that a result may depend on."""
    found = {name: _version(name) for name in _PACKAGES}
    return {name: version for name, version in found.items() if version is not None}


def device_name() -> str:
    """The GPU's name, or the CPU's model."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def peak_memory_bytes() -> int:
    """Peak bytes allocated on this rank's GPU, or the process's peak resident set on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    head = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    dirty = subprocess.run(
        ["git", "--no-optional-locks", "-C", str(root), "status", "--porcelain", "-uno"],
        capture_output=True,
        text=True,
        check=False,
    )
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "") or None

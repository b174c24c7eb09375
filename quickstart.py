#!/usr/bin/env python3
"""The two commands of the README, for a machine that has only Python and git.

python3 quickstart.py demo    set up .venv, make JPEG shards, train and compare
python3 quickstart.py test    set up .venv, run the tests

Both install CPU or CUDA packages by what the machine has. Standard library only.
"""

import os
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENV = ROOT / ".venv"
PYTHON = ENV / "bin" / "python"
CUDA13_DRIVER = 580  # first NVIDIA driver branch of CUDA 13


def main() -> int:
    jobs = {"demo": demo, "test": test}
    if len(sys.argv) < 2 or sys.argv[1] not in jobs:
        print(__doc__, file=sys.stderr)
        return 2
    os.chdir(ROOT)
    return jobs[sys.argv[1]](sys.argv[2:])


def demo(overrides: list[str]) -> int:
    """Train the smoke recipe and its supervised baseline under ZeRO-3, then report both."""
    start = time.time()
    set_up("")
    if not (ROOT / "datasets/smoke/classes.txt").exists():
        supmim("data", "synth", "datasets/smoke")
    ranks = str(largest_power_of_two(len(gpu_drivers())) if gpu_drivers() else 2)
    folder = f"runs/demo_{time.strftime('%Y%m%d_%H%M%S')}"
    runs = {"supervised + MIM": [], "supervised": ["mim.weight=0"]}
    for name, own in runs.items():
        print(f"\n== {name} ==", flush=True)
        run_dir = f"log.run_dir={folder}/{name.replace(' + ', '_').lower()}"
        supmim("train", "smoke", "--ranks", ranks, run_dir, *own, *overrides)
    print(f"\n== report, {time.time() - start:.0f} s after the start ==", flush=True)
    supmim("report", *(f"{folder}/{name.replace(' + ', '_').lower()}" for name in runs))
    return 0


def test(arguments: list[str]) -> int:
    """Run the test suite."""
    set_up("dev")
    return subprocess.run([PYTHON, "-m", "pytest", *arguments], check=False).returncode


def set_up(extra: str) -> None:
    """Make `.venv` and install the package in it, editable, with CPU or CUDA parts."""
    if not PYTHON.exists():
        print(f"making {ENV}", flush=True)
        venv.create(ENV, with_pip=True)
    drivers = gpu_drivers()
    cuda = "cuda13" if not drivers or min(drivers) >= CUDA13_DRIVER else "cuda12"
    extras = ",".join(filter(None, (cuda, extra)))
    pin = [] if drivers else ["-c", "requirements/cpu.txt"]
    what = f"{len(drivers)} GPUs, {cuda}" if drivers else "no GPU: CPU packages"
    stamp, wanted = ENV / "installed", f"{extras} {pin} {(ROOT / 'setup.cfg').read_text()}"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"installing ({what}); a few hundred MB the first time", flush=True)
    run(PYTHON, "-m", "pip", "install", "-q", *pin, "-e", f".[{extras}]")
    stamp.write_text(wanted)


def gpu_drivers() -> list[int]:
    """Major driver version of every NVIDIA GPU found; empty without one."""
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    lines = answer.stdout.split() if answer.returncode == 0 else []
    return [int(line.split(".")[0]) for line in lines]


def largest_power_of_two(number: int) -> int:
    """The smoke recipe's batch of 64 divides over this many ranks."""
    return min(64, 1 << (number.bit_length() - 1))


def supmim(*arguments: str) -> None:
    run(PYTHON, "-m", "supmim_scale", *arguments)


def run(*command: object) -> None:
    """Run a command; its exit code becomes ours if it fails."""
    code = subprocess.run([str(word) for word in command], check=False).returncode
    if code:
        sys.exit(code)


if __name__ == "__main__":
    sys.exit(main())

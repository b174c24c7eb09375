"""A benchmark's row, measured in processes of its own."""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from supmim_scale.errors import EXIT_USER_ERROR, UserError
from supmim_scale.launch.join import join_world, leave_world
from supmim_scale.launch.provenance import provenance
from supmim_scale.launch.world import World

Job = dict[str, Any]  # what a rank is told to measure, as JSON carries it
Row = dict[str, Any]  # what it found
TIMEOUT_S = 1800


def gpu_count() -> int:
    """GPUs of this machine."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def add_models_flag(parser: argparse.ArgumentParser) -> None:
    """Which models; the default fits the machine."""
    parser.add_argument(
        "--models",
        nargs="+",
        default=["vit_l16" if gpu_count() else "vit_ti16"],
        help="names, or NAME,key=value with keys of a recipe's model section",
    )


def add_worker_flag(parser: argparse.ArgumentParser) -> None:
    """How `launch` reaches the script again."""
    parser.add_argument("--worker", help=argparse.SUPPRESS)


def launch(script: str, job: Job, ranks: int) -> Row:
    """The row that `ranks` processes of `script --worker JOB` measure, or its error in `error`.

    On a CPU the cores are shared out between them, unless OMP_NUM_THREADS is set: one thread on a
    busy machine disturbs a ratio least.
    """
    environment = dict(os.environ)
    if not torch.cuda.is_available():
        threads = max(1, len(os.sched_getaffinity(0)) // ranks)
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={ranks}",
            script,
            "--worker",
            json.dumps(job),
            "--out",
            str(out),
        ]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                env=environment,
                check=False,
                timeout=TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"no answer after {TIMEOUT_S} s"}
        if out.exists():
            return json.loads(out.read_text())  # type: ignore[no-any-return]
        return {"error": reason_of(done.stderr)}


def reason_of(stderr: str) -> str:
    """The line of a failed process that says why."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    own = [line for line in lines if line.startswith("error: ")]
    named = [line for line in lines if re.search(r"\w(Error|Exception)\b: ", line)]
    return (own or named or lines or ["no output"])[0][:300]


def work(job: Job, out: Path, measure: Callable[[Job, World], Row]) -> int:
    """Collective: measure one row; rank 0 writes it. The process's exit code."""
    try:
        world = join_world()
        row = measure(job, world)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    if world.is_main:
        out.write_text(json.dumps(row))
    leave_world(world)
    return 0


def origin() -> Row:
    """When and on what a row was measured."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"measured_at": now, **provenance()}


def append(path: Path, row: Row) -> None:
    """Add a row to a file, at once: a session that is cut off keeps what it has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        file.write(json.dumps(row) + "\n")

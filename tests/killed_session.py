"""Not collected by itself: a session that tests/test_processes.py kills in the middle."""

import json
import os
import time
from pathlib import Path

import forked


def test_everything_is_started_and_nothing_is_stopped(slurm, tmp_path):
    command = forked.start(["-c", "import time; time.sleep(600)"])
    slurm.command(
        "sbatch",
        f"--output={tmp_path}/job.log",
        "--wrap=touch begun; exec sleep 600",
        f"--chdir={tmp_path}",
    )
    while not (tmp_path / "begun").exists():
        time.sleep(0.1)
    told = Path(os.environ["SUPMIM_TOLD"])
    facts = {"folder": str(slurm.folder), "pids": [command.pid, *slurm.pids.values()]}
    told.with_suffix(".part").write_text(json.dumps(facts))
    told.with_suffix(".part").rename(told)
    time.sleep(600)

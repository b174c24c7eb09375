"""A run's folder: who may write in it, what it resumes from, and what it records."""

import fcntl
import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from supmim_scale.config import IDENTITY_SECTIONS, as_yaml, digest, resolved
from supmim_scale.config.schema import RunConfig
from supmim_scale.errors import UserError
from supmim_scale.files.whole import write_whole
from supmim_scale.launch.provenance import provenance
from supmim_scale.runs.checkpoints import Checkpoint, newest_whole

CHECKPOINTS, LOG, STOPPED = "checkpoints", "log.jsonl", "stopped"


def lock(run_dir: Path) -> IO[str]:
    """Hold the folder for this process, until it ends however it ends.

    Raises `UserError` where another holds it, or where it cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = open(run_dir / "lock", "a+")  # noqa: SIM115
    except OSError as error:
        raise UserError("log.run_dir", str(error), "a writable folder", "name another") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        raise UserError(
            "log.run_dir",
            f"{run_dir} in use by {file.read().strip() or 'another job'}",
            "a folder that no other job writes in",
            "wait for it or set log.run_dir=FOLDER",
        ) from None
    file.truncate(0)
    job = os.environ.get("SLURM_JOB_ID", "none")
    file.write(f"process {os.getpid()} on {socket.gethostname()}, Slurm job {job}\n")
    file.flush()
    return file


def open_run_dir(config: RunConfig, run_dir: Path, allow_drift: Sequence[str]) -> Checkpoint | None:
    """The checkpoint that the run resumes from, None for a new run; writes down what will run.

    Raises `UserError` where the folder holds another experiment or a finished one.
    """
    checkpoint, faults = newest_whole(run_dir / CHECKPOINTS)
    for fault in faults:
        print(f"warning: {fault}", flush=True)
    if checkpoint is not None:
        _require_same_recipe(config, checkpoint, allow_drift)
    elif (run_dir / LOG).exists() and (run_dir / "weights").exists():
        raise UserError(
            "log.run_dir",
            f"{run_dir} with a run in it and no checkpoint",
            "a new folder",
            "set log.run_dir=FOLDER or remove the old run",
        )
    try:
        (run_dir / STOPPED).unlink(missing_ok=True)
        (run_dir / "recipe.yaml").write_text(as_yaml(config))
        facts = {"digest": digest(config), **provenance(), "recipe": resolved(config)}
        (run_dir / "run.json").write_text(json.dumps(facts, indent=2) + "\n")
        cut_log(run_dir / LOG, checkpoint.steps_done if checkpoint else 0)
    except OSError as error:
        raise UserError("log.run_dir", str(error), "a writable folder", "name another") from None
    return checkpoint


def note_stop(run_dir: Path, line: str) -> None:
    """Say that the run stopped early, in order. srun's code is its highest task's, so that a 75
    among other codes proves nothing: what is requeued is a folder that says this."""
    (run_dir / STOPPED).write_text(line + "\n")


def require_unfinished(checkpoint: Checkpoint | None, num_steps: int, run_dir: Path) -> None:
    """Raise `UserError` where the last step has been done."""
    if checkpoint is not None and checkpoint.steps_done >= num_steps:
        raise UserError(
            "log.run_dir",
            f"{run_dir} with all {num_steps} steps done",
            "a new folder, or more steps",
            "set log.run_dir=FOLDER, or raise optim.steps with --allow-drift optim.steps",
        )


def identity_of(config: RunConfig) -> dict[str, Any]:
    """The half of the recipe that may change the result, by dotted key."""
    whole = resolved(config)
    return dict(_flat({name: whole[name] for name in IDENTITY_SECTIONS}))


def cut_log(path: Path, steps_done: int) -> None:
    """Keep a log's lines up to a step: those after it come again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["steps_done"] <= steps_done:
                kept.append(line + "\n")
        except ValueError:
            continue  # a line that was being written when the process died
    write_whole(path, "".join(kept))


def _require_same_recipe(
    config: RunConfig, checkpoint: Checkpoint, allow_drift: Sequence[str]
) -> None:
    now, then = identity_of(config), checkpoint.facts["recipe"]
    differing = [key for key in sorted(now.keys() | then.keys()) if now.get(key) != then.get(key)]
    refused = [key for key in differing if key not in allow_drift]
    if refused:
        shown = ", ".join(f"{key} {now.get(key)!r} (was {then.get(key)!r})" for key in refused)
        raise UserError(
            str(checkpoint.path),
            shown,
            "the recipe that the run began with",
            "take it, set another log.run_dir, or allow it: "
            + " ".join(f"--allow-drift {key}" for key in refused),
        )


def _flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, value in tree.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found

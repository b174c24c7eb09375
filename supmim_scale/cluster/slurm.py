"""Slurm's own commands; the only module that calls them."""

import subprocess
from collections.abc import Sequence

from supmim_scale.errors import UserError

_PATIENCE_S = 60


def host_names(node_list: str) -> list[str]:
    """`node[1-2]` as names, in Slurm's order."""
    return _run("scontrol", "show", "hostnames", node_list).split()


def node_address(name: str) -> str:
    """The address that Slurm itself reaches a node at."""
    return _fields(_run("scontrol", "show", "node", name)).get("NodeAddr", name)


def submit(options: Sequence[str], script: str, arguments: Sequence[str] = ()) -> str:
    """Submit a batch script; returns the job's id.

    Raises `UserError` with Slurm's own words where it refuses.
    """
    answer = _run("sbatch", "--parsable", *options, script, *arguments)
    return answer.strip().partition(";")[0]


def require_acceptable(options: Sequence[str], script: str, arguments: Sequence[str] = ()) -> None:
    """Raise `UserError` where Slurm would not take the script; submits nothing."""
    _run("sbatch", "--test-only", *options, script, *arguments)


def job_facts(job: str) -> dict[str, str]:
    """What Slurm still knows of a job (`12`, or an array's `12_3`); empty where it has forgotten:
    finished jobs are kept for MinJobAge, 300 s unless the site says otherwise."""
    try:
        return _fields(_run("scontrol", "show", "job", job))
    except UserError:
        return {}


def _fields(text: str) -> dict[str, str]:
    """`Name=value` words of scontrol's first record."""
    record = text.partition("\n\n")[0]
    return dict(word.split("=", 1) for word in record.split() if "=" in word)


def _run(*command: str) -> str:
    where = " ".join(command[:3])
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_PATIENCE_S
        )
    except FileNotFoundError:
        raise UserError(where, f"no {command[0]}", "Slurm", "use a login node") from None
    except subprocess.TimeoutExpired:
        raise UserError(
            where, f"no answer in {_PATIENCE_S} s", "one", "look at scontrol ping"
        ) from None
    if done.returncode:
        said = [line.removeprefix(f"{command[0]}: error: ") for line in done.stderr.splitlines()]
        raise UserError(where, "; ".join(said) or "no reason", "Slurm's yes", "change the options")
    return done.stdout

"""Slurm's own commands; the only module that calls them."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from supmim_scale.errors import UserError

WITH_SITE = 'set -e; source "$SUPMIM_HOME/slurm/site.sh" >&2; '
_PATIENCE_S = 60
_QUEUE = "JobArrayID:60,State:20,RestartCnt:10,exit_code:10"  # squeue --Format


@dataclass(frozen=True)
class JobState:
    """What Slurm says of a job: PENDING, RUNNING, COMPLETED, FAILED, ...; its requeues."""

    state: str
    restarts: int
    exit_code: str


def host_names(node_list: str) -> list[str]:
    """`node[1-2]` as names, in Slurm's order."""
    return _run(["scontrol", "show", "hostnames", node_list]).split()


def node_address(name: str) -> str:
    """The address that Slurm itself reaches a node at."""
    words = _run(["scontrol", "show", "node", name]).split()
    return dict(word.split("=", 1) for word in words if "=" in word).get("NodeAddr", name)


def submit(words: Sequence[str], environment: Mapping[str, str], script: str = "") -> str:
    """Run sbatch with these words, under the site's settings; returns the job's id, or '' of
    --test-only. `environment` names SUPMIM_HOME; `script` goes to sbatch's standard input.

    Raises `UserError` with Slurm's own words where it refuses.
    """
    command = ["bash", "-c", WITH_SITE + 'exec "$@"', "site", "sbatch", "--parsable", *words]
    answer = _run(command, environment, script)
    return answer.strip().rpartition("\n")[2].partition(";")[0]


def job_states() -> dict[str, JobState]:
    """The user's jobs, array elements one by one (`12_3`), as far as Slurm still knows them: it
    forgets finished ones after MinJobAge, 300 s unless the site says otherwise."""
    text = _run(["squeue", "--me", "--array", "--states=all", "--noheader", f"--Format={_QUEUE}"])
    found = {}
    for line in text.splitlines():
        job, state, restarts, code = line.split()
        found[job] = JobState(state, int(restarts), code)
    return found


def outside_job() -> dict[str, str]:
    """The environment without the variables of a job that this process may be in."""
    return {k: v for k, v in os.environ.items() if k == "SLURM_CONF" or k[:6] != "SLURM_"}


def _run(
    command: Sequence[str], environment: Mapping[str, str] | None = None, text: str = ""
) -> str:
    program = next(word for word in command if word in ("sbatch", "squeue", "scontrol"))
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=_PATIENCE_S,
            env=environment,
            input=text,
        )
    except FileNotFoundError:
        raise UserError(program, "no such program", "Slurm", "use a login node") from None
    except subprocess.TimeoutExpired:
        raise UserError(
            program, f"no answer in {_PATIENCE_S} s", "one", "look at scontrol ping"
        ) from None
    if done.returncode == 127:  # a shell's word for a missing program
        raise UserError(program, "no such program", "Slurm", "use a login node")
    if done.returncode:
        # The last line says it; those before are how it came to that.
        said = [line.replace(f"{program}: error: ", "") for line in done.stderr.splitlines()[-1:]]
        raise UserError(
            program,
            "; ".join(said) or f"code {done.returncode}",
            f"{program} to succeed",
            "change the sbatch options, or look at scontrol ping",
        )
    return done.stdout

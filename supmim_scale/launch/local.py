"""Ranks on this machine: one process each, signals passed on, their exit code kept.

torchrun ends with 1 whatever a rank said, and dies of SIGUSR1; the codes and signals of
preemption must come through. On a cluster srun does this.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from supmim_scale.errors import EXIT_DONE, EXIT_PREEMPTED

_PASSED_ON = (signal.SIGTERM, signal.SIGUSR1)
_SAVING_S, _FAILING_S = 60.0, 3.0  # for the others when a rank has stopped, or failed
_LOOK_EVERY_S = 0.1


def launch(num_ranks: int, arguments: Sequence[str]) -> int:
    """Run `python -m supmim_scale ARGUMENTS` as so many ranks; the code of the first that fails.

    A rank that fails ends the others: they would wait for it.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // num_ranks)
    shared = {
        "OMP_NUM_THREADS": str(threads),
        **os.environ,
        "WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    command = [sys.executable, "-m", "supmim_scale", *arguments]
    ranks = [
        subprocess.Popen(command, env={**shared, "RANK": str(i), "LOCAL_RANK": str(i)})
        for i in range(num_ranks)
    ]

    def pass_on(number: int, _: object) -> None:
        for rank in ranks:
            rank.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    try:
        while all(rank.poll() in (None, EXIT_DONE) for rank in ranks):
            if all(rank.poll() == EXIT_DONE for rank in ranks):
                return EXIT_DONE
            time.sleep(_LOOK_EVERY_S)
        first = next(rank.returncode for rank in ranks if rank.poll() not in (None, EXIT_DONE))
        _wait(ranks, _SAVING_S if first == EXIT_PREEMPTED else _FAILING_S)
    finally:
        for rank in ranks:
            rank.kill()
        for number, handler in before.items():
            signal.signal(number, handler)
    return first if first > 0 else 128 - first  # a signal's number, as shells say it


def _wait(ranks: Sequence["subprocess.Popen[bytes]"], seconds: float) -> None:
    """Let the others end by themselves for a while: they may be about to."""
    deadline = time.monotonic() + seconds
    while any(rank.poll() is None for rank in ranks) and time.monotonic() < deadline:
        time.sleep(_LOOK_EVERY_S)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

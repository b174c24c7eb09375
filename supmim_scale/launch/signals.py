"""When a run should stop early: a signal of the cluster's, or its time is over.

Standard library only, so that handlers stand before torch is imported.
"""

import signal
import time
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # the end, and Slurm's warning of it


def ignore_signals() -> None:
    """From here on the process ends by itself: another rank's end must not cut it short, for then
    its exit code would be the signal's."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class Stopper:
    """Notes a request to stop; the loop asks at the end of every step."""

    def __init__(self) -> None:
        self.reason = ""
        self._started = time.monotonic()
        self.budget_s: float | None = None

    def install(self) -> "Stopper":
        """Listen for SIGTERM and SIGUSR1."""
        for number in _SIGNALS:
            signal.signal(number, self._note)
        return self

    @property
    def is_asked(self) -> bool:
        """Whether this process has been asked to stop."""
        if self.budget_s is not None and time.monotonic() - self._started > self.budget_s:
            self.reason = self.reason or f"{self.budget_s:.0f} s are over"
        return bool(self.reason)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.reason = self.reason or signal.Signals(number).name

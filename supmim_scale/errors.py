"""The exception for users' mistakes, and the exit codes of the process."""

from collections.abc import Iterable
from difflib import get_close_matches

EXIT_DONE = 0
EXIT_NOT_CLEAN = 1  # a data set was verified and has bad samples
EXIT_USER_ERROR = 2
EXIT_PREEMPTED = 75  # stopped early and saved; the same command resumes
EXIT_INTERRUPTED = 130  # by Ctrl-C, as shells say it


class UserError(Exception):
    """A mistake the user can fix: printed as one line, exit code 2, no traceback.

    The line says where it happened, what was found, what was expected and what to do.
    """

    def __init__(self, where: str, found: str, expected: str, fix: str) -> None:
        self.where, self.found, self.expected, self.fix = where, found, expected, fix
        super().__init__(where, found, expected, fix)  # what pickling between ranks needs

    def __str__(self) -> str:
        return f"{self.where}: found {self.found}; expected {self.expected}; {self.fix}"


class RankError(UserError):
    """A `UserError` that only this rank has met, so this rank must report it.

    Every other `UserError` is raised on all ranks, and rank 0 reports it.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Advice naming the known words closest to `word`, or all of them if none is close."""
    known = sorted(known)
    close = get_close_matches(word, known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else f"choose from {', '.join(known)}"

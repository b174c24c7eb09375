"""Saving a run's checkpoints while it trains."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from supmim_scale.config.running import CheckpointConfig
from supmim_scale.engine.base import Engine
from supmim_scale.engine.state import Piece
from supmim_scale.errors import UserError
from supmim_scale.launch.world import World
from supmim_scale.runs import checkpoints


class Saver:
    """Writes checkpoints of all ranks into one folder, at most one at a time.

    `checkpoint.in_background`: the step waits only until the state is copied; files are written by
    a thread. `checkpoint.on_failure`: if a checkpoint cannot be written (a full disk), warn and
    continue, or stop; what is on disk stays whole either way. `keep`: steps done of a checkpoint
    that is never removed.
    """

    def __init__(
        self, folder: Path, world: World, checkpoint: CheckpointConfig, keep: int | None = None
    ) -> None:
        self.folder, self._world, self._checkpoint = folder, world, checkpoint
        self._kept = (checkpoint.keep_last, checkpoint.keep_every, keep)
        self._thread = ThreadPoolExecutor(1)
        self._written: Future[dict[str, Any]] | None = None
        self._part, self._facts = Path(), dict[str, Any]()
        self.saved_step: int | None = None  # of the last checkpoint that got its name

    def save(self, engine: Engine, facts: dict[str, Any]) -> None:
        """Collective: copy the state of all ranks, and write it or have it written."""
        self.finish()
        pieces = list(engine.pieces())
        num_bytes = sum(piece.values.nbytes for piece in pieces)
        total, self._facts = sum(self._world.gather(num_bytes)), facts
        self._part, problem = self._begin(facts["steps_done"], total)
        if problem:
            self._fail(problem)
            return
        self._written = self._thread.submit(self._write, pieces)
        if not self._checkpoint.in_background:
            self.finish()

    def poll(self) -> None:
        """Collective: commit the checkpoint in hand if all ranks have written their part."""
        if self._written is not None and self._world.all(self._written.done()):
            self._commit()

    def finish(self) -> None:
        """Collective, waits: commit the checkpoint in hand."""
        if self._written is not None:
            self._written.exception()  # waits; what went wrong is reported below
            self._commit()

    def _begin(self, steps_done: int, num_bytes: int) -> tuple[Path, str]:
        """Collective: the folder to write in, or what is in the way."""
        part, problem = Path(), ""
        if self._world.is_main:
            try:
                part = checkpoints.begin(self.folder, steps_done, num_bytes)
            except OSError as error:
                problem = f"{error}"
        found: tuple[Path, str] = self._world.gather((part, problem))[0]
        return found

    def _write(self, pieces: list[Piece]) -> dict[str, Any]:
        name = checkpoints.rank_file(self._world.rank, self._world.world_size)
        return checkpoints.write_pieces(self._part / name, pieces)

    def _commit(self) -> None:
        """Collective: the checkpoint gets its name if every rank has written."""
        assert self._written is not None
        error, entry = self._written.exception(), dict[str, Any]()
        if error is None:
            entry = self._written.result()
        self._written = None
        answers = self._world.gather((entry, error and f"rank {self._world.rank}: {error}"))
        problems = [problem for _, problem in answers if problem]
        if not problems and self._world.is_main:
            try:
                checkpoints.commit(self._part, [entry for entry, _ in answers], self._facts)
                checkpoints.prune(self.folder, *self._kept)
            except OSError as failed:
                problems = [f"{failed}"]
        problems = self._world.gather(problems)[0]
        if problems:
            self._fail(problems[0])
        else:
            self.saved_step = self._facts["steps_done"]

    def _fail(self, problem: str) -> None:
        """What could not be written ends the run, or is noted."""
        step = self._facts["steps_done"]
        continues = self._checkpoint.on_failure == "continue"
        if continues and self._world.is_main:
            print(f"no checkpoint after step {step}: {problem}", flush=True)
        if not continues:
            raise UserError(
                "checkpoint",
                f"{problem}, after step {step}",
                f"room for it in {self.folder}",
                "make room and start again, which resumes from the last checkpoint, or set "
                "checkpoint.on_failure=continue",
            )

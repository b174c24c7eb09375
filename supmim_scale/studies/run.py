"""A study's runs one after the other on this machine, cheapest first."""

import signal
import time
from pathlib import Path

from supmim_scale.config.checks import accumulation_steps
from supmim_scale.errors import EXIT_DONE, EXIT_PREEMPTED
from supmim_scale.jobs.manifest import write_manifest
from supmim_scale.jobs.status import run_states
from supmim_scale.jobs.submit import require_data
from supmim_scale.launch.local import launch
from supmim_scale.studies.design import Design
from supmim_scale.units import duration

_SIGNALLED = (128 + signal.SIGTERM, 128 + signal.SIGUSR1)  # before a rank could listen


def run_study(design: Design, folder: Path, ranks: int) -> int:
    """Train every run that is not over; the highest exit code, or at once that of a run which was
    asked to stop. Raises `UserError` where a run could not work, before the first is started."""
    for one in design.runs:
        accumulation_steps(one.config, ranks)
        require_data(one.config)
    write_manifest(design.study, folder, design.text, design.facts())
    runs, worst, clock = design.runs, EXIT_DONE, _Clock()
    for number, one in enumerate(runs, 1):
        state = run_states(folder, {})[number - 1]
        left = clock.left(sum(later.own_flops for later in runs[number - 1 :]))
        print(f"\n== [{number}/{len(runs)}{left}] {one.run.name}: {state.state} ==", flush=True)
        if not state.is_over:
            words = ["train", *one.run.words(folder), f"log.run_dir={folder / one.run.name}"]
            code = launch(ranks, words)
            if code in (EXIT_PREEMPTED, *_SIGNALLED):  # asked to stop, not only this run
                return code
            worst = max(worst, code)
            if code == EXIT_DONE:
                clock.done(one.own_flops)
    return worst


class _Clock:
    """How long the rest takes, at the FLOPs a second so far."""

    def __init__(self) -> None:
        self._began, self._flops = time.monotonic(), 0.0

    def done(self, flops: float) -> None:
        self._flops += flops

    def left(self, flops: float) -> str:
        """For people; nothing before a run is over."""
        if not self._flops:
            return ""
        return f", {duration((time.monotonic() - self._began) * flops / self._flops)} left"

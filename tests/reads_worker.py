"""Every rank is started by tests: a training whose host's readings from the device are counted.

torchrun --nproc-per-node N tests/reads_worker.py OUT.json ARGUMENTS OF supmim-scale train

Writes the readings of every step, and how many the engine states.
"""

import json
import os
import sys

from torch.utils._python_dispatch import TorchDispatchMode

from supmim_scale.cli.main import main
from supmim_scale.training import start
from supmim_scale.training.loop import train
from supmim_scale.training.meters import StepClock

READINGS = (
    "aten._local_scalar_dense",
    "aten.is_nonzero",
    "aten.nonzero",
    "aten.masked_select",
    "aten.equal",
)


class Readings(TorchDispatchMode):
    """Counts operations whose result the host must have before it goes on."""

    def __init__(self):
        super().__init__()
        self.count, self.at_step = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += str(func).startswith(READINGS)
        return func(*args, **(kwargs or {}))


def counted(out, arguments):
    """The command, with a look at the count where each step is done."""
    stated, readings = [], Readings()
    step_done = StepClock.step_done

    def look(clock):
        step_done(clock)
        readings.at_step.append(readings.count)

    def counting(run, stopper):
        stated.append(run.engine.reads_per_step)
        with readings:
            return train(run, stopper)

    StepClock.step_done = look
    start.train = counting
    code = main(["train", *arguments])
    if os.environ["RANK"] == "0":
        with open(out, "w") as file:
            json.dump({"stated": stated[0], "at_step": readings.at_step}, file)
    return code


if __name__ == "__main__":
    sys.exit(counted(sys.argv[1], sys.argv[2:]))

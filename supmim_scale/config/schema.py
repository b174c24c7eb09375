"""The recipe as one frozen dataclass of sections.

A recipe has two halves. `model`, `loss`, `mim`, `mask`, `optim`, `data`, `augment` and `seed` may
change the result and are hashed into the digest that names the experiment; `engine`, `input`,
`log`, `checkpoint` and `watch` say how and where it runs and must not change it (beyond rounding).
`experiment.py` has the first half, `running.py` the second.
"""

from dataclasses import dataclass

from supmim_scale.config.experiment import (
    AugmentConfig,
    DataConfig,
    LossConfig,
    MaskConfig,
    MimConfig,
    ModelConfig,
    OptimConfig,
)
from supmim_scale.config.fields import doc, required
from supmim_scale.config.running import (
    CheckpointConfig,
    EngineConfig,
    InputConfig,
    LogConfig,
    WatchConfig,
)

IDENTITY_SECTIONS = ("model", "loss", "mim", "mask", "optim", "data", "augment", "seed")


@dataclass(frozen=True)
class About:
    """The recipe's lab note; not part of the run."""

    paper: str = required("paper or table the settings come from, and which are our choice")
    command: str = required("command that starts it")
    hardware: str = required("hardware it is meant for")
    expected: str = required("expected result with its source, or 'not run yet'")


@dataclass(frozen=True)
class RunConfig:
    """A whole recipe."""

    about: About
    model: ModelConfig
    optim: OptimConfig
    data: DataConfig
    loss: LossConfig = LossConfig()
    mim: MimConfig = MimConfig()
    mask: MaskConfig = MaskConfig()
    augment: AugmentConfig = AugmentConfig()
    seed: int = doc(0, "of initialisation, order, crops, augmentation, masks and drop path")
    engine: EngineConfig = EngineConfig()
    input: InputConfig = InputConfig()
    log: LogConfig = LogConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    watch: WatchConfig = WatchConfig()

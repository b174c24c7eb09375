"""The recipe as one frozen dataclass of sections.

A recipe has two halves. `model`, `loss`, `mim`, `mask`, `optim`, `data`, `augment` and `seed` may
change the result and are hashed into the digest that names the experiment; `engine`, `input`,
`log`, `checkpoint` and `watch` say how and where it runs and must not change it (beyond rounding).
`experiment.py` has the first half, `running.py` the second; a key's type, default, range, unit
and meaning stand there in one place.
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
from supmim_scale.config.fields import key
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

    paper: str = key("", "paper or table that the settings come from, and which are our choice")
    command: str = key("", "command that starts the run")
    hardware: str = key("", "hardware that the recipe is meant for")
    expected: str = key("", "expected result with its source, or 'not run yet'")


@dataclass(frozen=True, kw_only=True, repr=False)
class RunConfig:
    """A whole recipe."""

    about: About = About()
    model: ModelConfig
    optim: OptimConfig
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    mim: MimConfig = MimConfig()
    mask: MaskConfig = MaskConfig()
    augment: AugmentConfig = AugmentConfig()
    seed: int = key(
        0, "seed of initialisation, order, crops, augmentation, masks and drop path", "[0, inf)"
    )
    engine: EngineConfig = EngineConfig()
    input: InputConfig = InputConfig()
    log: LogConfig = LogConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    watch: WatchConfig = WatchConfig()

    def __repr__(self) -> str:
        """A short summary; `config.as_yaml` has every key."""
        length = f"{self.optim.steps} steps" if self.optim.steps else f"{self.optim.epochs} epochs"
        return (
            f"<recipe: {self.model.name} at {self.model.image_size} px on {self.data.name}, "
            f"{self.model.num_classes} classes, MIM weight {self.mim.weight:g}, "
            f"{length} of {self.optim.global_batch}>"
        )

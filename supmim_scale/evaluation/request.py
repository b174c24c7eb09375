"""What an evaluation is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from supmim_scale.errors import UserError
from supmim_scale.evaluation.knn import KnnSettings
from supmim_scale.evaluation.robustness import SETS
from supmim_scale.evaluation.segment import SegmentSettings

SOLVERS = ("lbfgs", "sgd")


@dataclass(frozen=True)
class Request:
    """What to measure besides top-1 and top-5, which need a head. `probe`: its solver.
    `robustness`: (kind, path) of sets. `out`: a folder instead of the subject's own.

    Raises `UserError` for a kind or a solver that is not known.
    """

    knn: KnnSettings | None = None
    probe: str | None = None
    few_shot: bool = False
    calibration: bool = False
    robustness: Sequence[tuple[str, Path]] = ()
    reconstructions: bool = False
    segment: SegmentSettings | None = None
    out: Path | None = None

    def __post_init__(self) -> None:
        for kind, _ in self.robustness:
            if kind not in SETS:
                expected = f"one of {', '.join(SETS)}"
                raise UserError("--robustness", f"'{kind}'", expected, "choose one")
        if self.probe is not None and self.probe not in SOLVERS:
            raise UserError("--probe-solver", self.probe, " or ".join(SOLVERS), "choose one")
        if self.knn is not None:
            _require_positive("--knn-k", self.knn.k)
            _require_positive("--knn-temperature", self.knn.temperature)
        if self.segment is not None:
            _require_positive("--segment-steps", self.segment.steps)
            if self.segment.classes is not None:
                _require_positive("--segment-classes", self.segment.classes)

    @property
    def is_segmentation_alone(self) -> bool:
        """Whether no set of classified images is needed."""
        others = (self.calibration, self.robustness, self.reconstructions, self.needs_training_set)
        return self.segment is not None and not any(others)

    @property
    def needs_training_set(self) -> bool:
        """Whether features of the training set are needed."""
        return self.knn is not None or self.probe is not None or self.few_shot


def _require_positive(option: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise UserError(option, f"{value:g}", "above 0", f"raise {option}")

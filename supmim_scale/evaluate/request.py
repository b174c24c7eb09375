"""What an evaluation is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from supmim_scale.evaluate.knn import KnnSettings
from supmim_scale.evaluate.segment import SegmentSettings


@dataclass(frozen=True)
class Request:
    """What to measure beside top-1 and top-5, which need a head. `probe`: its solver.
    `robustness`: (kind, path) of sets. `out`: a folder instead of the subject's own."""

    knn: KnnSettings | None = None
    probe: str | None = None
    few_shot: bool = False
    calibration: bool = False
    robustness: Sequence[tuple[str, Path]] = ()
    reconstructions: bool = False
    segment: SegmentSettings | None = None
    out: Path | None = None

    @property
    def is_segmentation_alone(self) -> bool:
        """Whether no set of classified images is needed."""
        others = (self.calibration, self.robustness, self.reconstructions, self.needs_training_set)
        return self.segment is not None and not any(others)

    @property
    def needs_training_set(self) -> bool:
        """Whether features of the training set are needed."""
        return self.knn is not None or self.probe is not None or self.few_shot

"""How far predictions were off so far, from the rows of the benchmarks."""

import json
import statistics
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

DATA = Path(str(resources.files("supmim_scale") / "planner" / "past_errors.json"))


@dataclass(frozen=True)
class Errors:
    """Relative errors of predictions: of peak memory on GPUs and on CPUs, and of images/s."""

    gpu_memory: list[float]
    cpu_memory: list[float]
    images_per_s: list[float]

    def lines(self) -> list[str]:
        """What was measured."""
        return [
            f"peak memory on a GPU: {_spread(self.gpu_memory)}",
            f"peak memory on a CPU: {_spread(self.cpu_memory)}",
            f"images/s on a GPU: {_spread(self.images_per_s)}",
        ]


def past_errors() -> Errors:
    """What `python benchmarks/past_errors.py` collected last."""
    return Errors(**json.loads(DATA.read_text()))


def _spread(errors: list[float]) -> str:
    if not errors:
        return "not measured yet"
    sizes = [abs(error) for error in errors]
    return (
        f"off by {statistics.median(sizes):.1%} in the median of {len(errors)} runs, "
        f"{max(sizes):.1%} at most"
    )

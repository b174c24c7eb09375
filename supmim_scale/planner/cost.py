"""What a whole run takes: steps, GPU-hours, energy, money at a stated price."""

from dataclasses import dataclass

from supmim_scale.config import RunConfig
from supmim_scale.config.checks import num_steps
from supmim_scale.errors import UserError
from supmim_scale.planner.cluster import Cluster
from supmim_scale.planner.speed import StepTime

# Training images by `data.name`. ImageNet-1k: Russakovsky et al. 2015 (arXiv 1409.0575);
# ImageNet-21k: Ridnik et al. 2021 (arXiv 2104.10972).
TRAINING_IMAGES = {"imagenet-1k": 1_281_167, "imagenet-21k": 14_197_122}


@dataclass(frozen=True)
class RunCost:
    """A whole run; energy is the GPUs' alone, at their TDP; `usd` None: no price was given."""

    steps: int
    images_seen: int
    duration_s: float
    gpu_hours: float
    energy_kwh: float
    usd: float | None


def planned_steps(config: RunConfig, num_images: int | None) -> int | None:
    """Optimizer steps of the run; None where the set's size matters and is not known here."""
    images = num_images or TRAINING_IMAGES.get(config.data.name or "")
    if images is None and config.optim.steps is None:
        return None
    return num_steps(config, images or 0)


def run_cost(
    config: RunConfig, cluster: Cluster, step: StepTime, steps: int, usd_per_gpu_hour: float | None
) -> RunCost:
    """Steps alone: evaluation, checkpoints and restarts are not in it. Raises `UserError`."""
    if usd_per_gpu_hour is not None and usd_per_gpu_hour <= 0:
        raise UserError("--price", f"{usd_per_gpu_hour}", "US dollars above 0", "leave it out")
    seconds = steps * step.total_s
    gpu_hours = seconds / 3600 * cluster.ranks
    return RunCost(
        steps=steps,
        images_seen=steps * config.optim.global_batch,
        duration_s=seconds,
        gpu_hours=gpu_hours,
        energy_kwh=gpu_hours * cluster.gpu.tdp_watts / 1000,
        usd=None if usd_per_gpu_hour is None else gpu_hours * usd_per_gpu_hour,
    )

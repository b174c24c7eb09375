"""How long a step takes: FLOPs over a share of the peak, bytes over bandwidths."""

from collections.abc import Sequence
from dataclasses import dataclass

from supmim_scale.models.flops import JointShape, StepFlops, step_flops
from supmim_scale.planner.cluster import Cluster, collective_s
from supmim_scale.planner.setting import Setting
from supmim_scale.planner.sharding import ModelSize
from supmim_scale.planner.states import BF16, FP32
from supmim_scale.planner.traffic import traffic

# NeMo's ViT-g/14 on A100: 86.6 images/s a GPU, 44.5 % of the dense bf16 peak (NVIDIA's published
# figures; on H100 they give 178.5 images/s, 28.9 %). CAPI reports 58 % on A100.
MFU = 0.445
# DALI end to end on 8 H100, 29,100 images/s as published, a GPU's share.
DECODED_PER_S = 29_100 / 8
# AdamW reads and writes masters and two moments, reads the gradient twice (its norm comes first)
# and writes the working weights; an average is read and written beside a read of the masters.
_STEP_BYTES = 6 * FP32 + 2 * FP32 + BF16
_EMA_BYTES = 3 * FP32


@dataclass(frozen=True)
class Assumed:
    """What the user can set: share of the peak that executed FLOPs reach, images a second that a
    GPU's share of the host decodes."""

    mfu: float = MFU
    decoded_per_s: float = DECODED_PER_S


@dataclass(frozen=True)
class StepTime:
    """Seconds of an optimizer step on `ranks` ranks, and the images it takes."""

    compute_s: float
    link_s: float
    network_s: float
    exposed_s: float
    update_s: float
    decode_s: float
    images: int

    @property
    def communication_s(self) -> float:
        """Seconds of all collectives, hidden behind compute or not."""
        return max(self.link_s, self.network_s)

    @property
    def data_wait_s(self) -> float:
        """What the GPU waits for images that are decoded meanwhile."""
        return max(0.0, self.decode_s - self.compute_s - self.exposed_s - self.update_s)

    @property
    def total_s(self) -> float:
        """The whole step."""
        return self.compute_s + self.exposed_s + self.update_s + self.data_wait_s

    @property
    def images_per_s(self) -> float:
        """Over all ranks."""
        return self.images / self.total_s

    @property
    def binds(self) -> str:
        """What the step waits for longest; communication counts whole where any shows."""
        link = "network" if self.network_s > self.link_s else "links in a node"
        parts = {
            "compute": self.compute_s,
            link: self.communication_s if self.exposed_s else 0.0,
            "update": self.update_s,
            "data": self.data_wait_s,
        }
        return max(parts, key=lambda part: parts[part])


def flops_of(setting: Setting, shape: JointShape) -> StepFlops:
    """FLOPs of an image under the setting's policy."""
    engine = setting.config.engine
    return step_flops(shape, engine.activation_checkpointing, engine.checkpoint_every_k)


def step_time(
    setting: Setting, cluster: Cluster, size: ModelSize, shape: JointShape, assumed: Assumed
) -> StepTime:
    """The step on a cluster of any number of nodes; a rank's work is the setting's."""
    images = setting.micro_batch * setting.accumulation
    gpu = cluster.gpu
    compute = images * flops_of(setting, shape).hardware / (gpu.bf16_flops_per_s * assumed.mfu)
    times = [(c, *collective_s(c, cluster)) for c in traffic(setting, size)]
    link, network = sum(t[1] for t in times), sum(t[2] for t in times)
    ranks = cluster.ranks if setting.sharding.stage else 1
    ema = _EMA_BYTES if setting.config.optim.ema_decay else 0
    update = size.num_params / ranks * (_STEP_BYTES + ema) / gpu.memory_bytes_per_s
    return StepTime(
        compute_s=compute,
        link_s=link,
        network_s=network,
        exposed_s=_exposed(setting, sum(max(t[1:]) for t in times), times, compute),
        update_s=update,
        decode_s=images / assumed.decoded_per_s,
        images=images * cluster.ranks,
    )


def _exposed(
    setting: Setting,
    communication: float,
    times: Sequence[tuple[object, float, float]],
    compute: float,
) -> float:
    """Communication that compute does not hide, at best: all of stage 3's may hide behind all of
    compute, stage 2's reduction behind backward, two thirds of it; stage 1 waits for backward."""
    sharding = setting.sharding
    if not sharding.overlaps or sharding.stage in (None, 1):
        return communication
    if sharding.stage == 3:
        return max(0.0, communication - compute)
    _, *seconds = times[0]
    reduction = max(seconds)
    return communication - min(reduction, compute * 2 / 3)

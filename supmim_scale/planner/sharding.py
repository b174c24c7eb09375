"""How DeepSpeed runs the recipe: the settings of its file that memory and traffic depend on."""

from dataclasses import dataclass
from typing import Any

from supmim_scale.config import RunConfig
from supmim_scale.engine.ds_config import complete_ds_config, load_ds_config
from supmim_scale.models.joint import JointModel
from supmim_scale.models.optim import largest_block
from supmim_scale.planner.states import BF16, FP32

# Defaults of DeepSpeed 0.19.8 (runtime/zero/config.py).
_BUCKET = 500_000_000
_PERSISTENCE = 100_000
_BF16_STAGE_1_BUCKET = 500_000_000  # elements of runtime/utils.py's buffered all-reduce


@dataclass(frozen=True)
class ModelSize:
    """Parameters of the joint model: all, the encoder's blocks (read once a pass), the largest
    tensor, and each tensor's."""

    num_params: int
    block_params: int
    encoder_params: int
    sizes: tuple[int, ...]

    @property
    def largest(self) -> int:
        """Parameters of the largest tensor."""
        return max(self.sizes)


@dataclass(frozen=True)
class Sharding:
    """What decides a rank's memory and traffic besides the model; `stage` None: plain PyTorch."""

    stage: int | None
    precision: str
    reduce_bucket: int
    overlaps: bool
    max_live: int
    prefetch: int
    persistence: int
    offloads_optimizer: bool
    offloads_parameters: bool
    second_shard: int  # hpZ: ranks that hold a whole copy between them; 1: none
    quantized_weights: bool  # qwZ
    quantized_gradients: bool  # qgZ

    @property
    def working(self) -> int:
        """Bytes of a parameter in the type that the step computes in."""
        return BF16 if self.precision == "bf16" else FP32

    @property
    def bucket_bytes(self) -> float:
        """Buckets that gradients are copied into, two where stages below 3 overlap."""
        count = 2 if self.overlaps and self.stage != 3 else 1
        return float(self.working * self.reduce_bucket * count)


def model_size(model: JointModel) -> ModelSize:
    """Counts of a joint model; works on the meta device."""
    blocks = sum(p.numel() for p in model.encoder.blocks.parameters())
    return ModelSize(
        num_params=sum(p.numel() for p in model.parameters()),
        block_params=largest_block(model.block_lists()),
        encoder_params=blocks,
        sizes=tuple(p.numel() for p in model.parameters()),
    )


def sharding_of(
    config: RunConfig, size: ModelSize, micro_batch: int, accumulation: int, precision: str
) -> Sharding:
    """The recipe's, through the same completion as training's. Raises `UserError`."""
    if config.engine.kind == "plain":
        return Sharding(None, precision, 0, False, 0, 0, 0, False, False, 1, False, False)
    content = complete_ds_config(
        load_ds_config(config.engine.ds_config),
        micro_batch=micro_batch,
        accumulation=accumulation,
        precision=precision,
        policy=config.engine.activation_checkpointing,
        clip_grad_norm=config.optim.clip_grad_norm,
        block_params=size.block_params,
    )
    zero: dict[str, Any] = content["zero_optimization"]
    stage = zero["stage"]
    is_buffered = stage == 1 and precision == "bf16"  # DeepSpeed's BF16_Optimizer has own buffers
    return Sharding(
        stage=stage,
        precision=precision,
        reduce_bucket=_BF16_STAGE_1_BUCKET
        if is_buffered
        else int(zero.get("reduce_bucket_size", _BUCKET)),
        overlaps=bool(zero.get("overlap_comm", stage == 3)),
        max_live=int(zero.get("stage3_max_live_parameters", 0)),
        prefetch=int(zero.get("stage3_prefetch_bucket_size", 0)),
        persistence=int(zero.get("stage3_param_persistence_threshold", _PERSISTENCE)),
        offloads_optimizer=_is_on_host(zero.get("offload_optimizer")),
        offloads_parameters=_is_on_host(zero.get("offload_param")),
        second_shard=int(zero.get("zero_hpz_partition_size", 1)),
        quantized_weights=bool(zero.get("zero_quantized_weights", False)),
        quantized_gradients=bool(zero.get("zero_quantized_gradients", False)),
    )


def _is_on_host(offload: dict[str, Any] | None) -> bool:
    return bool(offload) and offload.get("device", "none") != "none"  # type: ignore[union-attr]

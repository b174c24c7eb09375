"""Peak memory of a rank by kind: states, what DeepSpeed gathers and buffers, activations, input."""

from dataclasses import dataclass, fields, replace

from supmim_scale.planner.reduction import Moment, Reduction
from supmim_scale.planner.sharding import ModelSize, Sharding
from supmim_scale.planner.states import BF16, FP32, engine_states, late_gradients
from supmim_scale.planner.trace import Trace


@dataclass(frozen=True)
class Memory:
    """Bytes of a rank at the fullest moment, by kind; `host`: offloaded, not on the GPU.

    `at_step`: alive during the optimizer's step, when no activation is; the peak is the larger.
    """

    parameters: float
    masters: float
    gradients: float
    optimizer: float
    ema: float
    gathered: float
    buckets: float
    activations: float
    logits: float
    inputs: float
    dali_pool: float
    host: float
    at_step: float

    @property
    def peak(self) -> float:
        """Bytes on the device at the fullest moment."""
        return max(sum(self.by_kind().values()), self.at_step)

    def by_kind(self) -> dict[str, float]:
        """Bytes of each kind while backward runs."""
        return {
            spec.name: float(getattr(self, spec.name))
            for spec in fields(self)
            if spec.name not in ("host", "at_step")
        }


def memory_of(
    size: ModelSize,
    sharding: Sharding,
    ranks: int,
    activations: Trace,
    accumulation: int,
    *,
    has_ema: bool,
    inputs: float,
    dali_pool: float = 0.0,
    are_gradients_traced: bool = False,
) -> Memory:
    """A rank's memory. `are_gradients_traced`: the trace has them already."""
    states = engine_states(
        size.num_params, ranks, sharding.stage, sharding.precision, has_ema=has_ema
    )
    host = 0.0
    if sharding.offloads_optimizer:
        host += states.masters + states.gradients + states.optimizer + states.ema
        states = replace(states, masters=0.0, gradients=0.0, optimizer=0.0, ema=0.0)
    if sharding.offloads_parameters:
        host += states.parameters
        states = replace(states, parameters=0.0)
    at_step = states.total
    if are_gradients_traced:
        states = replace(states, gradients=0.0)
    after, standing = bucket_bytes(size, sharding)
    rest = inputs + dali_pool + (standing / 2 if sharding.stage == 3 else 0.0)
    if sharding.stage == 2 and not sharding.offloads_optimizer:
        fullest = Reduction(size, sharding, ranks).fullest(activations, accumulation)
    else:
        late = late_gradients(states.gradients, sharding.stage, sharding.precision, accumulation)
        early, outer_share = states.gradients - late, 1 - size.encoder_params / size.num_params
        traced, filled = activations.fullest_backward(late, outer_share)
        in_forward, in_backward = gathered_bytes(size, sharding, ranks)
        kept = standing / 2 if sharding.stage == 3 else 0.0
        fullest = max(
            Moment(activations.forward_peak, early, kept, in_forward),
            Moment(traced, early + filled, standing, in_backward),
            key=lambda moment: moment.total,
        )
    step = step_bytes(size, sharding, ranks)
    return Memory(
        parameters=states.parameters,
        masters=states.masters,
        gradients=fullest.gradients,
        optimizer=states.optimizer,
        ema=states.ema,
        gathered=fullest.gathered,
        buckets=fullest.buckets,
        activations=fullest.traced - activations.logits,
        logits=activations.logits,
        inputs=inputs,
        dali_pool=dali_pool,
        host=host,
        at_step=at_step + rest + max(step, after),
    )


def step_bytes(size: ModelSize, sharding: Sharding, ranks: int) -> float:
    """Temporaries of the optimizer's step: stage 3 copies the shard's gradient."""
    if sharding.offloads_optimizer or sharding.stage not in (2, 3):
        return 0.0
    if sharding.stage == 2:
        return Reduction(size, sharding, ranks).step_bytes()
    return FP32 * size.num_params / ranks


def gathered_bytes(size: ModelSize, sharding: Sharding, ranks: int) -> tuple[float, float]:
    """Stage 3, in forward and in backward: parameters that are whole for a while, small ones that
    stay whole, hpZ's shard, and the buffer that a prefetch is gathered into.

    That buffer lives until the last of its parameters is used (the handle in DeepSpeed 0.19.8's
    `__inflight_param_registry`, partitioned_param_coordinator.py), beside the copies of all of
    them. A model that stays whole after forward is gathered no more. On one rank nothing is
    gathered: the shard is the whole.
    """
    if sharding.stage != 3 or ranks == 1:
        return 0.0, 0.0
    working = sharding.working
    alive = min(size.num_params, max(sharding.max_live, size.largest))
    persistent = sum(n for n in size.sizes if n <= sharding.persistence)
    second = size.num_params / sharding.second_shard if sharding.second_shard > 1 else 0.0
    held = working * (min(size.num_params, alive + persistent) + second)
    buffer = working * min(size.num_params - persistent, sharding.prefetch)
    return held + buffer, held + (buffer if alive < size.num_params else 0.0)


def bucket_bytes(size: ModelSize, sharding: Sharding) -> tuple[float, float]:
    """(buffers of the reduction after backward, buffers during backward).

    Stage 1 in bf16 flattens fp32 gradients and casts them, a buffer at a time, once backward is
    over. The others copy gradients into a bucket of fixed size, two of them where communication
    overlaps at stage 2; stage 3 keeps its bucket for good, and flattens what it scatters.
    """
    if sharding.stage is None:
        return 0.0, 0.0
    if sharding.stage == 1 and sharding.precision == "bf16":
        return float((FP32 + BF16) * min(size.num_params, sharding.reduce_bucket)), 0.0
    if sharding.stage == 3:
        flattened = sharding.working * min(size.num_params, sharding.reduce_bucket)
        return 0.0, sharding.bucket_bytes + flattened
    return 0.0, sharding.bucket_bytes

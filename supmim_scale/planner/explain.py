"""The arithmetic of a plan, line by line."""

from supmim_scale.planner.cluster import collective_s
from supmim_scale.planner.plan import Plan
from supmim_scale.planner.speed import flops_of
from supmim_scale.planner.traffic import traffic
from supmim_scale.units import gib, si


def explained(plan: Plan) -> str:
    """How each figure of the recipe's own setting comes about."""
    return "\n".join([*_states(plan), *_activations(plan), *_time(plan), *_traffic(plan)])


_SHARDED_FROM = {"parameters": 3, "masters": 1, "gradients": 2, "optimizer": 1, "ema": 1}


def _states(plan: Plan) -> list[str]:
    size, sharding, memory = plan.planned.size, plan.setting.sharding, plan.setting.memory
    ranks = plan.cluster.ranks
    lines = [
        f"the model has {size.num_params:,} parameters, {size.encoder_params:,} of them in the "
        "encoder's blocks"
    ]
    for kind, first_stage in _SHARDED_FROM.items():
        held = getattr(memory, kind)
        is_sharded = (sharding.stage or 0) >= first_stage
        each = held / size.num_params * (ranks if is_sharded else 1)
        if held:
            share = f" / {ranks} ranks" if is_sharded else ""
            lines.append(f"{kind}: {gib(held)} = {each:.3g} B x parameters{share}")
    if sharding.stage == 3:
        lines.append(
            f"gathered: {gib(memory.gathered)} from stage3_max_live_parameters "
            f"{sharding.max_live:,} and stage3_prefetch_bucket_size {sharding.prefetch:,}; tensors "
            f"of at most {sharding.persistence:,} stay whole"
        )
    if memory.buckets:
        bucket = f"reduce_bucket_size {sharding.reduce_bucket:,}"
        lines.append(f"buckets: {gib(memory.buckets)} for {bucket}")
    return lines


def _activations(plan: Plan) -> list[str]:
    memory, setting = plan.setting.memory, plan.setting
    inputs = plan.planned.inputs_per_image
    return [
        f"activations: {gib(memory.activations + memory.logits)} at the fullest moment of forward "
        f"and backward of {setting.micro_batch} images: every storage that the real model makes "
        "under fake tensors, gradients that wait for a second pass too",
        f"logits: {gib(memory.logits)} of these have the class head's shape "
        f"({setting.micro_batch} x {plan.shape.num_classes:,})",
        f"inputs: {gib(memory.inputs)} = {setting.micro_batch} x {inputs:,} B",
        f"peak: {gib(memory.peak)}, the larger of the sum (gradients: those that are there by "
        f"then) and of reduction and update after backward ({gib(memory.at_step)})",
    ]


def _time(plan: Plan) -> list[str]:
    step, flops, gpu = plan.step, flops_of(plan.setting, plan.shape), plan.cluster.gpu
    images = step.images // plan.cluster.ranks
    return [
        f"compute: {step.compute_s:.3f} s = {images} images x {si(flops.hardware, 'FLOP')} "
        f"(forward {si(flops.forward)}, backward {si(flops.backward)}, recomputed "
        f"{si(flops.recompute)}) / ({si(gpu.bf16_flops_per_s, 'FLOP/s')} x {plan.assumed.mfu:.3g})",
        f"update: {step.update_s:.3f} s = bytes of the rank's states / "
        f"{si(gpu.memory_bytes_per_s, 'B/s')}",
        f"decoding: {step.decode_s:.3f} s = {images} images / {plan.assumed.decoded_per_s:,.0f}",
    ]


def _traffic(plan: Plan) -> list[str]:
    lines = []
    for collective in traffic(plan.setting, plan.planned.size):
        link, network = collective_s(collective, plan.cluster)
        where = ", inside a node" if collective.in_node else ""
        lines.append(
            f"{collective.name}: {collective.times} x {gib(collective.num_bytes)}{where}: "
            f"{link:.3f} s on the links, {network:.3f} s on the network, at once"
        )
    return lines

"""A plan as text."""

from supmim_scale.planner.cost import RunCost
from supmim_scale.planner.fit import limit_bytes
from supmim_scale.planner.past_errors import past_errors
from supmim_scale.planner.plan import Plan, Ranked, Scaled
from supmim_scale.planner.speed import flops_of
from supmim_scale.planner.tiles import tile_line
from supmim_scale.units import duration, gib, si


def as_text(plan: Plan) -> str:
    """The answer, with what it rests on."""
    cluster, setting = plan.cluster, plan.setting
    nodes = f"{cluster.nodes} node{'s' if cluster.nodes > 1 else ''} of {cluster.gpus_per_node}"
    precision = setting.sharding.precision
    head = f"{plan.recipe} on {nodes} {cluster.gpu.name}: {setting.name} images, {precision}"
    paragraphs = [
        [head, plan.verdict.line],
        _memory(plan),
        _step(plan),
        _run(plan.cost) if plan.cost else ["the run: give --images N, the size of the set"],
        _ranking(plan),
        _scaling(plan.scaling, plan),
        ["assumed", *(f"  {line}" for line in assumptions(plan))],
        ["error so far", *(f"  {line}" for line in past_errors().lines())],
    ]
    return "\n\n".join("\n".join(lines) for lines in paragraphs if lines)


def assumptions(plan: Plan) -> list[str]:
    """Everything that is not computed from the recipe."""
    gpu, assumed, sharding = plan.cluster.gpu, plan.assumed, plan.setting.sharding
    network = plan.cluster.network_bytes_per_s * 8 / 1e9
    free = 1 - plan.verdict.limit_bytes / gpu.memory_bytes
    lines = [
        f"{gpu.name}: {gpu.source}",
        f"executed FLOPs reach {assumed.mfu:.1%} of {si(gpu.bf16_flops_per_s, 'FLOP/s')} "
        "(--mfu; 44.5 % is NeMo's ViT-g/14 on A100, on H100 it gives 28.9 %)",
        f"{free:.0%} of the GPU's memory is kept free (--reserve; our choice, not measured)",
        "AdamW is fused; DALI holds prefetch + 1 batches of views and decoded 500x375 photographs",
        f"a GPU's share of the host decodes {assumed.decoded_per_s:,.0f} images/s (--decoded; "
        "published for DALI on 8 H100: 3,638)",
        f"links carry {si(gpu.link_bytes_per_s, 'B/s')} a GPU inside a node"
        + (f", {network:,.0f} Gbit/s a node outside (--network)" if plan.cluster.nodes > 1 else "")
        + ": their whole rate, no latency",
        "communication hides behind compute wholly at stage 3, not at all at stage 1, and at "
        "stage 2 behind backward where overlap_comm is set",
        "CUDA's attention keeps what torch's fused CPU kernel keeps",
    ]
    engine = plan.planned.config.engine
    if engine.compile or engine.fp8 != "none":
        lines.append("compiled blocks and fp8 are planned as eager bf16 is")
    if tiles := tile_line(plan.planned.config):
        lines.append(tiles)
    if plan.planned.config.mim.target == "vqgan":
        lines.append("the frozen VQGAN's own memory and time are not counted")
    if sharding.offloads_optimizer or sharding.offloads_parameters:
        lines.append("transfers to the host and its AdamW are not counted: the step takes longer")
    return lines


def _memory(plan: Plan) -> list[str]:
    memory = plan.setting.memory
    names = {
        "masters": "fp32 masters",
        "optimizer": "optimizer states",
        "ema": "EMA",
        "gathered": "gathered parameters",
        "logits": "class head's logits",
        "dali_pool": "DALI pool (assumed)",
    }
    rows = [
        f"  {names.get(kind, kind):24}{gib(size):>11}"
        for kind, size in memory.by_kind().items()
        if size
    ]
    host = [f"  {'on the host, a rank':24}{gib(memory.host):>11}"] if memory.host else []
    update = f"{gib(memory.at_step)} while weights are updated"
    return ["memory of a rank", *rows, f"  {'peak':24}{gib(memory.peak):>11}   {update}", *host]


def _step(plan: Plan) -> list[str]:
    step, flops = plan.step, flops_of(plan.setting, plan.shape)
    rate = step.images_per_s / plan.cluster.ranks
    peak = plan.cluster.gpu.bf16_flops_per_s
    hidden = step.communication_s - min(step.exposed_s, step.communication_s)
    return [
        f"step of {step.images:,} images: {step.total_s:.3f} s, {step.images_per_s:,.0f} images/s, "
        f"{rate:,.1f} a GPU, MFU {rate * flops.model / peak:.1%}; {step.binds} binds",
        f"  compute                  {step.compute_s:.3f} s   {si(flops.hardware, 'FLOP')} an "
        f"image, {si(flops.recompute, 'FLOP')} of them recomputed",
        f"  communication exposed    {step.exposed_s:.3f} s   hidden {hidden:.3f} s",
        f"  update of the weights    {step.update_s:.3f} s",
        f"  waiting for data         {step.data_wait_s:.3f} s   decoding takes "
        f"{step.decode_s:.3f} s meanwhile",
    ]


def _run(cost: RunCost) -> list[str]:
    lines = [
        f"the run: {cost.steps:,} steps, {si(cost.images_seen)} images seen, "
        f"{duration(cost.duration_s)} ({cost.duration_s / 86400:.1f} days), steps alone",
        f"  GPU-hours                {cost.gpu_hours:,.0f}",
        f"  energy                   {cost.energy_kwh:,.0f} kWh, the GPUs' alone at their TDP",
    ]
    if cost.usd is not None:
        lines.append(f"  cost                     {cost.usd:,.0f} USD")
    return lines


def _ranking(plan: Plan) -> list[str]:
    if not plan.ranking:
        free = gib(limit_bytes(plan.cluster.gpu))
        return [f"no stage, policy and micro-batch fits into {free}: more GPUs, or offload"]
    rows = [_ranked(row, plan) for row in plan.ranking]
    title = "what fits, fastest first      micro-batch      peak    images/s   exposed"
    return [title, *rows]


def _ranked(row: Ranked, plan: Plan) -> str:
    setting, engine = row.setting, row.setting.config.engine
    kind = engine.ds_config if setting.sharding.stage else "plain"
    name = f"{kind}, {engine.activation_checkpointing}"
    batch = f"{setting.micro_batch} x {setting.accumulation}"
    mark = "  <- the recipe" if setting.name == plan.setting.name else ""
    return (
        f"  {name:26}{batch:>13}{gib(setting.memory.peak):>12}{row.step.images_per_s:>10,.0f}"
        f"{row.step.exposed_s:>9.3f} s{mark}"
    )


def _scaling(rows: list[Scaled], plan: Plan) -> list[str]:
    if not rows:
        return []
    work = f"{plan.setting.micro_batch} x {plan.setting.accumulation} images a rank"
    lines = [
        f"  {row.gpus:>6,}{row.step.images_per_s:>12,.0f}{row.efficiency:>8.1%}"
        f"{row.step.communication_s / row.step.compute_s:>15.1%}   {row.step.binds}"
        for row in rows
    ]
    return [f"weak scaling, {work}", "    GPUs    images/s    kept  comm./compute   binds", *lines]

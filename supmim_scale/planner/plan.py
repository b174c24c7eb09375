"""The whole answer: the recipe as it stands, what else would fit, and more GPUs."""

from dataclasses import dataclass, replace

from supmim_scale.build.model import joint_shape
from supmim_scale.config import RunConfig
from supmim_scale.config.checks import accumulation_steps
from supmim_scale.config.running import EngineConfig, Policy
from supmim_scale.models.flops import JointShape
from supmim_scale.planner.cluster import Cluster
from supmim_scale.planner.cost import RunCost, planned_steps, run_cost
from supmim_scale.planner.fit import RESERVE, Verdict, limit_bytes, verdict_of
from supmim_scale.planner.setting import RecipeMemory, Setting
from supmim_scale.planner.speed import Assumed, StepTime, step_time

POLICIES: tuple[Policy, ...] = ("none", "selective", "full")
MOST_GPUS = 1024


@dataclass(frozen=True)
class Ranked:
    """A setting that fits, and its speed."""

    setting: Setting
    step: StepTime


@dataclass(frozen=True)
class Scaled:
    """The recipe's work a rank on another number of nodes."""

    gpus: int
    step: StepTime
    efficiency: float  # images/s a GPU, as a share of one node's


@dataclass(frozen=True)
class Plan:
    """Everything that `supmim-scale plan` prints; `cost` None: the set's size is not known."""

    recipe: str
    planned: RecipeMemory
    cluster: Cluster
    setting: Setting
    shape: JointShape
    assumed: Assumed
    verdict: Verdict
    step: StepTime
    cost: RunCost | None
    ranking: list[Ranked]
    scaling: list[Scaled]


def make_plan(
    recipe: str,
    config: RunConfig,
    cluster: Cluster,
    assumed: Assumed,
    *,
    num_images: int | None = None,
    usd_per_gpu_hour: float | None = None,
    reserve: float = RESERVE,
) -> Plan:
    """The plan of a recipe on a cluster. Raises `UserError`."""
    accumulation_steps(config, cluster.ranks)
    planned = RecipeMemory(config)
    shape = joint_shape(config, planned.out_features)
    setting = planned.setting(config, cluster.ranks)
    step = step_time(setting, cluster, planned.size, shape, assumed)
    steps = planned_steps(config, num_images)
    return Plan(
        recipe=recipe,
        planned=planned,
        cluster=cluster,
        setting=setting,
        shape=shape,
        assumed=assumed,
        verdict=verdict_of(setting, cluster.gpu, reserve),
        step=step,
        cost=run_cost(config, cluster, step, steps, usd_per_gpu_hour) if steps else None,
        ranking=ranking(planned, setting, cluster, shape, assumed, reserve),
        scaling=weak_scaling(setting, cluster, planned, shape, assumed),
    )


def ranking(
    planned: RecipeMemory,
    own: Setting,
    cluster: Cluster,
    shape: JointShape,
    assumed: Assumed,
    reserve: float = RESERVE,
) -> list[Ranked]:
    """The largest micro-batch that fits, of each stage and policy, and the recipe's own setting
    where it fits, fastest first.

    A larger one is never slower here: it communicates less often, and fills the GPU better.
    """
    limit = limit_bytes(cluster.gpu, reserve)
    engine = planned.config.engine
    policies = dict.fromkeys((*POLICIES, engine.activation_checkpointing))
    stages = dict.fromkeys(("zero1", "zero2", "zero3", engine.ds_config))
    if engine.kind == "plain":
        stages = {engine.ds_config: None}
    settings = {own.name: own} if own.memory.peak <= limit else {}
    for policy in policies:
        for stage in stages:
            changed = replace(engine, ds_config=stage, activation_checkpointing=policy)
            setting = largest_fitting(planned, changed, cluster.ranks, limit)
            if setting is not None:
                settings[setting.name] = setting
    found = [
        Ranked(setting, step_time(setting, cluster, planned.size, shape, assumed))
        for setting in settings.values()
    ]
    return sorted(found, key=_order)


def largest_fitting(
    planned: RecipeMemory, engine: EngineConfig, ranks: int, limit: int
) -> Setting | None:
    """The setting with the largest micro-batch whose peak stays below `limit`; None: none does."""
    config = planned.config
    share = config.optim.global_batch // ranks
    is_mixing = config.augment.mixup_alpha or config.augment.cutmix_alpha
    batches = [b for b in range(share, 0, -1) if share % b == 0 and not (is_mixing and b % 2)]
    for place, batch in enumerate(batches):
        tried = replace(config, engine=replace(engine, micro_batch=batch))
        if place == 1:  # the largest did not fit: the smallest is all that the rest need
            planned.prepare(tried, set(batches))
        setting = planned.setting(tried, ranks)
        if setting.memory.peak <= limit:
            return setting
    return None


def weak_scaling(
    setting: Setting, cluster: Cluster, planned: RecipeMemory, shape: JointShape, assumed: Assumed
) -> list[Scaled]:
    """One node to 1,024 GPUs, each rank with the recipe's work: the global batch grows."""
    rows: list[Scaled] = []
    nodes = 1
    while nodes * cluster.gpus_per_node <= MOST_GPUS and setting.sharding.stage:
        grown = replace(cluster, nodes=nodes)
        step = step_time(setting, grown, planned.size, shape, assumed)
        first = rows[0].step if rows else step
        rows.append(Scaled(grown.ranks, step, first.total_s / step.total_s))
        nodes *= 2
    return rows


def _order(ranked: Ranked) -> tuple[float, int, float]:
    """Faster; less recomputation, since what is not a product has no FLOPs here; less memory."""
    setting = ranked.setting
    policies = ("none", "selective", "every_k", "first_k", "full")
    recomputed = policies.index(setting.config.engine.activation_checkpointing)
    return -round(ranked.step.images_per_s, 3), recomputed, setting.memory.peak

"""A plan and its text: one call from a recipe and the name of a GPU."""

from dataclasses import asdict, dataclass
from typing import Any

from supmim_scale.config import digest
from supmim_scale.config.schema import RunConfig
from supmim_scale.errors import UserError
from supmim_scale.planner.budget import within_budget
from supmim_scale.planner.cluster import cluster_of
from supmim_scale.planner.explain import explained
from supmim_scale.planner.fit import RESERVE
from supmim_scale.planner.plan import Plan, make_plan
from supmim_scale.planner.speed import DECODED_PER_S, MFU, Assumed
from supmim_scale.planner.text import as_text, assumptions


@dataclass(frozen=True, repr=False)
class Answer:
    """A recipe's plan on a cluster, as text or as numbers in base units."""

    plan: Plan

    @property
    def fits(self) -> bool:
        """Whether the recipe fits as it stands."""
        return self.plan.verdict.fits

    def summary(self, *, explain: bool = False) -> str:
        """Memory, time, cost, what else fits, and what it all rests on; with the arithmetic."""
        text = as_text(self.plan)
        return f"{text}\n\nthe arithmetic\n{explained(self.plan)}" if explain else text

    def facts(self) -> dict[str, Any]:
        """The plan's numbers in base units."""
        plan = self.plan
        return {
            "recipe": plan.recipe,
            "digest": digest(plan.planned.config),
            "gpu": asdict(plan.cluster.gpu),
            "nodes": plan.cluster.nodes,
            "gpus_per_node": plan.cluster.gpus_per_node,
            "setting": plan.setting.name,
            "num_params": plan.planned.size.num_params,
            **asdict(plan.verdict),
            "memory_bytes": asdict(plan.setting.memory),
            "step": asdict(plan.step) | {"total_s": plan.step.total_s},
            "images_per_s": plan.step.images_per_s,
            "run": asdict(plan.cost) if plan.cost else None,
            "ranking": [
                {
                    "setting": row.setting.name,
                    "peak_bytes": round(row.setting.memory.peak),
                    "images_per_s": row.step.images_per_s,
                }
                for row in plan.ranking
            ],
            "weak_scaling": [
                {"gpus": row.gpus, "images_per_s": row.step.images_per_s, "binds": row.step.binds}
                for row in plan.scaling
            ],
            "assumed": assumptions(plan),
        }

    def __repr__(self) -> str:
        """Whether it fits, and how fast it is."""
        step = self.plan.step
        return f"<plan: {self.plan.verdict.line}; {step.images_per_s:,.0f} images/s>"


def plan_recipe(
    config: RunConfig,
    *,
    name: str | None = None,
    gpu: str = "h100",
    nodes: int = 1,
    gpus_per_node: int = 8,
    network: str = "400G",
    price: float | None = None,
    images: int | None = None,
    mfu: float | None = None,
    decoded: float | None = None,
    reserve: float | None = None,
) -> Answer:
    """Will it fit, how fast, at what cost: of a recipe on `nodes` of `gpus_per_node` GPUs each.

    `gpu`: a name of the table or a YAML file of another. `network`: `8x400G` ports a node, `400G`
    one a GPU. `price`: USD a GPU-hour. `images`: of the training set. `mfu`: share of the peak that
    executed FLOPs reach. `decoded`: images/s decoded, a GPU. `reserve`: share of a GPU's memory
    that is kept free. Raises `UserError`.
    """
    cluster = cluster_of(gpu, nodes, gpus_per_node, network)
    for option, share in (("--mfu", mfu), ("--reserve", reserve)):
        if share is not None and not 0 < share < 1:
            raise UserError(
                option, f"{share}", "a share between 0 and 1", f"write, say, {option} 0.45"
            )
    for option, count in (("--images", images), ("--decoded", decoded), ("--price", price)):
        if count is not None and not 0 < count < float("inf"):
            raise UserError(
                option, f"{count}", "a number above 0", f"raise {option}, or leave it out"
            )
    plan = make_plan(
        name or config.model.name,
        within_budget(config, cluster.ranks, "bf16"),
        cluster,
        Assumed(mfu or MFU, decoded or DECODED_PER_S),
        num_images=images,
        usd_per_gpu_hour=price,
        reserve=RESERVE if reserve is None else reserve,
    )
    return Answer(plan)

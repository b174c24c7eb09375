"""The memory, time and cost of a recipe, before it is run."""

from supmim_scale.config import RunConfig
from supmim_scale.planner.answer import Answer, plan_recipe


def plan(
    recipe: RunConfig,
    *,
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
    """Predict whether a recipe fits, its speed and cost. Options are those of `supmim-scale plan`.

    `plan(...).summary()` is the text that the command prints, `.facts()` its numbers in base units.
    Raises `UserError`.
    """
    return plan_recipe(
        recipe,
        name=recipe.model.name,
        gpu=gpu,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        network=network,
        price=price,
        images=images,
        mfu=mfu,
        decoded=decoded,
        reserve=reserve,
    )

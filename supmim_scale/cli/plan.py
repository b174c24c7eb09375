"""The command line of the planner: `supmim-scale plan RECIPE`."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supmim_scale.errors import EXIT_DONE, UserError

if TYPE_CHECKING:
    from supmim_scale.planner.plan import Plan


def add_plan_command(parser: argparse.ArgumentParser) -> None:
    """Arguments of `plan`."""
    parser.add_argument("recipe", help="a packaged recipe's name, or a .yaml file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="optim.lr=1e-3 and so on")
    parser.add_argument("--gpu", default="h100", help="a name of the table, or a .yaml of another")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus-per-node", type=int, default=8)
    parser.add_argument("--network", default="400G", help="8x400G: ports a node; 400G: one a GPU")
    parser.add_argument("--price", type=float, metavar="USD", help="of a GPU-hour; none: no cost")
    parser.add_argument("--images", type=int, metavar="N", help="training images of the set")
    parser.add_argument("--mfu", type=float, help="share of the peak that executed FLOPs reach")
    parser.add_argument("--decoded", type=float, metavar="N", help="images/s decoded, a GPU")
    parser.add_argument("--reserve", type=float, help="share of a GPU's memory that is kept free")
    parser.add_argument("--explain", action="store_true", help="the arithmetic, line by line")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the plan there too")
    parser.set_defaults(run=_plan)


def _plan(arguments: argparse.Namespace) -> int:
    from supmim_scale.config import load_config
    from supmim_scale.planner import cluster_of

    config = load_config(arguments.recipe, arguments.overrides)
    cluster = cluster_of(arguments.gpu, arguments.nodes, arguments.gpus_per_node, arguments.network)
    for name in ("mfu", "reserve"):
        _require_share(f"--{name}", getattr(arguments, name))
    for name in ("images", "decoded", "price"):
        _require_positive(f"--{name}", getattr(arguments, name))

    from supmim_scale.planner.budget import within_budget
    from supmim_scale.planner.explain import explained
    from supmim_scale.planner.fit import RESERVE
    from supmim_scale.planner.plan import make_plan
    from supmim_scale.planner.speed import DECODED_PER_S, MFU, Assumed
    from supmim_scale.planner.text import as_text

    plan = make_plan(
        arguments.recipe,
        within_budget(config, cluster.ranks, "bf16"),
        cluster,
        Assumed(arguments.mfu or MFU, arguments.decoded or DECODED_PER_S),
        num_images=arguments.images,
        usd_per_gpu_hour=arguments.price,
        reserve=RESERVE if arguments.reserve is None else arguments.reserve,
    )
    print(as_text(plan))
    if arguments.explain:
        print(f"\nthe arithmetic\n{explained(plan)}")
    if arguments.json:
        _write(arguments.json, plan)
    return EXIT_DONE


def _write(path: Path, plan: "Plan") -> None:
    try:
        path.write_text(json.dumps(_facts(plan), indent=2) + "\n")
    except OSError as error:
        raise UserError("--json", str(error), "a writable file", "name another") from None


def _facts(plan: "Plan") -> dict[str, Any]:
    """The plan's numbers in base units."""
    from supmim_scale.config import digest
    from supmim_scale.planner.text import assumptions

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


def _require_share(name: str, value: float | None) -> None:
    if value is not None and not 0 < value < 1:
        raise UserError(name, f"{value}", "a share between 0 and 1", f"write, say, {name} 0.45")


def _require_positive(name: str, value: float | None) -> None:
    if value is not None and not value > 0:
        raise UserError(name, f"{value}", "a number above 0", f"raise {name}, or leave it out")

"""`supmim-scale plan RECIPE`."""

import argparse
import json
from pathlib import Path

from supmim_scale.cli.arguments import add_recipe
from supmim_scale.errors import EXIT_DONE, UserError


def add_plan_command(parser: argparse.ArgumentParser) -> None:
    """Arguments of `plan`."""
    add_recipe(parser)
    parser.add_argument(
        "--gpu", default="h100", help="a GPU in our table, or a .yaml file that describes another"
    )
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus-per-node", type=int, default=8)
    parser.add_argument(
        "--network", default="400G", help="8x400G: ports per node; 400G: one port per GPU"
    )
    parser.add_argument(
        "--price",
        type=float,
        metavar="USD",
        help="price of a GPU-hour; without it no cost is shown",
    )
    parser.add_argument("--images", type=int, metavar="N", help="number of training images")
    parser.add_argument(
        "--mfu", type=float, help="share of the peak that executed FLOPs reach, 0 to 1"
    )
    parser.add_argument("--decoded", type=float, metavar="N", help="images/s decoded per GPU")
    parser.add_argument("--reserve", type=float, help="share of GPU memory to keep free, 0 to 1")
    parser.add_argument("--explain", action="store_true", help="show the arithmetic line by line")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the plan to this file"
    )
    parser.set_defaults(run=_plan)


def _plan(arguments: argparse.Namespace) -> int:
    from supmim_scale.config import load_config

    config = load_config(arguments.recipe, arguments.overrides)  # refused before torch is loaded

    from supmim_scale.planner.answer import plan_recipe

    answer = plan_recipe(
        config,
        name=arguments.recipe,
        gpu=arguments.gpu,
        nodes=arguments.nodes,
        gpus_per_node=arguments.gpus_per_node,
        network=arguments.network,
        price=arguments.price,
        images=arguments.images,
        mfu=arguments.mfu,
        decoded=arguments.decoded,
        reserve=arguments.reserve,
    )
    print(answer.summary(explain=arguments.explain))
    if arguments.json:
        try:
            arguments.json.write_text(json.dumps(answer.facts(), indent=2) + "\n")
        except OSError as error:
            raise UserError("--json", str(error), "a writable file", "name another file") from None
    return EXIT_DONE

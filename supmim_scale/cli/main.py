"""The command line: `supmim-scale COMMAND`."""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from supmim_scale import __version__
from supmim_scale.cli.data import add_data_commands
from supmim_scale.cli.evaluate import add_eval_command, add_export_command
from supmim_scale.cli.plan import add_plan_command
from supmim_scale.cli.scaling import add_scaling_commands
from supmim_scale.cli.slurm import add_cluster_commands
from supmim_scale.cli.study import add_study_commands
from supmim_scale.errors import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    EXIT_USER_ERROR,
    RankError,
    UserError,
)
from supmim_scale.launch.signals import Stopper, ignore_signals


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 a user's mistake, 75 stopped and saved."""
    arguments = _parse(argv)
    try:
        return int(arguments.run(arguments))
    except UserError as error:
        rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
        if isinstance(error, RankError) or rank == "0":
            print(f"error: {error}", file=sys.stderr)
            _note_mistake(f"error: {error}")
        ignore_signals()
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _note_mistake(line: str) -> None:
    """For the batch script, which names a file: srun's code is its highest task's, and a mistake's
    2 may not be seen beside the signals that end the other tasks."""
    name = os.environ.get("SUPMIM_MISTAKE")
    if name:
        with contextlib.suppress(OSError):  # a folder that cannot be written may be the mistake
            Path(name).write_text(line + "\n")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments with overrides collected from both sides of the options."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if any(word.startswith("-") for word in rest) or (rest and not hasattr(arguments, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("supmim-scale", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    # DeepSpeed's launcher passes the rank this way too; the environment has it already.
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train a recipe, evaluate, save weights")
    _add_recipe(train)
    train.add_argument("--ranks", type=int, help="start this many processes on this machine")
    train.add_argument(
        "--allow-drift",
        action="append",
        default=[],
        metavar="KEY",
        help="a recipe key that may differ from the checkpoint's; can be given again",
    )
    train.add_argument(
        "--branch-from",
        type=Path,
        metavar="RUN_DIR",
        help="a shorter run: go on from the checkpoint before its cool-down",
    )
    train.set_defaults(run=_train)

    check = commands.add_parser("check", help="check a recipe and its data, train nothing")
    _add_recipe(check)
    check.add_argument("--ranks", type=int, default=1, help="ranks the batch must divide over")
    check.set_defaults(run=_check)

    show = commands.add_parser("recipes", help="list recipes, or show one resolved")
    show.add_argument("recipe", nargs="?")
    show.add_argument("overrides", nargs="*", metavar="key=value")
    show.set_defaults(run=_recipes)

    add_eval_command(commands.add_parser("eval", help="what a run, file or timm model is worth"))
    add_export_command(commands.add_parser("export", help="write encoder and head for plain timm"))

    report = commands.add_parser("report", help="finished runs side by side")
    report.add_argument("run_dirs", nargs="+", type=Path, help="folders of runs")
    report.set_defaults(run=_report)

    add_plan_command(commands.add_parser("plan", help="will it fit, how fast, at what cost"))
    add_cluster_commands(commands)
    add_study_commands(commands.add_parser("study", help="many runs from one YAML file"))
    add_data_commands(commands.add_parser("data", help="make, pack, index, check data sets"))
    add_scaling_commands(commands.add_parser("scaling", help="fit scaling laws, draw, report"))
    return parser


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a packaged recipe's name, or a .yaml file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="optim.lr=1e-3 and so on")


def _train(arguments: argparse.Namespace) -> int:
    stopper = Stopper()
    if arguments.ranks is None:
        stopper.install()  # before torch: a signal during its import must not kill

    from supmim_scale.config import load_config
    from supmim_scale.config.checks import accumulation_steps

    config = load_config(arguments.recipe, arguments.overrides)
    if arguments.ranks is not None:
        accumulation_steps(config, arguments.ranks)
        return _launch(arguments)

    from supmim_scale.launch.join import join_world, leave_world
    from supmim_scale.launch.nodes import inspect_nodes, require_shape
    from supmim_scale.runs.folder import note_stop
    from supmim_scale.train.build import build_run
    from supmim_scale.train.loop import train
    from supmim_scale.train.resume import Start

    # Left in order only after success: a rank that fails must end at once, not wait for others.
    stopper.budget_s = config.checkpoint.time_budget_s
    require_shape(config)
    world, run_dir = join_world(config.engine.device), _run_dir(arguments, config.log.run_dir)
    if world.world_size > 1 or world.launcher == "srun":
        line = inspect_nodes(world, Path(config.input.root), run_dir)
        if world.is_main:
            print(f"check_recipe: {line}", flush=True)
    if config.engine.activation_budget is not None:
        from supmim_scale.engine.settings import resolve_precision
        from supmim_scale.planner.budget import within_budget

        precision = resolve_precision(config.engine.precision, world.device)
        config = within_budget(config, world.world_size, precision)
    start = Start(arguments.allow_drift, arguments.branch_from)
    run = build_run(config, world, run_dir, start)
    steps_done = int(train(run, stopper)["steps_done"])
    if steps_done < run.num_steps and world.is_main:
        saved = "saved" if run.saver.saved_step == steps_done else "NOT saved"
        line = f"after step {steps_done} ({stopper.reason or 'as another rank was told'}), {saved}"
        note_stop(run_dir, line)
        print(f"stopped {line}", flush=True)
    ignore_signals()
    leave_world(world)
    return EXIT_DONE if steps_done == run.num_steps else EXIT_PREEMPTED


def _launch(arguments: argparse.Namespace) -> int:
    """Check everything in this process, then start the ranks."""
    from supmim_scale.launch.local import launch

    _check(arguments)
    flags = [word for key in arguments.allow_drift for word in ("--allow-drift", key)]
    if arguments.branch_from is not None:
        flags += ["--branch-from", str(arguments.branch_from)]
    return launch(arguments.ranks, ["train", arguments.recipe, *flags, *arguments.overrides])


def _check(arguments: argparse.Namespace) -> int:
    from supmim_scale.build.check import check_recipe
    from supmim_scale.config import load_config

    config = load_config(arguments.recipe, arguments.overrides)
    train_set, val_set = check_recipe(config, arguments.ranks)
    print(f"{arguments.recipe}: {len(train_set)} training and {len(val_set)} held-out images, fine")
    return EXIT_DONE


def _recipes(arguments: argparse.Namespace) -> int:
    from supmim_scale.config import as_yaml, load_config, recipe_names

    if arguments.recipe:
        print(as_yaml(load_config(arguments.recipe, arguments.overrides)), end="")
        return EXIT_DONE
    for name in recipe_names():
        print(f"{name:16} {load_config(name).about.expected}")
    return EXIT_DONE


def _report(arguments: argparse.Namespace) -> int:
    from supmim_scale.runs.compare import compare

    print(compare(arguments.run_dirs))
    return EXIT_DONE


def _run_dir(arguments: argparse.Namespace, named: str | None) -> Path:
    return Path(named) if named else Path("runs") / Path(arguments.recipe).stem

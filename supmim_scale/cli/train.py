"""`supmim-scale train` and `check`."""

import argparse
from pathlib import Path

from supmim_scale.cli.arguments import add_recipe, require_ranks
from supmim_scale.errors import EXIT_DONE, EXIT_PREEMPTED
from supmim_scale.launch.signals import Stopper, ignore_signals


def add_train_command(parser: argparse.ArgumentParser) -> None:
    """Arguments of `train`."""
    add_recipe(parser)
    parser.add_argument("--ranks", type=int, help="start this many processes on this machine")
    parser.add_argument(
        "--allow-drift",
        action="append",
        default=[],
        metavar="KEY",
        help="a recipe key that may differ from the checkpoint's; can be repeated",
    )
    parser.add_argument(
        "--branch-from",
        type=Path,
        metavar="RUN_DIR",
        help="a shorter run, to continue from its checkpoint before the cool-down",
    )
    parser.set_defaults(run=_train)


def add_check_command(parser: argparse.ArgumentParser) -> None:
    """Arguments of `check`."""
    add_recipe(parser)
    parser.add_argument(
        "--ranks", type=int, default=1, help="number of ranks the batch must divide over"
    )
    parser.set_defaults(run=_check)


def _train(arguments: argparse.Namespace) -> int:
    stopper = Stopper()
    if arguments.ranks is not None:
        return _launch(arguments)
    stopper.install()  # before torch: a signal during its import must not kill

    from supmim_scale.config import load_config
    from supmim_scale.training.resume import Start
    from supmim_scale.training.start import run_folder, train_here

    config = load_config(arguments.recipe, arguments.overrides)
    outcome = train_here(
        config,
        run_folder(config, arguments.recipe),
        Start(arguments.allow_drift, arguments.branch_from),
        stopper,
    )
    ignore_signals()
    return EXIT_DONE if outcome.is_finished else EXIT_PREEMPTED


def _launch(arguments: argparse.Namespace) -> int:
    """Check everything in this process, then start the ranks."""
    from supmim_scale.launch.local import launch
    from supmim_scale.training.resume import Start

    _check(arguments)
    words = Start(arguments.allow_drift, arguments.branch_from).words()
    return launch(arguments.ranks, ["train", arguments.recipe, *words, *arguments.overrides])


def _check(arguments: argparse.Namespace) -> int:
    from supmim_scale.config import load_config

    require_ranks(arguments.ranks)
    config = load_config(arguments.recipe, arguments.overrides)

    from supmim_scale.build.check import check_recipe
    from supmim_scale.training.start import run_folder

    folder = run_folder(config, arguments.recipe)
    train_set, val_set = check_recipe(config, arguments.ranks, run_dir=folder)
    print(
        f"{arguments.recipe}: {len(train_set)} training and {len(val_set)} held-out images, "
        "no problems found"
    )
    return EXIT_DONE

"""The command line: `supmim-scale COMMAND`."""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from supmim_scale import __version__
from supmim_scale.cli.arguments import require_once
from supmim_scale.cli.data import add_data_commands
from supmim_scale.cli.evaluate import add_eval_command, add_export_command
from supmim_scale.cli.plan import add_plan_command
from supmim_scale.cli.recipes import add_recipes_command, add_report_command
from supmim_scale.cli.scaling import add_scaling_commands
from supmim_scale.cli.slurm import add_cluster_commands
from supmim_scale.cli.study import add_study_commands
from supmim_scale.cli.train import add_check_command, add_train_command
from supmim_scale.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, RankError, UserError
from supmim_scale.launch.signals import ignore_signals


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 a user's mistake, 75 stopped and saved."""
    arguments = _parse(argv)
    try:
        require_once(getattr(arguments, "overrides", ()))
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
    """Write the mistake to the file that the batch script names: srun returns the highest code of
    its tasks, so a mistake's 2 may be hidden by the signals that end the other tasks."""
    name = os.environ.get("SUPMIM_MISTAKE")
    if name:
        with contextlib.suppress(OSError):  # a folder that cannot be written may be the mistake
            Path(name).write_text(line + "\n")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments, with overrides collected from before and after the options."""
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

    add_train_command(
        commands.add_parser("train", help="train a recipe, evaluate it and save weights")
    )
    add_check_command(
        commands.add_parser("check", help="check a recipe and its data without training")
    )
    add_recipes_command(
        commands.add_parser("recipes", help="list recipes, show one, or explain keys")
    )
    add_eval_command(
        commands.add_parser("eval", help="evaluate a run, a weights file or a timm model")
    )
    add_export_command(commands.add_parser("export", help="export encoder and head for plain timm"))
    add_report_command(commands.add_parser("report", help="compare finished runs"))
    add_plan_command(
        commands.add_parser("plan", help="predict whether a recipe fits, its speed and its cost")
    )
    add_cluster_commands(commands)
    add_study_commands(
        commands.add_parser("study", help="plan, run and submit many runs from one YAML file")
    )
    add_data_commands(commands.add_parser("data", help="generate, pack, index and check data sets"))
    add_scaling_commands(
        commands.add_parser("scaling", help="fit scaling laws, draw figures, write a report")
    )
    return parser

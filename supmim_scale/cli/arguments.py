"""Arguments that several commands share, and their checks."""

import argparse
import os
from collections.abc import Iterable
from pathlib import Path

from supmim_scale.errors import UserError


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """A recipe and its overrides."""
    parser.add_argument("recipe", help="a packaged recipe's name, or a .yaml file")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="recipe overrides, such as optim.lr=1e-3"
    )


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Number of processes that do the work."""
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")


def require_once(overrides: Iterable[str]) -> None:
    """Raise `UserError` for a key that is given two values on one command line."""
    given = dict[str, str]()
    for override in overrides:
        key, _, value = override.partition("=")
        if key in given:
            raise UserError(
                f"command line: {key}",
                f"{given[key]} and {value}",
                "one value",
                "delete one of them",
            )
        given[key] = value


def require_ranks(ranks: int) -> int:
    """Raise `UserError` for a number of ranks that cannot be started."""
    return require_positive("--ranks", ranks)


def require_positive(option: str, count: int) -> int:
    """Raise `UserError` for a count below 1."""
    if count < 1:
        raise UserError(option, f"{count}", "1 or more", f"raise {option}")
    return count


def made_folder(folder: Path, where: str) -> Path:
    """The folder, made if need be. Raises `UserError` where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(where, str(error), "a writable folder", f"name another {where}") from None
    return folder

"""`supmim-scale recipes` and `report`."""

import argparse
from pathlib import Path

from supmim_scale.errors import EXIT_DONE, UserError


def add_recipes_command(parser: argparse.ArgumentParser) -> None:
    """Arguments of `recipes`."""
    parser.add_argument("recipe", nargs="?", help="show this recipe with every default written out")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="recipe overrides, such as optim.lr=1e-3"
    )
    parser.add_argument(
        "--keys",
        nargs="?",
        const="*",
        metavar="PATTERN",
        help="explain recipe keys: default, allowed values, unit, meaning; optim.* or a word",
    )
    parser.add_argument("--markdown", action="store_true", help="print all keys as a Markdown page")
    parser.set_defaults(run=_recipes)


def add_report_command(parser: argparse.ArgumentParser) -> None:
    """Arguments of `report`."""
    parser.add_argument("run_dirs", nargs="+", type=Path, help="run folders")
    parser.set_defaults(run=_report)


def _recipes(arguments: argparse.Namespace) -> int:
    from supmim_scale.config import as_yaml, load_config, recipe_names
    from supmim_scale.config.keys import keys_like, reference

    if arguments.markdown and not arguments.keys:
        raise UserError("--markdown", "no --keys", "a page of all keys", "add --keys")
    if arguments.markdown:
        print(reference(), end="")
    elif arguments.keys:
        print("\n".join(str(key) for key in keys_like(arguments.keys)))
    elif arguments.recipe:
        print(as_yaml(load_config(arguments.recipe, arguments.overrides)), end="")
    else:
        for name in recipe_names():
            print(f"{name:16} {load_config(name).about.expected}")
    return EXIT_DONE


def _report(arguments: argparse.Namespace) -> int:
    from supmim_scale.runs.compare import compare

    print(compare(arguments.run_dirs))
    return EXIT_DONE

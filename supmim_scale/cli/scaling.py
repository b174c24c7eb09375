"""`supmim-scale scaling COMMAND`: fit laws, draw them, write a report."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from supmim_scale.cli.arguments import made_folder
from supmim_scale.errors import EXIT_DONE, UserError

if TYPE_CHECKING:
    from supmim_scale.scaling.answer import Laws

_COLUMNS = ("metric", "params", "data", "compute", "arm", "flops_factor")


def add_scaling_commands(parser: argparse.ArgumentParser) -> None:
    """`fit`, `report`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    fit = commands.add_parser("fit", help="fit a law to runs or a table and print it")
    _add_source(fit)
    fit.add_argument("--out", type=Path, help="folder for fit.json; default: only print")
    fit.set_defaults(run=_fit)

    report = commands.add_parser(
        "report", help="fit, and write figures (PNG, PDF, SVG) and one HTML page"
    )
    _add_source(report)
    report.add_argument("--out", type=Path, required=True, help="folder to write to")
    report.add_argument("--manifest", type=Path, help="the study's file, shown on the page")
    report.add_argument("--title", help="title of the page; default: the source's name")
    report.set_defaults(run=_report)


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", nargs="+", type=Path, help="a CSV or Parquet table, or run folders"
    )
    add_fit_options(parser)


def add_fit_options(parser: argparse.ArgumentParser) -> None:
    """What is fitted to which columns, and how."""
    parser.add_argument("--law", help="power, power_floor, saturating, parametric or broken")
    columns = parser.add_argument_group("columns", "NAME, NAME:UNIT, or 1-NAME for an error rate")
    columns.add_argument(
        "--metric", help="column of the metric; default: error for runs, loss for tables"
    )
    columns.add_argument("--params", help="column of model sizes; default: params")
    columns.add_argument("--data", help="column of samples or tokens; default: samples_seen")
    columns.add_argument("--compute", help="column of training FLOPs; default: train_flops")
    columns.add_argument(
        "--arm", help="column of arms, fitted separately and compared; default: objective"
    )
    columns.add_argument(
        "--cluster",
        action="append",
        metavar="NAME",
        help="column whose equal values the bootstrap draws together",
    )
    columns.add_argument(
        "--where",
        action="append",
        metavar="TEST",
        help="keep only rows where NAME=TEXT, NAME<NUMBER or NAME>NUMBER",
    )
    columns.add_argument(
        "--flops-factor",
        type=float,
        metavar="K",
        help="K of C = K N D, which gives a missing column; 6 for language models",
    )
    parser.add_argument(
        "--frontier", action="store_true", help="leave out runs that a cheaper run beats"
    )
    parser.add_argument(
        "--bootstrap",
        type=int,
        default=200,
        metavar="N",
        help="bootstrap replicates; 0: no intervals (default: %(default)s)",
    )
    parser.add_argument(
        "--hold-out",
        type=float,
        default=0.25,
        metavar="SHARE",
        help="share of runs, the most expensive, to hold out; 0: none (default: %(default)s)",
    )
    parser.add_argument(
        "--budget",
        type=float,
        action="append",
        metavar="FLOPS",
        help="predict the metric at this budget; can be repeated",
    )
    parser.add_argument(
        "--delta", type=float, help="threshold of the Huber loss; Hoffmann et al. use 1e-3"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the starting points and the bootstrap"
    )


def _fit(arguments: argparse.Namespace) -> int:
    laws = fitted(arguments, arguments.source)
    print(laws.summary())
    if arguments.out:
        print(laws.write(made_folder(arguments.out, "--out")))
    return EXIT_DONE


def _report(arguments: argparse.Namespace) -> int:
    made_folder(arguments.out, "--out")
    manifest = text_of(arguments.manifest) if arguments.manifest else ""
    title = arguments.title or " ".join(path.name for path in arguments.source)
    laws = fitted(arguments, arguments.source)
    return tell(laws, arguments.out, title=title, manifest=manifest)


def tell(laws: "Laws", out: Path, *, title: str, manifest: str) -> int:
    """Print the fits; write them, their figures and their page into an existing folder."""
    print(laws.summary())
    fit = laws.write(out)
    page, count = laws.report(out, title=title, manifest=manifest)
    print(f"{fit}\n{page}  (with {count} figures, also as PNG, PDF and SVG next to it)")
    return EXIT_DONE


def fitted(arguments: argparse.Namespace, source: list[Path], **otherwise: str | None) -> "Laws":
    """Fit the laws of a source by the options of `add_fit_options`; `otherwise` gives the columns
    and the `law` that the command line does not."""
    from supmim_scale.scaling.analysis import Options
    from supmim_scale.scaling.answer import fit_source

    named = {name: getattr(arguments, name) or otherwise.get(name) for name in _COLUMNS}
    columns = {name: value for name, value in named.items() if value is not None}
    columns |= {name: tuple(getattr(arguments, name) or ()) for name in ("cluster", "where")}
    options = Options(
        arguments.law or otherwise.get("law"),
        arguments.bootstrap,
        arguments.hold_out,
        arguments.delta,
        arguments.seed,
        tuple(arguments.budget or ()),
        arguments.frontier,
    )
    return fit_source(source, columns, options, shown=True)


def text_of(path: Path) -> str:
    """A text file. Raises `UserError` where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("--manifest", str(error), "a text file", "check the path") from None

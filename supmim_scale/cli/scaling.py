"""The command line of scaling laws: `supmim-scale scaling COMMAND`."""

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from supmim_scale.errors import EXIT_DONE, UserError

if TYPE_CHECKING:
    from supmim_scale.scaling.analysis import Analysis
    from supmim_scale.scaling.arms import Gap
    from supmim_scale.scaling.points import Points


def add_scaling_commands(parser: argparse.ArgumentParser) -> None:
    """`fit`, `report`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    fit = commands.add_parser("fit", help="fit a law to runs or a table, print what it says")
    _add_source(fit)
    fit.add_argument("--out", type=Path, help="folder for fit.json; default: print alone")
    fit.set_defaults(run=_fit)

    report = commands.add_parser("report", help="fit, figures as PNG, PDF, SVG, one HTML page")
    _add_source(report)
    report.add_argument("--out", type=Path, required=True, help="folder to write")
    report.add_argument("--manifest", type=Path, help="the study's file, shown in the page")
    report.add_argument("--title", help="of the page; default: the source's name")
    report.set_defaults(run=write_report)


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", nargs="+", type=Path, help="a CSV or Parquet table, or folders of runs"
    )
    add_fit_options(parser)


def add_fit_options(parser: argparse.ArgumentParser) -> None:
    """What is fitted to which columns, and how."""
    parser.add_argument("--law", help="power, power_floor, saturating, parametric, broken")
    columns = parser.add_argument_group("columns", "NAME, NAME:UNIT, or 1-NAME for an error rate")
    columns.add_argument("--metric", help="default: error for runs, loss for tables")
    columns.add_argument("--params", help="model sizes; default: params")
    columns.add_argument("--data", help="samples or tokens; default: samples_seen")
    columns.add_argument("--compute", help="training FLOPs; default: train_flops")
    columns.add_argument("--arm", help="what is fitted apart and compared; default: objective")
    columns.add_argument(
        "--cluster",
        action="append",
        metavar="NAME",
        help="column equal in rows that are drawn together",
    )
    columns.add_argument(
        "--where",
        action="append",
        metavar="TEST",
        help="keep rows where NAME=TEXT, NAME<NUMBER, NAME>NUMBER",
    )
    columns.add_argument(
        "--flops-factor",
        type=float,
        metavar="K",
        help="C = K N D gives a missing column; 6 for language",
    )
    parser.add_argument(
        "--frontier", action="store_true", help="leave out runs that a cheaper one beats"
    )
    parser.add_argument(
        "--bootstrap",
        type=int,
        default=200,
        metavar="N",
        help="replicates; 0: no intervals (default: %(default)s)",
    )
    parser.add_argument(
        "--hold-out",
        type=float,
        default=0.25,
        metavar="SHARE",
        help="dearest runs to predict; 0: none (default: %(default)s)",
    )
    parser.add_argument(
        "--budget",
        type=float,
        action="append",
        metavar="FLOPS",
        help="say what it would buy; can be given again",
    )
    parser.add_argument("--delta", type=float, help="Huber's threshold; 1e-3 as published")
    parser.add_argument("--seed", type=int, default=0, help="of starts and bootstrap")


def _fit(arguments: argparse.Namespace) -> int:
    analyses, gaps = _analyses(arguments)
    _print(analyses, gaps)
    if arguments.out:
        print(_write_json(arguments, analyses, gaps))
    return EXIT_DONE


def write_report(arguments: argparse.Namespace) -> int:
    """Fit, figures and the page, into `arguments.out`."""
    from supmim_scale.scaling.figures import plot_figures
    from supmim_scale.scaling.page import write_page

    _make(arguments.out)
    manifest = _text_of(arguments.manifest) if arguments.manifest else ""
    analyses, gaps = _analyses(arguments)
    _print(analyses, gaps)
    fit = _write_json(arguments, analyses, gaps)
    figures = plot_figures(analyses, gaps, arguments.out)
    page = write_page(
        analyses,
        gaps,
        figures,
        arguments.out / "report.html",
        title=arguments.title or " ".join(path.name for path in arguments.source),
        inputs=_digests(arguments.source),
        seed=arguments.seed,
        manifest=manifest,
    )
    print(f"{fit}\n{page}  (with {len(figures)} figures, also as PNG, PDF and SVG beside it)")
    return EXIT_DONE


def _analyses(arguments: argparse.Namespace) -> "tuple[list[Analysis], list[Gap]]":
    """An analysis of every arm, and the gaps to the baseline."""
    from supmim_scale.scaling.analysis import Options, analyse_arms
    from supmim_scale.scaling.arms import gaps_of

    _require_sane(arguments)
    options = Options(
        arguments.law,
        arguments.bootstrap,
        arguments.hold_out,
        arguments.delta,
        arguments.seed,
        tuple(arguments.budget or ()),
        arguments.frontier,
    )
    analyses = analyse_arms(_points(arguments), options, shown=True)
    return analyses, gaps_of(analyses)


def _points(arguments: argparse.Namespace) -> "Points":
    from supmim_scale.scaling.columns import Columns, read_rows, to_points
    from supmim_scale.scaling.runs import find_runs, run_row

    given = {
        name: value
        for name in ("metric", "params", "data", "compute", "arm", "flops_factor")
        if (value := getattr(arguments, name)) is not None
    }
    given |= {name: tuple(getattr(arguments, name) or ()) for name in ("cluster", "where")}
    source = arguments.source
    if len(source) == 1 and not source[0].is_dir():
        return to_points(read_rows(source[0]), Columns(**given), str(source[0]))
    rows = [run_row(run, place) for place, run in enumerate(find_runs(source), 1)]
    return to_points(rows, Columns(**{"metric": "error", **given}), "runs")


def _require_sane(arguments: argparse.Namespace) -> None:
    """Raise `UserError` for numbers that mean nothing."""
    budgets, delta, factor = arguments.budget or [1.0], arguments.delta, arguments.flops_factor
    for option, value, is_sane, expected in (
        ("--bootstrap", arguments.bootstrap, arguments.bootstrap >= 0, "0 or more"),
        ("--hold-out", arguments.hold_out, 0 <= arguments.hold_out < 1, "a share, 0 to below 1"),
        ("--budget", budgets, all(0 < b < math.inf for b in budgets), "FLOPs above 0"),
        ("--delta", delta, delta is None or 0 < delta < math.inf, "a number above 0"),
        ("--flops-factor", factor, factor is None or 0 < factor < math.inf, "above 0"),
        ("--seed", arguments.seed, arguments.seed >= 0, "0 or more"),
    ):
        if not is_sane:
            raise UserError(option, str(value), expected, f"mend {option}")


def _print(analyses: "list[Analysis]", gaps: "list[Gap]") -> None:
    from supmim_scale.scaling.text import as_text, gap_text

    print("\n".join([*map(as_text, analyses), *map(gap_text, gaps)]))


def _write_json(
    arguments: argparse.Namespace, analyses: "list[Analysis]", gaps: "list[Gap]"
) -> Path:
    from supmim_scale.scaling.text import as_dict, gap_text

    _make(arguments.out)
    path: Path = arguments.out / "fit.json"
    facts = {
        "inputs": _digests(arguments.source),
        "seed": arguments.seed,
        "arms": [as_dict(analysis) for analysis in analyses],
        "gaps": [gap_text(gap) for gap in gaps],
    }
    path.write_text(json.dumps(facts, indent=2) + "\n")
    return path


def _digests(source: list[Path]) -> dict[str, str]:
    """SHA-256 of the table, or of every run's log."""
    from supmim_scale.files.checksums import sha256_of
    from supmim_scale.scaling.runs import find_runs

    if len(source) == 1 and not source[0].is_dir():
        return {source[0].name: sha256_of(source[0])}
    return {f"{run.name}/log.jsonl": sha256_of(run / "log.jsonl") for run in find_runs(source)}


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("--manifest", str(error), "a text file", "check the path") from None


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError("--out", str(error), "a writable folder", "name another --out") from None

"""`supmim-scale study COMMAND`: many runs from one YAML file."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from supmim_scale.cli.arguments import made_folder, require_ranks
from supmim_scale.cli.scaling import add_fit_options, fitted, tell, text_of
from supmim_scale.cli.slurm import add_job_options
from supmim_scale.errors import EXIT_DONE

if TYPE_CHECKING:
    from supmim_scale.studies.design import Design


def add_study_commands(parser: argparse.ArgumentParser) -> None:
    """`plan`, `run`, `submit`, `status`, `resume`, `collect`, `report`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    plan = _of_file(commands, "plan", "check a study, list its runs and their cost")
    plan.add_argument("--out", type=Path, help="folder for coverage.png; default: the study's")
    plan.set_defaults(run=_plan)

    run = _of_file(commands, "run", "train the unfinished runs on this machine, cheapest first")
    run.add_argument("--ranks", type=int, default=2, help="processes per run")
    run.set_defaults(run=_run)

    for name, text in (
        ("submit", "submit a study as job arrays, followed by its report"),
        ("resume", "resubmit the runs that are neither finished nor queued"),
    ):
        submit = _of_file(commands, name, text)
        submit.add_argument(
            "--limit", type=int, default=4, help="runs of an array at the same time"
        )
        submit.add_argument("--nodes", type=int, help="nodes per run; default: the template's")
        submit.add_argument(
            "--fit-sbatch",
            action="append",
            default=[],
            metavar="--NAME=VALUE",
            help="an sbatch option for the job after the arrays, such as a CPU partition",
        )
        add_job_options(submit)
        submit.set_defaults(run=_submit, resume=name == "resume")

    status = _of_file(commands, "status", "show the runs' jobs, as supmim-scale jobs does")
    status.set_defaults(run=_status)
    collect = commands.add_parser(
        "collect", help="write finished runs to runs.csv and runs.parquet"
    )
    collect.add_argument("folder", type=Path, help="folder of the study's runs")
    collect.set_defaults(run=_collect)
    report = commands.add_parser(
        "report", help="collect, fit laws, write figures and one HTML page"
    )
    report.add_argument("folder", type=Path, help="folder of the study's runs")
    report.add_argument(
        "--out", type=Path, help="folder for the report; default: report/ in the study's folder"
    )
    add_fit_options(report)
    report.set_defaults(run=_report)


def _of_file(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text)
    parser.add_argument("study", type=Path, help="the study's YAML file")
    return parser


def _plan(arguments: argparse.Namespace) -> int:
    from supmim_scale.studies.coverage import plot_coverage
    from supmim_scale.studies.text import plan_text

    design, folder = _design(arguments)
    print(f"{design.name}: {len(design.runs)} runs, into {folder}\n{plan_text(design)}")
    if len({one.params for one in design.runs}) > 1:
        print(plot_coverage(design, made_folder(arguments.out or folder, "--out")))
    return EXIT_DONE


def _run(arguments: argparse.Namespace) -> int:
    from supmim_scale.studies.run import run_study

    design, folder = _design(arguments)
    return run_study(design, folder, require_ranks(arguments.ranks))


def _submit(arguments: argparse.Namespace) -> int:
    from supmim_scale.studies.submit import jobs_of, submit_study

    design, folder = _design(arguments)
    jobs = jobs_of(
        design,
        folder,
        resume=arguments.resume,
        limit=arguments.limit,
        nodes=arguments.nodes,
        gpus_per_node=arguments.gpus_per_node,
        sbatch=arguments.sbatch,
        fit_sbatch=arguments.fit_sbatch,
        checks_data=not arguments.unchecked_data,
    )
    if not jobs.waves:
        for line in jobs.left_out():
            print(line)
        print(f"{design.name}: every other run is finished or queued; nothing to submit")
    elif arguments.dry_run:
        print(jobs.text(), end="")
    else:
        submit_study(design, folder, jobs, gpu=arguments.gpu, planned=not arguments.unplanned)
        print(f"follow them with: supmim-scale jobs {folder}")
    return EXIT_DONE


def _status(arguments: argparse.Namespace) -> int:
    from supmim_scale.config.load import load_mapping
    from supmim_scale.jobs.status import known_jobs, states_of
    from supmim_scale.jobs.templates import runs_folder

    name = str(load_mapping(arguments.study).get("name"))
    print(states_of(runs_folder() / name, known_jobs()))
    return EXIT_DONE


def _collect(arguments: argparse.Namespace) -> int:
    from supmim_scale.jobs.status import known_jobs
    from supmim_scale.studies.collect import collect

    path, left_out = collect(arguments.folder, known_jobs())
    for line in left_out:
        print(f"left out: {line}")
    print(f"{path}\n{path.with_suffix('.parquet')}")
    return EXIT_DONE


def _report(arguments: argparse.Namespace) -> int:
    from supmim_scale.jobs.manifest import read_design

    _collect(arguments)
    folder: Path = arguments.folder
    design = read_design(folder)
    law = arguments.law or design.get("law")
    if law is None:
        print("the study names no law, so nothing is fitted")
        return EXIT_DONE
    trunks = {facts["trunk"] for facts in design["runs"].values()}
    if len(trunks) < len(design["runs"]):
        print(
            f"note: {len(design['runs'])} runs share {len(trunks)} trunks but are resampled apart: "
            "intervals may be too narrow; with many trunks, use --cluster trunk"
        )
    out = made_folder(arguments.out or folder / "report", "--out")
    source = [folder / "runs.csv"]
    laws = fitted(arguments, source, law=law, metric=design["metric"], arm="arm")
    manifest = text_of(folder / "study.yaml")
    return tell(laws, out, title=folder.name, manifest=manifest)


def _design(arguments: argparse.Namespace) -> "tuple[Design, Path]":
    """The study, and the folder of its runs."""
    from supmim_scale.jobs.templates import runs_folder
    from supmim_scale.studies.coverage import require_coverage
    from supmim_scale.studies.design import load_design

    design = load_design(arguments.study)
    require_coverage(design)
    return design, runs_folder() / design.name

"""The command line of scaling studies: `supmim-scale study COMMAND`."""

import argparse
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from supmim_scale.cli.scaling import add_fit_options, write_report
from supmim_scale.cli.slurm import (
    add_job_options,
    job_options,
    known_jobs,
    require_fits,
    runs_folder,
    show_jobs,
)
from supmim_scale.errors import EXIT_DONE, EXIT_PREEMPTED, UserError
from supmim_scale.units import duration

_SIGNALLED = (128 + signal.SIGTERM, 128 + signal.SIGUSR1)  # before a rank could listen

if TYPE_CHECKING:
    from supmim_scale.studies.design import Design


def add_study_commands(parser: argparse.ArgumentParser) -> None:
    """`plan`, `run`, `submit`, `status`, `resume`, `collect`, `report`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    plan = _of_file(commands, "plan", "check a study, list its runs and what they take")
    plan.add_argument("--out", type=Path, help="folder of coverage.png; default: the study's")
    plan.set_defaults(run=_plan)

    run = _of_file(commands, "run", "train what is not over on this machine, cheapest first")
    run.add_argument("--ranks", type=int, default=2, help="processes of each run")
    run.set_defaults(run=_run)

    for name, text in (
        ("submit", "submit a study as job arrays, and its report after them"),
        ("resume", "submit again the runs that are neither over nor queued"),
    ):
        submit = _of_file(commands, name, text)
        submit.add_argument("--limit", type=int, default=4, help="runs of an array side by side")
        submit.add_argument("--nodes", type=int, help="of each run; default: the template's")
        submit.add_argument(
            "--fit-sbatch",
            action="append",
            default=[],
            metavar="--NAME=VALUE",
            help="an option of sbatch for the job after the arrays, a CPU partition say",
        )
        add_job_options(submit)
        submit.set_defaults(run=_submit, command=name)

    status = _of_file(commands, "status", "the runs' jobs, as supmim-scale jobs shows them")
    status.set_defaults(run=_status)
    collect = commands.add_parser("collect", help="finished runs as runs.csv and runs.parquet")
    collect.add_argument("folder", type=Path, help="of the study's runs")
    collect.set_defaults(run=_collect)
    report = commands.add_parser("report", help="collect, fit laws, draw, one HTML page")
    report.add_argument("folder", type=Path, help="of the study's runs")
    report.add_argument("--out", type=Path, help="default: report/ in the folder")
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
        try:
            (out := arguments.out or folder).mkdir(parents=True, exist_ok=True)
            print(plot_coverage(design, out))
        except OSError as error:
            raise UserError("--out", str(error), "a writable folder", "name another") from None
    return EXIT_DONE


def _run(arguments: argparse.Namespace) -> int:
    from supmim_scale.config.checks import accumulation_steps
    from supmim_scale.jobs.manifest import write_manifest
    from supmim_scale.jobs.status import run_states
    from supmim_scale.jobs.submit import require_data
    from supmim_scale.launch.local import launch

    design, folder = _design(arguments)
    for one in design.runs:
        accumulation_steps(one.config, arguments.ranks)
        require_data(one.config)
    write_manifest(design.study, folder, design.text, design.facts())
    runs, worst, clock = design.runs, EXIT_DONE, _Clock()
    for number, one in enumerate(runs, 1):
        state = run_states(folder, {})[number - 1]
        left = clock.left(sum(later.own_flops for later in runs[number - 1 :]))
        print(f"\n== [{number}/{len(runs)}{left}] {one.run.name}: {state.state} ==", flush=True)
        if not state.is_over:
            words = ["train", *one.run.words(folder), f"log.run_dir={folder / one.run.name}"]
            code = launch(arguments.ranks, words)
            if code in (EXIT_PREEMPTED, *_SIGNALLED):  # told to stop, not this run alone
                return code
            worst = max(worst, code)
            if code == EXIT_DONE:
                clock.done(one.own_flops)
    return worst


class _Clock:
    """How long the rest takes, at the FLOPs a second so far."""

    def __init__(self) -> None:
        self._began, self._flops = time.monotonic(), 0.0

    def done(self, flops: float) -> None:
        self._flops += flops

    def left(self, flops: float) -> str:
        """For people; nothing before a run is over."""
        if not self._flops:
            return ""
        return f", {duration((time.monotonic() - self._began) * flops / self._flops)} left"


def _submit(arguments: argparse.Namespace) -> int:
    from supmim_scale.jobs.arrays import study_jobs
    from supmim_scale.jobs.manifest import require_begun, write_manifest
    from supmim_scale.jobs.submit import parse_options

    design, folder = _design(arguments)
    shape = design.cluster
    arguments.nodes = arguments.nodes or shape.get("nodes")
    arguments.gpu = arguments.gpu or shape.get("gpu")
    if arguments.gpus_per_node is None and "gpus_per_node" in shape:
        arguments.gpus_per_node = str(shape["gpus_per_node"])
    require_begun(folder, arguments.command == "resume")
    jobs = study_jobs(
        folder,
        design.study,
        arguments.limit,
        job_options(arguments),
        parse_options(arguments.fit_sbatch),
        checks_data=not arguments.unchecked_data,
    )
    if not jobs.waves:
        for line in jobs.left_out():
            print(line)
        print(f"{design.name}: every other run is over or queued; nothing to submit")
        return EXIT_DONE
    if arguments.dry_run:
        print(jobs.text(), end="")
        return EXIT_DONE
    alike = {
        replace(one.config, seed=0, optim=replace(one.config.optim, steps=None)): one.config
        for one in design.runs
    }
    require_fits(arguments, list(alike.values()), jobs.waves[0].array)
    jobs.require_acceptable()
    write_manifest(design.study, folder, design.text, design.facts())
    print(f"{design.name}, {len(design.runs)} runs")
    for line in jobs.submit():
        print(line, flush=True)
    print(f"look at them: supmim-scale jobs {folder}")
    return EXIT_DONE


def _status(arguments: argparse.Namespace) -> int:
    from supmim_scale.config.load import load_mapping

    return show_jobs(runs_folder() / str(load_mapping(arguments.study).get("name")))


def _collect(arguments: argparse.Namespace) -> int:
    from supmim_scale.studies.collect import collect

    path, left_out = collect(arguments.folder, known_jobs())
    for line in left_out:
        print(f"left out: {line}")
    print(f"{path}\n{path.with_suffix('.parquet')}")
    return EXIT_DONE


def _report(arguments: argparse.Namespace) -> int:
    from supmim_scale.jobs.manifest import read_design

    _collect(arguments)
    folder = arguments.folder
    design = read_design(folder)
    arguments.law = arguments.law or design.get("law")
    if arguments.law is None:
        print("the study names no law: nothing is fitted")
        return EXIT_DONE
    trunks = {facts["trunk"] for facts in design["runs"].values()}
    if len(trunks) < len(design["runs"]):
        print(
            f"note: {len(design['runs'])} runs share {len(trunks)} trunks, yet are drawn apart: "
            "intervals may be too narrow; with many trunks, --cluster trunk"
        )
    arguments.source, arguments.manifest = [folder / "runs.csv"], folder / "study.yaml"
    arguments.title, arguments.out = folder.name, arguments.out or folder / "report"
    arguments.metric = arguments.metric or design["metric"]
    arguments.arm = arguments.arm or "arm"
    return write_report(arguments)


def _design(arguments: argparse.Namespace) -> "tuple[Design, Path]":
    """The study, and the folder of its runs."""
    from supmim_scale.studies.coverage import require_coverage
    from supmim_scale.studies.design import load_design

    design = load_design(arguments.study)
    require_coverage(design)
    return design, runs_folder() / design.name

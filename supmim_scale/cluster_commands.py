"""The command line of a cluster: `supmim-scale submit`, `jobs`, `study`."""

import argparse
import sys
from pathlib import Path

from supmim_scale.errors import EXIT_DONE, UserError


def add_cluster_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`submit`, `jobs` and `study` with its own commands."""
    submit = commands.add_parser(
        "submit", help="submit a recipe's Slurm template, checked before it is queued"
    )
    submit.add_argument("recipe", help="a packaged recipe's name, or a .yaml file")
    submit.add_argument("overrides", nargs="*", metavar="key=value")
    submit.add_argument("--nodes", type=int, help="default: the template's")
    submit.add_argument(
        "--allow-drift", action="append", default=[], metavar="KEY",
        help="a recipe key that may differ from the checkpoint's, where a run goes on",
    )  # fmt: skip
    _add_options(submit)
    submit.set_defaults(run=_submit)

    jobs = commands.add_parser("jobs", help="state, step, images/s, ETA, loss, requeues of runs")
    jobs.add_argument("folder", nargs="?", type=Path, help="of runs, or a study's; default: all")
    jobs.set_defaults(run=_jobs)

    study = commands.add_parser("study", help="many runs from one YAML file")
    parts = study.add_subparsers(required=True, metavar="COMMAND")
    plan = parts.add_parser("plan", help="check a study and list its runs")
    plan.add_argument("study", type=Path, help="the study's YAML file")
    plan.set_defaults(run=_plan)
    for name, text in (
        ("submit", "submit a study as a job array, and the table of its runs after it"),
        ("resume", "submit again the runs that are neither over nor queued"),
    ):
        parser = parts.add_parser(name, help=text)
        parser.add_argument("study", type=Path, help="the study's YAML file")
        parser.add_argument("--limit", type=int, default=4, help="runs side by side")
        parser.add_argument("--nodes", type=int, help="of each run; default: the template's")
        parser.add_argument(
            "--fit-sbatch", action="append", default=[], metavar="--NAME=VALUE",
            help="an option of sbatch for the job after the array, a CPU partition say",
        )  # fmt: skip
        _add_options(parser)
        parser.set_defaults(run=_study_submit, command=name)
    run = parts.add_parser("run", help="train a study's runs on this machine, one after another")
    run.add_argument("study", type=Path, help="the study's YAML file")
    run.add_argument("--ranks", type=int, default=2, help="processes of each run")
    run.set_defaults(run=_study_run)
    collect = parts.add_parser("collect", help="the runs that are over as a table, runs.csv")
    collect.add_argument("folder", type=Path, help="of the study's runs")
    collect.set_defaults(run=_collect)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpus-per-node", help="and tasks; default: the template's")
    parser.add_argument(
        "--sbatch", action="append", default=[], metavar="--NAME=VALUE",
        help="any other option of sbatch, as --sbatch=--time=4:00:00; can be given again",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print the script, submit nothing")
    parser.add_argument(
        "--unchecked-data", action="store_true", help="the nodes alone see the data folder"
    )


def _options(arguments: argparse.Namespace) -> dict[str, str]:
    """The options of sbatch that were asked for."""
    from supmim_scale.cluster.submission import parse_options

    found = {} if arguments.nodes is None else {"nodes": str(arguments.nodes)}
    gpus = arguments.gpus_per_node
    if gpus is not None:
        found |= {"gpus-per-node": gpus}
        if gpus != "0":
            found |= {"ntasks-per-node": gpus.rpartition(":")[2]}
    return found | parse_options(arguments.sbatch)


def _submit(arguments: argparse.Namespace) -> int:
    from supmim_scale.cluster.submission import training_job

    job = training_job(
        arguments.recipe, arguments.overrides, _options(arguments),
        drift=arguments.allow_drift, checks_data=not arguments.unchecked_data,
    )  # fmt: skip
    if arguments.dry_run:
        print(job.text(), end="")
        return EXIT_DONE
    number = job.submit()
    print(f"job {number}, run folder {job.folder}\nlook at it: supmim-scale jobs")
    return EXIT_DONE


def _jobs(arguments: argparse.Namespace) -> int:
    from supmim_scale.cluster.jobs import run_states, table
    from supmim_scale.cluster.slurm import job_states

    folder = arguments.folder or _runs_folder()
    if not folder.is_dir():
        raise UserError(str(folder), "no such folder", "one of runs", "name it, or train first")
    try:
        known = job_states()
    except UserError as error:
        print(f"warning: the folders alone speak: {error}", file=sys.stderr)
        known = {}
    print(table(run_states(folder, known)))
    return EXIT_DONE


def _plan(arguments: argparse.Namespace) -> int:
    from supmim_scale.cluster.study import load_study

    study = load_study(arguments.study)
    print(f"{study.name}: {len(study.runs)} runs, into {_runs_folder() / study.name}")
    for run in study.runs:
        print(f"  {run.name}: {run.recipe} {' '.join(run.overrides)}")
    return EXIT_DONE


def _study_submit(arguments: argparse.Namespace) -> int:
    from supmim_scale.cluster.study import load_study, require_begun, write_manifest
    from supmim_scale.cluster.study_jobs import study_jobs
    from supmim_scale.cluster.submission import parse_options

    study = load_study(arguments.study)
    folder = _runs_folder() / study.name
    require_begun(folder, arguments.command == "resume")
    jobs = study_jobs(
        folder, study, arguments.limit, _options(arguments), parse_options(arguments.fit_sbatch),
        checks_data=not arguments.unchecked_data,
    )  # fmt: skip
    if jobs is None:
        print(f"{study.name}: every run is over or queued")
        return EXIT_DONE
    if arguments.dry_run:
        print(jobs.text(), end="")
        return EXIT_DONE
    jobs.require_acceptable()
    write_manifest(study, folder)
    array, runs = jobs.submit_array(), f"{len(jobs.elements)} of {len(study.runs)} runs"
    print(f"job array {array}: {runs}, {jobs.limit} side by side", flush=True)
    print(f"then job {jobs.submit_fit(array)}\nlook at them: supmim-scale jobs {folder}")
    return EXIT_DONE


def _study_run(arguments: argparse.Namespace) -> int:
    from supmim_scale.cluster.jobs import run_states
    from supmim_scale.cluster.study import load_study, write_manifest
    from supmim_scale.launcher import launch

    study = load_study(arguments.study)
    folder, worst = _runs_folder() / study.name, EXIT_DONE
    write_manifest(study, folder)
    for number, (run, state) in enumerate(zip(study.runs, run_states(folder, {}), strict=True), 1):
        print(f"\n== [{number}/{len(study.runs)}] {run.name}: {state.state} ==", flush=True)
        if not state.is_over:
            words = [run.recipe, *run.overrides, f"log.run_dir={folder / run.name}"]
            worst = max(worst, launch(arguments.ranks, ["train", *words]))
    return worst


def _collect(arguments: argparse.Namespace) -> int:
    from supmim_scale.cluster.study_jobs import collect

    path, left_out = collect(arguments.folder)
    for state in left_out:
        print(f"left out: {state.name}, {state.state}" + (f" ({state.why})" if state.why else ""))
    print(path)
    return EXIT_DONE


def _runs_folder() -> Path:
    """Where slurm/site.sh says that runs lie."""
    from supmim_scale.cluster.templates import find_template, site_setting

    return Path(site_setting("SUPMIM_RUNS", find_template("scaling_study"))).resolve()

"""The command line of a cluster: `supmim-scale submit`, `jobs`."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from supmim_scale.errors import EXIT_DONE, UserError

if TYPE_CHECKING:
    from supmim_scale.config import RunConfig
    from supmim_scale.jobs.submit import Submission
    from supmim_scale.slurm.commands import JobState


def add_cluster_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`submit` and `jobs`."""
    submit = commands.add_parser(
        "submit", help="submit a recipe's Slurm template, checked before it is queued"
    )
    submit.add_argument("recipe", help="a packaged recipe's name, or a .yaml file")
    submit.add_argument("overrides", nargs="*", metavar="key=value")
    submit.add_argument("--nodes", type=int, help="default: the template's")
    submit.add_argument(
        "--allow-drift",
        action="append",
        default=[],
        metavar="KEY",
        help="a recipe key that may differ from the checkpoint's, where a run goes on",
    )
    add_job_options(submit)
    submit.set_defaults(run=_submit)

    jobs = commands.add_parser("jobs", help="state, step, images/s, ETA, loss, requeues of runs")
    jobs.add_argument("folder", nargs="?", type=Path, help="of runs, or a study's; default: all")
    jobs.set_defaults(run=_jobs)


def add_job_options(parser: argparse.ArgumentParser) -> None:
    """The options of sbatch, those of a job of any kind."""
    parser.add_argument("--gpus-per-node", help="and tasks; default: the template's")
    parser.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="--NAME=VALUE",
        help="any other option of sbatch, as --sbatch=--time=4:00:00; can be given again",
    )
    parser.add_argument("--gpu", help="of the partition, as supmim-scale plan names it")
    parser.add_argument("--unplanned", action="store_true", help="do not ask whether it fits")
    parser.add_argument("--dry-run", action="store_true", help="print the script, submit nothing")
    parser.add_argument(
        "--unchecked-data", action="store_true", help="the nodes alone see the data folder"
    )


def job_options(arguments: argparse.Namespace) -> dict[str, str]:
    """The options of sbatch that were asked for."""
    from supmim_scale.jobs.submit import parse_options

    found = {} if arguments.nodes is None else {"nodes": str(arguments.nodes)}
    gpus = arguments.gpus_per_node
    if gpus is not None:
        found |= {"gpus-per-node": gpus}
        if gpus != "0":
            found |= {"ntasks-per-node": gpus.rpartition(":")[2]}
    return found | parse_options(arguments.sbatch)


def _submit(arguments: argparse.Namespace) -> int:
    from supmim_scale.config import load_config
    from supmim_scale.jobs.submit import training_job

    job = training_job(
        arguments.recipe,
        arguments.overrides,
        job_options(arguments),
        drift=arguments.allow_drift,
        checks_data=not arguments.unchecked_data,
    )
    if arguments.dry_run:
        print(job.text(), end="")
        return EXIT_DONE
    require_fits(arguments, [load_config(arguments.recipe, arguments.overrides)], job)
    number = job.submit()
    print(f"job {number}, run folder {job.folder}\nlook at it: supmim-scale jobs")
    return EXIT_DONE


def require_fits(
    arguments: argparse.Namespace, configs: "Sequence[RunConfig]", job: "Submission"
) -> None:
    """Ask the planner whether the recipes fit on the job's GPUs. Raises `UserError` where one does
    not; says so where the GPU is not known and nothing can be asked."""
    from supmim_scale.jobs.submit import ranks_of
    from supmim_scale.jobs.templates import options_of, site_setting

    head = options_of(job.script)
    nodes, tasks = ranks_of(head)
    kind, _, count = head.get("gpus-per-node", "0").rpartition(":")
    on_gpus = [config for config in configs if config.engine.device != "cpu"]
    if arguments.unplanned or not on_gpus or count == "0":
        return
    gpu = arguments.gpu or site_setting("SUPMIM_GPU", job.template) or kind
    if not gpu:
        print("not asked whether it fits: name the GPU with --gpu, or SUPMIM_GPU in slurm/site.sh")
        return
    from supmim_scale.planner import fits

    for config in on_gpus:
        verdict = fits(config, gpu, nodes, tasks)
        if not verdict.fits:
            raise UserError(
                "planner",
                verdict.line,
                "a setting that fits",
                "look for one with supmim-scale plan, or submit with --unplanned",
            )
        print(f"planner: {verdict.line}")


def _jobs(arguments: argparse.Namespace) -> int:
    return show_jobs(arguments.folder or runs_folder())


def show_jobs(folder: Path) -> int:
    """Print the table of a folder's runs."""
    from supmim_scale.jobs.status import run_states, status_text

    if not folder.is_dir():
        raise UserError(str(folder), "no such folder", "one of runs", "name it, or train first")
    print(status_text(run_states(folder, known_jobs())))
    return EXIT_DONE


def known_jobs() -> "dict[str, JobState]":
    """Slurm's word on the user's jobs; folders alone speak where there is no Slurm."""
    from supmim_scale.slurm.commands import job_states

    if shutil.which("squeue") is None:
        return {}
    try:
        return job_states()
    except UserError as error:
        print(f"warning: the folders alone speak; {error}", file=sys.stderr)
        return {}


def runs_folder() -> Path:
    """Where slurm/site.sh says that runs lie."""
    from supmim_scale.jobs.templates import find_template, site_setting

    return Path(site_setting("SUPMIM_RUNS", find_template("scaling_study"))).resolve()

"""`supmim-scale submit` and `jobs`."""

import argparse
from pathlib import Path

from supmim_scale.cli.arguments import add_recipe
from supmim_scale.errors import EXIT_DONE


def add_cluster_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`submit` and `jobs`."""
    submit = commands.add_parser(
        "submit", help="submit a recipe's Slurm template, checked before it is queued"
    )
    add_recipe(submit)
    submit.add_argument("--nodes", type=int, help="number of nodes; default: the template's")

    submit.add_argument(
        "--allow-drift",
        action="append",
        default=[],
        metavar="KEY",
        help="a recipe key that may differ from the checkpoint's when a run resumes",
    )
    add_job_options(submit)
    submit.set_defaults(run=_submit)

    jobs = commands.add_parser(
        "jobs", help="show state, step, images/s, ETA, loss and requeues of runs"
    )
    jobs.add_argument(
        "folder", nargs="?", type=Path, help="folder of runs or of a study; default: all runs"
    )
    jobs.set_defaults(run=_jobs)


def add_job_options(parser: argparse.ArgumentParser) -> None:
    """Options of sbatch that any kind of job takes."""
    parser.add_argument("--gpus-per-node", help="GPUs and tasks per node; default: the template's")
    parser.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="--NAME=VALUE",
        help="any other sbatch option, as --sbatch=--time=4:00:00; can be repeated",
    )
    parser.add_argument("--gpu", help="GPU of the partition, as supmim-scale plan names it")
    parser.add_argument("--unplanned", action="store_true", help="do not check whether it fits")
    parser.add_argument("--dry-run", action="store_true", help="print the script, submit nothing")
    parser.add_argument(
        "--unchecked-data",
        action="store_true",
        help="skip the check of the data folder, which only the nodes see",
    )


def _submit(arguments: argparse.Namespace) -> int:
    from supmim_scale.config import load_config
    from supmim_scale.jobs.submit import job_options, training_job

    options = job_options(arguments.nodes, arguments.gpus_per_node, arguments.sbatch)
    job = training_job(
        arguments.recipe,
        arguments.overrides,
        options,
        drift=arguments.allow_drift,
        checks_data=not arguments.unchecked_data,
    )
    if arguments.dry_run:
        print(job.text(), end="")
        return EXIT_DONE
    if not arguments.unplanned:
        from supmim_scale.planner.jobs import require_fits

        require_fits([load_config(arguments.recipe, arguments.overrides)], job, arguments.gpu)
    number = job.submit()
    print(f"job {number}, run folder {job.folder}\nfollow it with: supmim-scale jobs")
    return EXIT_DONE


def _jobs(arguments: argparse.Namespace) -> int:
    from supmim_scale.jobs.status import known_jobs, states_of
    from supmim_scale.jobs.templates import runs_folder

    print(states_of(arguments.folder or runs_folder(), known_jobs()))
    return EXIT_DONE

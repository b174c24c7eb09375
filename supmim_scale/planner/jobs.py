"""Jobs that are asked about before they are queued: do their recipes fit on their GPUs."""

from collections.abc import Sequence

from supmim_scale.config import RunConfig
from supmim_scale.errors import UserError
from supmim_scale.jobs.submit import Submission, ranks_of
from supmim_scale.jobs.templates import options_of, site_setting
from supmim_scale.planner.fit import fits


def require_fits(configs: Sequence[RunConfig], job: Submission, gpu: str | None = None) -> None:
    """Print the planner's verdict on recipes and the job's GPUs; `gpu` names theirs.

    Raises `UserError` where one does not fit; says so where the GPU is not known and nothing can be
    asked.
    """
    head = options_of(job.script)
    nodes, tasks = ranks_of(head)
    kind, _, count = head.get("gpus-per-node", "0").rpartition(":")
    on_gpus = [config for config in configs if config.engine.device != "cpu"]
    if not on_gpus or count == "0":
        return
    gpu = gpu or site_setting("SUPMIM_GPU", job.template) or kind
    if not gpu:
        print("not asked whether it fits: name the GPU with --gpu, or SUPMIM_GPU in slurm/site.sh")
        return
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

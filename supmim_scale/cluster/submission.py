"""A training job before it is submitted: its script, its words, and whether they can work."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from supmim_scale.cluster import slurm, templates
from supmim_scale.cluster.allocation import require_cpus
from supmim_scale.config import RunConfig, load_config
from supmim_scale.config.checks import accumulation_steps
from supmim_scale.errors import UserError

SUBMITTED = "submitted.jsonl"
_DEFAULT = "vitl_in21k"  # template of recipes that name none
_OPTION = re.compile(r"--([a-z][\w-]*)(?:=(.*))?", re.DOTALL)


@dataclass(frozen=True)
class Submission:
    """`script` is the template with the job's options in its head; `words` follow it."""

    template: Path
    script: str
    words: tuple[str, ...]
    folder: Path

    def text(self) -> str:
        """What would be submitted, for people."""
        return f"# sbatch {self.folder}/job.sh {' '.join(self.words)}\n{self.script}"

    def submit(self, record: Mapping[str, Any] | None = None, after: str | None = None) -> str:
        """Write the script into its folder and submit it from there; returns the job's id.

        `after`: a job whose end, of all its elements however they end, this one waits for.

        Raises `UserError` where the folder cannot be written or Slurm refuses; then nothing was
        submitted.
        """
        path = self.folder / "job.sh"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path.write_text(self.script)
            log = open(self.folder / SUBMITTED, "a")  # noqa: SIM115
        except OSError as error:
            raise UserError(
                "run folder", str(error), "a writable folder", "set log.run_dir, or SUPMIM_RUNS"
            ) from None
        environment = {"SUPMIM_HOME": str(templates.home_of(self.template))}
        for how in ("--test-only", "--parsable"):
            waits = [f"--dependency=afterany:{after}"] if after else []
            command = ["sbatch", how, *waits, str(path), *self.words]
            job = slurm.submit(templates.with_site(self.template, command), environment)
        with log:
            at = datetime.now(timezone.utc).isoformat(timespec="seconds")
            log.write(json.dumps({"job": job, "at": at, **(record or {})}) + "\n")
        return job


def training_job(recipe: str, overrides: Sequence[str], options: Mapping[str, str]) -> Submission:
    """The job of a recipe. Raises `UserError` for what can be known to fail before it is queued:
    recipe, batch, shape of the job, data folder."""
    template = template_of(recipe)
    words = templates.training_words(template, [recipe, *overrides])
    config = load_config(words[0], words[1:])
    head = templates.options_of(template.read_text()) | dict(options)
    require_shape(config, head)
    require_data(config)
    folder = Path(str(config.log.run_dir)).resolve()
    options = {"job-name": folder.name, "output": f"{folder}/%x_%j.log", **options}
    script = templates.rendered(template.read_text(), options)
    return Submission(template, script, (recipe, *overrides, f"log.run_dir={folder}"), folder)


def template_of(recipe: str) -> Path:
    """The template that a recipe's lab note names."""
    named = re.search(r"slurm/(\w+)\.sh", load_config(recipe).about.command)
    return templates.find_template(named.group(1) if named else _DEFAULT)


def require_shape(config: RunConfig, head: Mapping[str, str]) -> None:
    """Raise `UserError` where a job of these options could not run the recipe."""
    nodes, tasks, gpus = (_number(head, name) for name in ("nodes", "ntasks-per-node",
                                                            "gpus-per-node"))  # fmt: skip
    if config.engine.device != "cpu" and gpus and tasks != gpus:
        raise UserError(
            "--ntasks-per-node", f"{tasks} with --gpus-per-node={gpus}", "a task a GPU",
            "make them equal, or set engine.device=cpu",
        )  # fmt: skip
    require_cpus(_number(head, "cpus-per-task"), config.input.threads)
    accumulation_steps(config, nodes * tasks)


def require_data(config: RunConfig) -> None:
    """Raise `UserError` where the data folder is not there, seen from this machine."""
    root = Path(config.input.root)
    if not root.is_dir():
        raise UserError(
            "input.root", f"no folder {root}", "the data set's", "set input.root=FOLDER"
        )


def parse_options(words: Sequence[str]) -> dict[str, str]:
    """sbatch's options as they are typed, `--name=value`. Raises `UserError` for other forms."""
    found = {}
    for word in words:
        match = _OPTION.fullmatch(word)
        if match is None or "\n" in word:
            raise UserError("--sbatch", f"'{word}'", "--name=value", "write the option's long form")
        found[match.group(1)] = match.group(2) or ""
    return found


def _number(head: Mapping[str, str], name: str) -> int:
    text = head.get(name, "0")
    count = text.rpartition(":")[2]  # gpus-per-node=h100:8
    if not count.isdigit():
        raise UserError(f"--{name}", text, "a whole number", f"write --{name}=8, say")
    return int(count)

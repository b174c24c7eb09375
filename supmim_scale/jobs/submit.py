"""A job before it is submitted: its script, its words, and whether they can work."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from supmim_scale.config import RunConfig, load_config
from supmim_scale.config.checks import accumulation_steps
from supmim_scale.errors import UserError
from supmim_scale.jobs import templates
from supmim_scale.jobs.manifest import SUBMITTED
from supmim_scale.slurm import commands
from supmim_scale.slurm.allocation import require_cpus

_DEFAULT = "vitl_in21k"  # template of recipes that name none
_OPTION = re.compile(r"--([a-z][\w-]*)(?:=(.*))?", re.DOTALL)


@dataclass(frozen=True)
class Submission:
    """A template with `options` in its head, and the `words` that follow it. The script is kept as
    `name` in `folder`."""

    template: Path
    options: Mapping[str, str]
    words: tuple[str, ...]
    folder: Path
    name: str = "job.sh"

    @property
    def script(self) -> str:
        """The template with the options in its head."""
        return templates.rendered(self.template.read_text(), self.options)

    def text(self) -> str:
        """What would be submitted, for people."""
        return f"# sbatch {shlex.join([str(self.folder / self.name), *self.words])}\n{self.script}"

    def require_acceptable(self) -> None:
        """Raise `UserError` where Slurm would refuse the job; submits and writes nothing."""
        words = ["--test-only", *self._command_line()]
        commands.submit(words, templates.environment(self.template), self.script)

    def submit(self, record: Mapping[str, Any] | None = None, after: Sequence[str] = ()) -> str:
        """Write the script into its folder and submit it from there; returns the job's id.

        `after`: jobs whose end, of all their elements however they end, this one waits for.
        Raises `UserError` where the folder cannot be written or Slurm refuses.
        """
        self.require_acceptable()
        path = self.folder / self.name
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path.write_text(self.script)
        except OSError as error:
            raise UserError(
                "run folder", str(error), "a writable folder", "set log.run_dir, or SUPMIM_RUNS"
            ) from None
        waits = [f"--dependency=afterany:{':'.join(after)}"] if after else []
        words = [*self._command_line(), *waits, str(path), *self.words]
        job = commands.submit(words, templates.environment(self.template))
        at = datetime.now(timezone.utc).isoformat(timespec="seconds")
        with open(self.folder / SUBMITTED, "a") as log:
            log.write(json.dumps({"job": job, "at": at, **(record or {})}) + "\n")
        return job

    def _command_line(self) -> list[str]:
        """The options again: variables of the site's, as SBATCH_PARTITION, beat a script's head."""
        return [
            f"--{name}={value}" if value else f"--{name}" for name, value in self.options.items()
        ]


def training_job(
    recipe: str,
    overrides: Sequence[str],
    options: Mapping[str, str],
    *,
    drift: Sequence[str] = (),
    checks_data: bool = True,
) -> Submission:
    """The job of a recipe. Raises `UserError` for what can be known to fail before it is queued:
    recipe, batch, shape of the job and, unless only the nodes see it, the data folder."""
    template = template_of(recipe)
    words = templates.training_words(template, [recipe, *overrides])
    config = load_config(words[0], words[1:])
    require_shape(config, templates.options_of(template.read_text()) | dict(options))
    if checks_data:
        require_data(config)
    folder = require_plain(Path(str(config.log.run_dir)).resolve())
    options = {"job-name": folder.name, "output": f"{folder}/%x_%j.log", **options}
    allowed = [word for key in drift for word in ("--allow-drift", key)]
    given = [word for word in overrides if not word.startswith("log.run_dir=")]
    words = [recipe, *given, f"log.run_dir={folder}", *allowed]
    return Submission(template, options, tuple(words), folder)


def job_options(
    nodes: int | None, gpus_per_node: str | None, sbatch: Sequence[str] = ()
) -> dict[str, str]:
    """The options of sbatch that were asked for; a task a GPU. `sbatch`: any others, as typed."""
    found = {} if nodes is None else {"nodes": str(nodes)}
    if gpus_per_node is not None:
        found |= {"gpus-per-node": gpus_per_node}
        if gpus_per_node != "0":
            found |= {"ntasks-per-node": gpus_per_node.rpartition(":")[2]}
    return found | parse_options(sbatch)


def template_of(recipe: str) -> Path:
    """The template that a recipe's lab note names."""
    named = re.search(r"slurm/(\w+)\.sh", load_config(recipe).about.command)
    return templates.find_template(named.group(1) if named else _DEFAULT)


def ranks_of(head: Mapping[str, str]) -> tuple[int, int]:
    """(nodes, tasks a node) of a job's options."""
    return _number(head, "nodes"), _number(head, "ntasks-per-node")


def require_shape(config: RunConfig, head: Mapping[str, str]) -> None:
    """Raise `UserError` where a job of these options could not run the recipe."""
    (nodes, tasks), gpus = ranks_of(head), _number(head, "gpus-per-node")
    if config.engine.device != "cpu" and gpus and tasks != gpus:
        raise UserError(
            "--ntasks-per-node",
            f"{tasks} with --gpus-per-node={gpus}",
            "a task a GPU",
            "make them equal, or set engine.device=cpu",
        )
    require_cpus(_number(head, "cpus-per-task"), config.input.threads)
    accumulation_steps(config, nodes * tasks)


def require_data(config: RunConfig) -> None:
    """Raise `UserError` where the data folder is not there, seen from this machine."""
    root = Path(config.input.root)
    if not root.is_dir():
        raise UserError(
            "input.root",
            f"no folder {root}",
            "the data set's",
            "set input.root=FOLDER, or --unchecked-data if only the nodes see it",
        )


def require_plain(folder: Path) -> Path:
    """The folder. Raises `UserError` for a name that Slurm would read as a pattern."""
    if "%" in str(folder):
        raise UserError("run folder", f"{folder}", "no % in it: Slurm fills it in", "name another")
    return folder


def parse_options(words: Sequence[str]) -> dict[str, str]:
    """sbatch's options as they are typed, `--name=value`. Raises `UserError` for other forms."""
    found = {}
    for word in words:
        match = _OPTION.fullmatch(word)
        if match is None:
            raise UserError("--sbatch", f"'{word}'", "--name=value", "write the option's long form")
        found[match.group(1)] = match.group(2) or ""
    return found


def _number(head: Mapping[str, str], name: str) -> int:
    text = head.get(name, "0")
    count = text.rpartition(":")[2]  # gpus-per-node=h100:8
    if not count.isdigit():
        raise UserError(f"--{name}", text, "a whole number", f"write --{name}=8, say")
    return int(count)

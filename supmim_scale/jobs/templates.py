"""Batch scripts of `slurm/`: found, asked what they would run, written with other options."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from supmim_scale.errors import UserError, did_you_mean
from supmim_scale.slurm.commands import WITH_SITE, outside_job

SHARED = ("site", "job")  # sourced by the others
_DIRECTIVE = re.compile(r"^#SBATCH --([\w-]+)(?:=(.*))?$", re.MULTILINE)


def find_template(name: str) -> Path:
    """Path of `slurm/NAME.sh` in the checkout or the installation."""
    checkout, installed = (
        Path(__file__).resolve().parents[2],
        Path(sys.prefix, "share/supmim_scale"),
    )
    folders = [root / "slurm" for root in (checkout, installed)]
    for folder in folders:
        if (folder / f"{name}.sh").is_file() and name not in SHARED:
            return folder / f"{name}.sh"
    known = {path.stem for folder in folders for path in folder.glob("*.sh")} - set(SHARED)
    raise UserError("template", f"no slurm/{name}.sh", "a template", did_you_mean(name, known))


def options_of(text: str) -> dict[str, str]:
    """The options of a script's head; an option without a value is ''."""
    return {name: value.strip('"') for name, value in _DIRECTIVE.findall(text)}


def rendered(text: str, options: Mapping[str, str]) -> str:
    """The script with these options in its head, in place of its own or after them."""
    left = dict(options)

    def replaced(found: re.Match[str]) -> str:
        name = found.group(1)
        return directive(name, left.pop(name)) if name in left else found.group(0)

    text = _DIRECTIVE.sub(replaced, text)
    last = list(_DIRECTIVE.finditer(text))[-1].end()
    added = "".join("\n" + directive(name, value) for name, value in left.items())
    return text[:last] + added + text[last:]


def directive(name: str, value: str) -> str:
    """A line of a script's head; Slurm reads double quotes around a value. Raises `UserError` for
    one that no quotes can hold."""
    if '"' in value or "\n" in value:
        raise UserError(f"--{name}", f"{value!r}", "no quote or line break", "write it without")
    shown = value if shlex.quote(value) == value else f'"{value}"'
    return f"#SBATCH --{name}={shown}" if value else f"#SBATCH --{name}"


def training_words(template: Path, arguments: Sequence[str]) -> list[str]:
    """Recipe and overrides that a training template would pass on, the site's folders among
    them; the template itself is asked."""
    return _asked(["bash", str(template), "--words", *arguments], template).splitlines()


def site_setting(name: str, template: Path) -> str:
    """A variable as `slurm/site.sh` leaves it."""
    return _asked(["bash", "-c", WITH_SITE + 'printf %s "${!1}"', "site", name], template)


def runs_folder() -> Path:
    """Where slurm/site.sh says that runs lie."""
    return Path(site_setting("SUPMIM_RUNS", find_template("scaling_study"))).resolve()


def environment(template: Path) -> dict[str, str]:
    """For a template's jobs: this process's, outside of any job it may be in itself.

    An installation has no folders for runs and no Python of its own: the working folder and this
    Python then stand for them.
    """
    home = template.parent.parent
    own = {"SUPMIM_HOME": str(home)}
    if not (home / "setup.cfg").exists():
        here = os.getcwd()
        own = {
            "SUPMIM_PYTHON": sys.executable,
            "SUPMIM_RUNS": f"{here}/runs",
            "SUPMIM_DATA": f"{here}/datasets",
            **outside_job(),
            **own,
        }
    return {**outside_job(), **own}


def _asked(command: list[str], template: Path) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment(template)
    )
    if done.returncode:
        words = " ".join(done.stderr.split())
        raise UserError(str(template), words, "an answer", "look at slurm/site.sh")
    return done.stdout

"""GPUs by name, from vendors' datasheets; a user's file adds others."""

from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from supmim_scale.config import load_mapping
from supmim_scale.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Gpu:
    """A GPU's datasheet: decimal bytes, dense bf16, one direction of one GPU's link. `torch_name`:
    what torch calls it, where we know."""

    name: str
    memory_bytes: float
    bf16_flops_per_s: float
    memory_bytes_per_s: float
    link_bytes_per_s: float
    tdp_watts: float
    source: str
    torch_name: str | None = None


def find_gpu(name: str) -> Gpu:
    """A packaged GPU by name, or the one that a user's .yaml describes.

    Raises `UserError` for an unknown name, and for a file that leaves a figure out.
    """
    if name.endswith((".yaml", ".yml")):
        return _from_file(Path(name))
    known = _known()
    if name.lower() not in known:
        fix = f"{did_you_mean(name.lower(), known)} --gpu FILE.yaml adds another"
        raise UserError("--gpu", f"'{name}'", "a GPU whose datasheet is here", fix)
    return _checked(name.lower(), known[name.lower()], "gpus.yaml")


@cache
def gpu_of_device(torch_name: str) -> Gpu | None:
    """The packaged GPU that torch calls so; None: no datasheet of it is here."""
    gpus = (_checked(name, figures, "gpus.yaml") for name, figures in _known().items())
    return next((gpu for gpu in gpus if gpu.torch_name == torch_name), None)


def _from_file(path: Path) -> Gpu:
    content = load_mapping(path)
    if len(content) != 1:
        raise UserError(
            str(path), f"{len(content)} GPUs", "one, its name above its figures", "keep one"
        )
    ((name, figures),) = content.items()
    return _checked(str(name), figures, str(path))


def _checked(name: str, figures: Any, where: str) -> Gpu:
    expected = [spec.name for spec in fields(Gpu) if spec.name not in ("name", "torch_name")]
    if not isinstance(figures, dict) or set(figures) - {"torch_name"} != set(expected):
        found = sorted(map(str, figures)) if isinstance(figures, dict) else type(figures).__name__
        fix = "write each of them once, see supmim_scale/hardware/gpus.yaml"
        raise UserError(f"{where}: {name}", f"{found}", ", ".join(expected), fix)
    for key, value in figures.items():
        is_number = type(value) in (int, float) and value > 0
        if key not in ("source", "torch_name") and not is_number:
            fix = "YAML needs a dot and a sign in 80.0e+9 to read a number"
            raise UserError(f"{where}: {name}.{key}", f"{value!r}", "a number above 0", fix)
    if not isinstance(figures["source"], str) or not figures["source"].strip():
        fix = "name the datasheet"
        raise UserError(f"{where}: {name}.source", f"{figures['source']!r}", "a source", fix)
    return Gpu(name, **figures)


def _known() -> dict[str, Any]:
    return load_mapping(_packaged())


def _packaged() -> Path:
    return Path(str(resources.files("supmim_scale") / "hardware" / "gpus.yaml"))

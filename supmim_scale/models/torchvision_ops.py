"""Lets timm import where torchvision's compiled operators cannot load.

timm needs torchvision. pip pairs a CPU build of torch with PyPI's torchvision, whose compiled
part wants CUDA; its import then fails with `operator torchvision::nms does not exist` because
Python code registers fake kernels for operators that were never defined. Declaring the two
schemas is enough: nothing here calls them. A torchvision whose library loads is left alone.
"""

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: torch.library.Library | None = None  # a library lives as long as its reference


def declare_missing_ops() -> None:
    """Declare torchvision's operator schemas if, on a CPU build, its library does not load."""
    global _declared
    if torch.version.cuda is not None or _declared is not None or _library_loads():
        return
    _declared = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        _declared.define(schema)


def _library_loads() -> bool:
    spec = importlib.util.find_spec("torchvision")
    folders = spec.submodule_search_locations if spec else None
    libraries = [lib for folder in folders or () for lib in Path(folder).glob("_C*")]
    try:
        for library in libraries:
            torch.ops.load_library(str(library))
    except OSError:
        return False
    return bool(libraries)

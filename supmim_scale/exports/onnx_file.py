"""ONNX: written by torch's exporter, checked by onnxruntime; the only user of either."""

import importlib.util
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from supmim_scale.errors import UserError
from supmim_scale.exports.parity import RUNTIME, Parity, compare

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_OPSET = 18


def require_onnx() -> None:
    """Raise `UserError` where a package is missing."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            "--onnx",
            f"no {' and no '.join(missing)}",
            "the packages of the extra",
            "pip install 'supmim_scale[onnx]'",
        )


def write_onnx(model: nn.Module, images_BCHW: Tensor, path: Path) -> Parity:
    """Write fp32 weights and a graph for any number of images (`images` to `logits`), and compare
    its logits in onnxruntime. Weights beyond 2 GB lie in `model.onnx.data` beside it."""
    with warnings.catch_warnings():  # of the exporter's own making (torch 2.13, onnxscript 0.7)
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.cat([images_BCHW, images_BCHW]),),
            path,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=_OPSET,
            dynamo=True,
            verbose=False,
        )
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

    return compare("onnxruntime", model, run, images_BCHW, RUNTIME)

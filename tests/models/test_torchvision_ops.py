import subprocess
import sys

import torch

from supmim_scale.models import torchvision_ops


def test_timm_and_torchvisions_transforms_import_on_this_machine():
    """On a CPU build of torch beside PyPI's torchvision they do not, without the declarations."""
    code = (
        "from supmim_scale.models.encoder import timm; import torchvision.transforms.v2;"
        "import timm.data, timm.optim"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_torchvision_that_works_is_left_alone(monkeypatch):
    monkeypatch.setattr(torchvision_ops, "_declared", None)
    monkeypatch.setattr(torchvision_ops, "_library_loads", lambda: True)
    torchvision_ops.declare_missing_ops()
    assert torchvision_ops._declared is None


def test_a_cuda_build_is_left_alone(monkeypatch):
    monkeypatch.setattr(torchvision_ops, "_declared", None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torchvision_ops, "_library_loads", lambda: False)
    torchvision_ops.declare_missing_ops()
    assert torchvision_ops._declared is None

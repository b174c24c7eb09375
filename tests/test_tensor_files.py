"""Who may read and write a file of tensors."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from supmim_scale.files.tensors import write_tensors


@pytest.mark.parametrize(("folder", "file"), [(0o777, 0o644), (0o750, 0o640), (0o700, 0o600)])
def test_whoever_may_read_the_folder_may_read_the_file_and_its_owner_alone_may_write_it(
    folder, file, tmp_path
):
    tmp_path.chmod(folder)
    write_tensors({"x": torch.ones(2)}, tmp_path / "x.safetensors")
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == file


def test_a_file_system_that_refuses_rights_does_not_lose_the_file(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    write_tensors({"x": torch.ones(2)}, tmp_path / "x.safetensors")
    assert load_file(tmp_path / "x.safetensors")["x"].tolist() == [1, 1]

"""safetensors files that whoever may read their folder may read."""

import contextlib
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def write_tensors(
    tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a file, not synced."""
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(whole, path, metadata)
    open_as_folder(path)


def open_as_folder(path: Path) -> None:
    """Let a file be read by whoever may read its folder (safetensors 0.8 lets its owner alone);
    a file system without such rights keeps its own."""
    with contextlib.suppress(PermissionError):
        path.chmod(0o600 | (path.parent.stat().st_mode & 0o044))

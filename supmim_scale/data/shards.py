"""Writing WebDataset shards, and the checksum manifest of a folder of them."""

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from supmim_scale.errors import UserError
from supmim_scale.files.whole import whole_file, write_whole

MANIFEST = "SHA256SUMS"


def write_shard(path: Path, samples: Iterable[tuple[str, bytes, str, str | None]]) -> int:
    """Write (key, image, extension, label text or None) samples to a tar; returns their number.

    The file appears under its name only when it is whole and on disk.
    """
    count = 0
    with (
        whole_file(path, sync=True) as part,
        tarfile.open(part, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for key, image, extension, label in samples:
            _add(tar, f"{key}.{extension}", image)
            if label is not None:
                _add(tar, f"{key}.cls", label.encode())
            count += 1
    return count


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def write_manifest(path: Path, checksums: Mapping[str, str]) -> None:
    """Write checksums by file name, in the form that `sha256sum -c` reads."""
    write_whole(path, "".join(f"{checksums[name]}  {name}\n" for name in sorted(checksums)))


def read_manifest(path: Path) -> dict[str, str]:
    """Checksums by file name. Raises `UserError` for a file that is no manifest."""
    checksums = {}
    for line in path.read_text(errors="replace").splitlines():
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or not name:
            raise UserError(
                str(path), f"the line '{line[:80]}'", "SHA256  NAME lines", "restore or remove it"
            )
        checksums[name] = digest
    return checksums

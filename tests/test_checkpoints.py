"""Checkpoints on disk: every damage is seen before training starts, and nothing is half-written."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import supmim_scale
from supmim_scale.engine.state import Piece
from supmim_scale.errors import UserError
from supmim_scale.runs import checkpoints
from supmim_scale.runs.checkpoints import Checkpoint, PieceReader, newest_whole

RNG = np.random.default_rng(0)


def write(folder, steps_done, ranks=2):
    """A checkpoint of two parameters of 10 and 7 values, cut over the ranks."""
    part = checkpoints.begin(folder, steps_done, 1000)
    files = []
    for rank in range(ranks):
        pieces = []
        for name, count in (("a", 10), ("b", 7)):
            whole = torch.arange(float(count)) + steps_done
            share = -(-count // ranks)
            own = whole[rank * share : (rank + 1) * share].clone()
            if len(own):
                pieces.append(Piece(name, "weight", rank * share, own))
        path = part / checkpoints.rank_file(rank, ranks)
        files.append(checkpoints.write_pieces(path, pieces))
    return checkpoints.commit(part, files, {"steps_done": steps_done})


@pytest.fixture
def folder(tmp_path):
    for steps_done in (10, 20):
        write(tmp_path, steps_done)
    return tmp_path


def test_the_newest_is_taken_and_latest_names_it(folder):
    found, faults = newest_whole(folder)
    assert (found.steps_done, faults) == (20, [])
    assert (folder / "latest").read_text() == "step-00000020\n"


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_values_are_read_by_range_whoever_wrote_them(tmp_path, ranks):
    write(tmp_path, 0, ranks)
    read = PieceReader(newest_whole(tmp_path)[0])
    for start in range(10):
        for stop in range(start + 1, 11):
            expected = torch.arange(float(start), float(stop))
            assert torch.equal(read("a", "weight", start, stop - start), expected)
    with pytest.raises(UserError, match="nothing; expected values 0 to 3"):
        read("c", "weight", 0, 3)
    with pytest.raises(UserError, match="2 of 4 values"):
        read("a", "weight", 8, 4)


FILES = ["rank-00000-of-00002.safetensors", "rank-00001-of-00002.safetensors", "checkpoint.json"]


def damages():
    """(name, what it does to the newest checkpoint's folder)."""
    for name in FILES:
        for number in range(8):
            yield (
                f"cut {name} {number}",
                lambda path, name=name, n=number: os.truncate(
                    path / name, n * (path / name).stat().st_size // 8
                ),
            )
        for number in range(10):
            yield f"flip {name} {number}", lambda path, name=name: flip(path / name)
        yield f"delete {name}", lambda path, name=name: (path / name).unlink()
        yield (
            f"zeros {name}",
            lambda path, name=name: (path / name).write_bytes(bytes((path / name).stat().st_size)),
        )
        yield (
            f"longer {name}",
            lambda path, name=name: (path / name).write_bytes((path / name).read_bytes() + b"\0"),
        )
        yield (
            f"of another {name}",
            lambda path, name=name: shutil.copy(path.parent / "step-00000010" / name, path / name),
        )
        yield (
            f"a folder {name}",
            lambda path, name=name: ((path / name).unlink(), (path / name).mkdir()),
        )
    yield "empty folder", lambda path: (shutil.rmtree(path), path.mkdir())
    yield "another step's name", lambda path: path.rename(path.with_name("step-00000030"))
    yield "manifest without files", lambda path: edit(path, files=[])
    yield "manifest of another format", lambda path: edit(path, format=99)
    yield (
        "manifest that leaves the folder",
        lambda path: edit(
            path, files=[{"name": "../step-00000010/rank-00000-of-00002.safetensors"}]
        ),
    )
    yield "a list for a manifest", lambda path: (path / "checkpoint.json").write_text("[]")


def flip(path):
    data = bytearray(path.read_bytes())
    data[int(RNG.integers(len(data)))] ^= 1 << int(RNG.integers(8))
    path.write_bytes(data)


def edit(path, **changes):
    """A manifest changed by hand, its own checksum left."""
    body = json.loads((path / "checkpoint.json").read_text()) | changes
    (path / "checkpoint.json").write_text(json.dumps(body))


@pytest.mark.parametrize("damage", [d for _, d in damages()], ids=[name for name, _ in damages()])
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_taken(folder, damage):
    damage(folder / "step-00000020")
    found, faults = newest_whole(folder)
    assert found.steps_done == 10
    assert len(faults) == 2  # the damage, and latest, which names the damaged one
    assert "step-000000" in faults[0]


def test_there_are_at_least_sixty_damages():
    assert sum(1 for _ in damages()) >= 60


@pytest.mark.parametrize(
    "text", ["", "step-00000999\n", "step-00000020.part\n", "../x\n", None, "\xff"]
)
def test_a_latest_that_names_no_checkpoint_is_told_and_not_followed(folder, text):
    (folder / "latest").unlink()
    if text is not None:
        (folder / "latest").write_text(text, encoding="latin-1")
    found, faults = newest_whole(folder)
    assert found.steps_done == 20
    assert "taking step-00000020" in faults[0]


def test_where_none_is_whole_the_run_does_not_start_anew(folder):
    for path in folder.glob("step-*"):
        flip(path / FILES[0])
    with pytest.raises(UserError, match="expected a whole checkpoint"):
        newest_whole(folder)


def test_one_that_was_being_written_is_never_taken(folder):
    part = checkpoints.begin(folder, 30, 1000)
    checkpoints.write_pieces(part / FILES[0], [Piece("a", "weight", 0, torch.ones(3))])
    assert newest_whole(folder)[0].steps_done == 20
    assert checkpoints.begin(folder, 30, 1000) == part  # and is begun anew


def test_a_checkpoint_of_another_run_is_taken_over_whole(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "checkpoints"
    other.mkdir()
    assert checkpoints.newest_steps(other) is None
    checkpoints.adopt(other, folder / "step-00000010")
    found, faults = newest_whole(other)
    assert (found.steps_done, faults) == (10, [])
    assert checkpoints.newest_steps(other) == 10
    assert checkpoints.newest_steps(folder) == 20
    name = FILES[0]
    assert (other / "step-00000010" / name).samefile(folder / "step-00000010" / name)
    assert [path.name for path in other.iterdir() if path.suffix == ".part"] == []


def test_old_ones_go_and_multiples_stay(tmp_path):
    for steps_done in range(10, 80, 10):
        write(tmp_path, steps_done)
        checkpoints.prune(tmp_path, keep_last=2, keep_every=30)
    names = sorted(path.name for path in tmp_path.glob("step-*"))
    assert names == [f"step-{n:08d}" for n in (30, 60, 70)]


def test_too_little_room_is_told_before_anything_is_written(tmp_path):
    with pytest.raises(OSError, match="needed"):
        checkpoints.begin(tmp_path, 10, 2**60)


def test_nothing_is_unpickled():
    """No module of the package imports pickle or calls torch.load."""
    package = Path(supmim_scale.__file__).parent
    for path in package.rglob("*.py"):
        text = path.read_text()
        assert "torch.load(" not in text, path
        assert "import pickle" not in text, path


def test_a_manifest_is_read_back(folder):
    found = checkpoints.read_manifest(folder / "step-00000010")
    assert isinstance(found, Checkpoint)
    assert found.files == tuple(FILES[:2])


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs wants root")
def test_a_full_disk_leaves_what_is_on_it_whole(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("no right to mount")
    try:
        write(tmp_path, 10)
        part = checkpoints.begin(tmp_path, 20, 1000)
        with pytest.raises(Exception, match=r"No space|os error 28|failed"):
            checkpoints.write_pieces(
                part / FILES[0], [Piece("a", "weight", 0, torch.ones(100_000))]
            )
        assert newest_whole(tmp_path)[0].steps_done == 10
    finally:
        subprocess.run(["umount", tmp_path], check=True)

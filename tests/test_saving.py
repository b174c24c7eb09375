"""Saving over ranks: a checkpoint gets its name when every rank has written, or not at all."""

import os
import pathlib
import re
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from eval_fixture import ALONE
from thread_ranks import on_ranks

from supmim_scale.config.running import CheckpointConfig
from supmim_scale.engine.state import Piece
from supmim_scale.errors import UserError
from supmim_scale.models.weights import save_weights
from supmim_scale.runs import checkpoints
from supmim_scale.runs.checkpoints import PieceReader, newest_whole
from supmim_scale.training.saver import Saver


def saver_of(folder, world, *, in_background=False, on_failure="stop", keep_last=2):
    checkpoint = CheckpointConfig(
        in_background=in_background, on_failure=on_failure, keep_last=keep_last
    )
    return Saver(folder, world, checkpoint)


def engine_of(rank, value=1.0):
    return SimpleNamespace(pieces=lambda: [Piece("a", "weight", 4 * rank, torch.full((4,), value))])


@pytest.fixture
def full_disk(monkeypatch):
    """The files of one rank cannot be written, for as long as `full_disk["rank"]` names it."""
    broken, write = {"rank": 1}, checkpoints.write_pieces

    def write_pieces(path, pieces):
        if broken["rank"] is not None and f"rank-{broken['rank']:05d}" in path.name:
            raise OSError("No space left on device")
        return write(path, pieces)

    monkeypatch.setattr(checkpoints, "write_pieces", write_pieces)
    return broken


@pytest.mark.parametrize("in_background", [False, True])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_what_one_rank_cannot_write_ends_the_run_on_every_rank(
    tmp_path, full_disk, rank, in_background
):
    full_disk["rank"] = rank

    def work(world):
        saver = saver_of(tmp_path, world, in_background=in_background)
        saver.save(engine_of(world.rank), {"steps_done": 10})
        saver.finish()

    for error in on_ranks(3, work):
        assert isinstance(error, UserError)
        assert f"rank {rank}: No space left on device, after step 10" in str(error)
    assert not (tmp_path / "latest").exists()
    assert newest_whole(tmp_path) == (None, [])


def test_where_the_recipe_goes_on_the_next_checkpoint_is_whole_again(tmp_path, full_disk, capsys):
    def work(world):
        saver = saver_of(tmp_path, world, on_failure="continue")
        saver.save(engine_of(world.rank), {"steps_done": 10})
        first = saver.saved_step
        world.gather(None)
        full_disk["rank"] = None
        saver.save(engine_of(world.rank, 2.0), {"steps_done": 20})
        return first, saver.saved_step

    assert on_ranks(2, work) == [(None, 20)] * 2
    said = capsys.readouterr().out
    assert said.count("no checkpoint after step 10: rank 1: No space left") == 1
    assert [path.name for path in tmp_path.glob("step-*") if path.suffix != ".part"] == [
        "step-00000020"
    ]
    read = PieceReader(newest_whole(tmp_path)[0])
    assert read("a", "weight", 0, 8).tolist() == [2.0] * 8


def test_a_checkpoint_written_behind_the_step_is_named_once_all_ranks_have_written(
    tmp_path, monkeypatch
):
    held, write = threading.Event(), checkpoints.write_pieces

    def slowly(path, pieces):
        if "rank-00001" in path.name:
            assert held.wait(20)
        return write(path, pieces)

    monkeypatch.setattr(checkpoints, "write_pieces", slowly)

    def work(world):
        saver = saver_of(tmp_path, world, in_background=True)
        saver.save(engine_of(world.rank), {"steps_done": 10})
        saver.poll()
        before = saver.saved_step, (tmp_path / "latest").exists()
        world.gather(None)
        held.set()
        for _ in range(1000):  # steps of the loop, which do not wait
            saver.poll()
            if saver.saved_step:
                break
            time.sleep(0.01)
        return *before, saver.saved_step

    assert on_ranks(2, work) == [(None, False, 10)] * 2


def test_the_room_asked_for_is_that_of_all_ranks(tmp_path, monkeypatch):
    asked, begin = [], checkpoints.begin

    def noted(folder, steps_done, num_bytes):
        asked.append(num_bytes)
        return begin(folder, steps_done, num_bytes)

    monkeypatch.setattr(checkpoints, "begin", noted)
    on_ranks(
        3, lambda world: saver_of(tmp_path, world).save(engine_of(world.rank), {"steps_done": 1})
    )
    assert asked == [3 * 4 * 4]


@pytest.fixture
def disk_calls(monkeypatch):
    """Names of the calls that put something on disk for good, with what they were called on."""
    calls = []

    def name_of(path):
        """Without what keeps two writers apart."""
        return re.sub(r"\.[0-9a-f]{8}\.part$", ".part", pathlib.Path(path).name)

    def fsync(handle, real=os.fsync):
        path = pathlib.Path(os.readlink(f"/proc/self/fd/{handle}"))
        size = path.stat().st_size if path.is_file() else None
        calls.append(("fsync", name_of(path)))
        real(handle)
        if size is not None:
            calls[-1] = ("fsync", name_of(path), size)

    def renaming(kind, real):
        def rename(source, target, **more):
            calls.append((kind, name_of(source), name_of(target)))
            return real(source, target, **more)

        return rename

    monkeypatch.setattr(os, "fsync", fsync)
    for kind in ("rename", "replace"):
        own = renaming("rename", getattr(os, kind))
        monkeypatch.setattr(os, kind, own)
        # pathlib of Python 3.10 holds os.rename itself.
        monkeypatch.setattr(
            pathlib.Path,
            kind,
            lambda path, target, own=own: (own(path, target), pathlib.Path(target))[1],
        )
    return calls


def test_a_checkpoint_is_on_disk_before_it_has_its_name_and_has_it_before_latest_says_so(
    tmp_path, disk_calls
):
    """Each file whole, then the names in the folder, then the folder's name, then `latest`."""
    folder = tmp_path / "checkpoints"
    part = checkpoints.begin(folder, 10, 100)
    files = []
    for rank in range(2):
        path = part / checkpoints.rank_file(rank, 2)
        files.append(checkpoints.write_pieces(path, engine_of(rank).pieces()))
    final = checkpoints.commit(part, files, {"steps_done": 10})
    sizes = {path.name: path.stat().st_size for path in final.iterdir()}
    first, second = (checkpoints.rank_file(rank, 2) for rank in range(2))
    latest = len("step-00000010\n")
    assert disk_calls == [
        ("fsync", first, sizes[first]),
        ("fsync", second, sizes[second]),
        ("fsync", "checkpoint.json.part", sizes["checkpoint.json"]),
        ("rename", "checkpoint.json.part", "checkpoint.json"),
        ("fsync", "step-00000010.part"),
        ("rename", "step-00000010.part", "step-00000010"),
        ("fsync", "checkpoints"),
        ("fsync", "latest.part", latest),
        ("rename", "latest.part", "latest"),
        ("fsync", "checkpoints"),
    ]
    assert (folder / "latest").read_text() == "step-00000010\n"


def test_another_try_at_a_step_moves_the_first_out_of_the_way_and_never_removes_it(
    tmp_path, disk_calls
):
    for _ in range(2):
        saver = saver_of(tmp_path, ALONE)
        saver.save(engine_of(0), {"steps_done": 10})
    renamed = [call[1:] for call in disk_calls if call[0] == "rename"]
    assert [call for call in renamed if call[0].startswith("step-")][1:] == [
        ("step-00000010", "step-00000010.damaged"),
        ("step-00000010.part", "step-00000010"),
    ]
    assert newest_whole(tmp_path)[0].steps_done == 10


def test_weights_are_on_disk_before_they_have_their_name(tmp_path, disk_calls):
    path = tmp_path / "step-1.safetensors"
    save_weights({"a": torch.ones(3)}, path, {})
    part = "step-1.safetensors.part"
    assert disk_calls == [
        ("fsync", part, path.stat().st_size),
        ("rename", part, path.name),
        ("fsync", tmp_path.name),
    ]


def test_what_is_pruned_loses_its_name_before_its_files(tmp_path, disk_calls):
    for steps_done in (10, 20, 30):
        saver_of(tmp_path, ALONE, keep_last=1).save(engine_of(0), {"steps_done": steps_done})
    assert ("rename", "step-00000010", "step-00000010.part") in disk_calls
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000030"]

"""The loop in this process, in plain PyTorch: roll-backs, skipped steps and the schedule."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SMALL
from eval_fixture import ALONE
from PIL import Image

from supmim_scale.build.check import check_recipe
from supmim_scale.config import load_config
from supmim_scale.data.order import SampleOrder
from supmim_scale.errors import RankError, UserError
from supmim_scale.launch.signals import Stopper
from supmim_scale.launch.world import World
from supmim_scale.models.optim import lr_factor_at
from supmim_scale.models.weights import read_weights
from supmim_scale.runs.checkpoints import newest_whole
from supmim_scale.training.build import _record_ds_config, build_run
from supmim_scale.training.loop import _rolls_back, _state, train

BATCH, SAMPLES, SHARDS = 8, 96, 3
RECIPE = [
    *SMALL,
    "engine.kind=plain",
    "mim.weight=0",
    "log.every=1",
    "log.images_every=0",
    "optim.warmup_steps=3",
    "optim.steps=12",
    "checkpoint.every=2",
    "checkpoint.in_background=false",
]


@pytest.fixture
def started(shards, tmp_path):
    """`started(*overrides) -> Run` of one folder; the samples that its loop was given, as
    (epoch, id), pile up in `run.shown`."""
    runs = []

    def end():
        while runs:
            run = runs.pop()
            run.held.close()
            run.batches.close()

    def start(*overrides, folder="run"):
        end()
        config = load_config("smoke", [*RECIPE, f"input.root={shards}", *overrides])
        run = build_run(config, ALONE, tmp_path / folder)
        runs.append(run)
        run.shown, taken = [], run.batches

        def noted():
            for batch in taken:
                run.shown += zip(batch.epochs_B.tolist(), batch.ids_B.tolist(), strict=True)
                yield batch

        run.batches = noted()
        return run

    yield start
    end()


def rows(run, kind="train"):
    found = [json.loads(line) for line in (run.run_dir / "log.jsonl").read_text().splitlines()]
    return [row for row in found if row["kind"] == kind]


def spikes_at(run, *logged):
    """The logged losses with these numbers are taken for spikes."""
    numbers = iter(range(1000))
    run.watch.is_spike = lambda loss: next(numbers) in logged


def expected_order(count):
    sizes = np.full(SHARDS, SAMPLES // SHARDS)
    order = SampleOrder(sizes, seed=0, lanes=load_config("smoke", []).data.shuffle_shards)
    epochs, ids = order.at(0, count)
    return sorted(zip(epochs.tolist(), ids.tolist(), strict=True))


def test_after_roll_backs_no_sample_comes_again_nor_is_one_left_out_in_this_start_or_the_next(
    started,
):
    """Steps 1 to 5, back to 4, 5 to 7, back to 6, 7 and 8; a second start goes on to the 12th."""
    run, stopper = started("watch.on_spike=rollback"), Stopper()
    spikes_at(run, 4, 7)
    run.saver.poll = lambda: setattr(stopper, "reason", "told" if len(run.shown) >= 9 * 8 else "")
    train(run, stopper)
    assert [row["steps_done"] for row in rows(run)] == [1, 2, 3, 4, 5, 5, 6, 7, 7, 8]
    assert run.engine.applied_steps == 8  # what was done after a checkpoint is forgotten
    assert sorted(run.shown) == expected_order(10 * BATCH)

    found, _ = newest_whole(run.saver.folder)
    assert (found.steps_done, found.facts["reader"]["samples_seen"]) == (8, 10 * BATCH)
    (before,) = (
        json.loads((path / "checkpoint.json").read_text())
        for path in run.saver.folder.glob("step-00000006")
    )
    assert before["reader"]["samples_seen"] == (5 + 2) * BATCH

    again = started("watch.on_spike=rollback")
    assert again.began == (8, 10 * BATCH)
    train(again, Stopper())
    assert [(row["steps_done"], row["does"]) for row in rows(run, "spike")] == [
        (5, "rollback"),
        (7, "rollback"),
    ]
    assert again.engine.applied_steps == 12
    assert sorted(run.shown + again.shown) == expected_order((10 + 4) * BATCH)
    assert again.position(12).samples_seen == 14 * BATCH


def test_a_roll_back_gives_the_checkpoints_weights_and_moments(started):
    run = started("watch.on_spike=rollback", "optim.steps=6")
    kept = {}

    def keep(steps_done, sums):
        type(run).save(run, steps_done, sums)
        kept[steps_done] = {(p.name, p.kind): p.values.clone() for p in run.engine.pieces()}

    run.save = keep
    train(run, Stopper())
    assert run.roll_back(6) == 6
    for _ in range(2):
        run.engine.forward_backward(*run.step_arguments(next(run.batches))[0])
        run.engine.apply(1e-2)
    assert run.roll_back(8) == 6
    assert run.position(6).samples_seen == 8 * BATCH  # as the loop counts them
    pieces = list(run.engine.pieces())
    assert all(torch.equal(p.values, kept[6][p.name, p.kind]) for p in pieces)


def test_a_run_rolls_back_as_often_as_it_may_and_only_where_it_has_a_checkpoint(started):
    run = started("watch.on_spike=rollback", "watch.rollbacks=1")
    with pytest.raises(UserError, match=r"watch\.on_spike: found no checkpoint to roll back to"):
        run.roll_back(1)
    assert _rolls_back(run, {"loss": 3.0}, 5, None)
    with pytest.raises(UserError, match=r"loss: found 3\.0000 after step 7.*after 1 rollbacks"):
        _rolls_back(run, {"loss": 3.0}, 7, None)
    stopping = started("watch.on_spike=stop", folder="stopping")
    with pytest.raises(UserError, match="after 0 rollbacks"):
        _rolls_back(stopping, {"loss": 3.0}, 5, None)
    assert not _rolls_back(started("watch.on_spike=log", folder="log"), {"loss": 3.0}, 5, None)


def test_what_is_due_is_measured_and_written_at_its_steps(started):
    """Top-1 every fourth step, k-NN every third, weights every second; and after the last."""
    run = started(
        "optim.steps=8",
        "log.eval_every=4",
        "log.knn_every=3",
        "log.knn_images=24",
        "checkpoint.weights_every=2",
        "checkpoint.every=3",
        "checkpoint.keep_last=9",
        "log.every=2",
        "log.best=top1",
        "mim.weight=1.0",
        "log.images_every=4",
    )
    figures = train(run, Stopper())
    assert [row["steps_done"] for row in rows(run)] == [2, 4, 6, 8]
    assert all(0 < row["data_wait"] < 1 for row in rows(run))
    for row in rows(run):
        assert row["loss"] == pytest.approx(row["class_loss"] + row["mim_loss"], rel=1e-5)
        assert 0 < row["mim_loss"] < 2 * np.log(16)  # of sixteen codes
    assert (run.run_dir / "reconstruction.png").exists()
    assert [row["steps_done"] for row in rows(run, "eval")] == [4, 8]
    assert [(row["images"], row["left_out"]) for row in rows(run, "eval")] == [(33, 0)] * 2
    assert [row["steps_done"] for row in rows(run, "knn")] == [3, 6, 8]
    saved = sorted(path.name for path in (run.run_dir / "weights").glob("step-*"))
    steps = [2, 3, 4, 6, 8]
    assert saved == sorted(f"step-{n:08d}{x}.safetensors" for n in steps for x in ("", "-ema"))
    for name in ("raw", "ema"):
        path = run.run_dir / f"weights/step-00000008{'-ema' if name == 'ema' else ''}.safetensors"
        assert read_weights(path)[1]["weights"] == name
    kept = sorted(path.name for path in run.saver.folder.glob("step-*"))
    assert kept == [f"step-{n:08d}" for n in (3, 6, 8)]
    last = rows(run, "eval")[-1]
    assert (figures["eval_top1"], figures["steps_done"]) == (last["top1"], 8)
    assert figures["eval_knn_top1"] == rows(run, "knn")[-1]["knn_top1"]
    assert figures["mean_images_per_s"] > 0
    best = max(rows(run, "eval"), key=lambda row: row["top1"])
    kept = json.loads((run.run_dir / "best.json").read_text())
    assert (kept["value"], kept["steps_done"]) == (best["top1"], best["steps_done"])


def test_the_checkpoint_before_the_cool_down_is_kept_though_newer_ones_come(started):
    run = started(
        "optim.schedule=rsqrt",
        "optim.steps=8",
        "optim.cooldown_steps=3",
        "checkpoint.before_cooldown=true",
        "checkpoint.every=6",
        "checkpoint.keep_last=1",
    )
    train(run, Stopper())
    kept = {path.name for path in run.saver.folder.glob("step-*")}
    assert kept == {"step-00000005", "step-00000008"}
    assert rows(run)[-1]["lr"] == pytest.approx(2e-3 / 3)  # a third of the cool-down is left


def test_a_log_line_averages_the_steps_before_a_stop_too(started):
    """Two steps, then a second start: the line of the third step is that of one start."""
    whole = started("log.every=3", "optim.steps=3", folder="whole")
    train(whole, Stopper())
    run, stopper = started("log.every=3", "optim.steps=3", "checkpoint.every=1"), Stopper()
    run.saver.poll = lambda: setattr(stopper, "reason", "told" if len(run.shown) >= 8 else "")
    train(run, stopper)
    assert rows(run) == []
    again = started("log.every=3", "optim.steps=3", "checkpoint.every=1")
    train(again, Stopper())
    ((ours,), (theirs,)) = rows(again), rows(whole)
    for name in ("loss", "class_loss", "top1", "grad_norm", "lr"):
        assert ours[name] == theirs[name], name


def test_before_anything_is_opened_the_deepspeed_file_is_read(tmp_path):
    config = load_config("smoke", [*SMALL, f"input.root={tmp_path}", "engine.ds_config=none.json"])
    with pytest.raises(UserError, match=r"engine\.ds_config"):
        check_recipe(config, 1)


def test_classes_that_train_and_val_number_apart_are_refused(tmp_path):
    for place in ("train/cat", "train/dog", "val/cat", "val/fox"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(tmp_path / place / "x.jpg")
    config = load_config("smoke", [*SMALL, f"input.root={tmp_path}", "data.reader=folder"])
    with pytest.raises(UserError, match="class folder 'dog' exists only in"):
        check_recipe(config, 1)


def test_bad_samples_of_all_ranks_together_are_held_against_the_rate(started):
    """Three of 96 are more than 3 %: one that this rank has met, and two others of another's."""
    run = started("input.bad_samples=skip", "input.bad_rate=0.03")
    run.quarantine.add(run.train_set.defect(1, "bad"))
    assert _state(run, 0.1)["bad_samples"] == 1

    class Second(World):
        def gather(self, value):
            other = {(run.train_set.defect(i, "").source, f"{i}") for i in others}
            return [value, other] if isinstance(value, set) else [value]

    run.world, others = Second(0, 0, 1, torch.device("cpu"), "none"), [2]
    assert _state(run, 0.1)["bad_samples"] == 2
    others = [2, 3]
    with pytest.raises(RankError, match="3 bad samples"):
        _state(run, 0.1)


def test_the_deepspeed_file_in_use_is_kept_beside_the_run(tmp_path):
    used = {"zero_optimization": {"stage": 2}}
    _record_ds_config(SimpleNamespace(ds_config=used), tmp_path, ALONE)
    assert json.loads((tmp_path / "ds_config.json").read_text()) == used


def poisoned(run, *steps):
    """The images of these micro-batches are not numbers."""
    given, numbers = run.step_arguments, iter(range(1000))

    def arguments(batch):
        (images, *rest), masks = given(batch)
        if next(numbers) in steps:
            images = torch.full_like(images, float("nan"))
        return (images, *rest), masks

    run.step_arguments = arguments


def test_a_skipped_step_does_not_move_the_schedule_on_and_skips_apart_do_not_add_up(started):
    run = started("watch.skipped_in_a_row=1", "optim.steps=8", "optim.lr=0.5")
    poisoned(run, 1, 3, 4 + 1)
    rates, apply = [], run.engine.apply
    run.engine.apply = lambda lr: (rates.append(lr), apply(lr))
    train(run, Stopper())
    applied = [0, 1, 1, 2, 2, 3, 3, 4]
    factors = [lr_factor_at(step, 8, run.config.optim) for step in applied]
    assert len(set(factors)) == 4  # 1 at the end of warm-up and at the step after it
    assert rates == pytest.approx([0.5 * factor for factor in factors])
    assert [row["lr"] for row in rows(run)] == rates
    assert [row["in_a_row"] for row in rows(run, "skipped_step")] == [1, 1, 1]
    assert [row["skipped_steps"] for row in rows(run)] == [0, 1, 1, 2, 2, 3, 3, 3]


def test_drop_path_is_drawn_from_the_seed_the_step_the_micro_batch_and_the_rank(started):
    """A rank 1 that is alone stands for one of several: nothing is said between them."""

    def seeds(folder, *overrides, rank=0):
        run = started("engine.micro_batch=4", "optim.steps=4", *overrides, folder=folder)
        found, forward = [], run.engine.forward_backward

        def noted(*arguments):
            found.append(torch.initial_seed())
            return forward(*arguments)

        run.engine.forward_backward = noted
        run.world, run.save = World(rank, rank, 1, torch.device("cpu"), "none"), lambda *_: None
        stopper = Stopper()
        run.saver.poll = lambda: setattr(stopper, "reason", "told")  # by the end of the next step
        train(run, stopper)
        return found

    first = seeds("a")
    assert len(set(first)) == 4  # two steps of two micro-batches
    assert seeds("b") == first
    assert not set(first) & set(seeds("c", rank=1))
    assert not set(first) & set(seeds("d", "seed=1"))

"""The commands as users type them, on real JPEG shards."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import AUGMENTED, ROOT, SMALL, assert_refused, command, command_of_its_own
from PIL import Image

from supmim_scale.build.model import recipe_encoder
from supmim_scale.config import load_config
from supmim_scale.data.dataset import open_dataset
from supmim_scale.data.readers import SampleLayout
from supmim_scale.data.shards import write_shard
from supmim_scale.models.weights import load_encoder
from supmim_scale.runs.weights import last_weights

PLAIN_TIMM = """
import sys, torch
try:  # a CPU torch beside PyPI's torchvision: timm cannot be imported there without these two
    import importlib.util, glob
    folder = importlib.util.find_spec("torchvision").submodule_search_locations[0]
    torch.ops.load_library(glob.glob(folder + "/_C*")[0])
except OSError:
    ops = torch.library.Library("torchvision", "DEF")
    ops.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    ops.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import timm
model = timm.create_model("local-dir:" + sys.argv[1], pretrained=True).eval()
assert not any(name.startswith("supmim_scale") for name in sys.modules)
with torch.no_grad():
    torch.save(model(torch.load(sys.argv[2])), sys.argv[3])
"""


@pytest.fixture(scope="module")
def run_dir(shards, tmp_path_factory):
    """A short ZeRO-3 run on two ranks with recomputation, started as a user does."""
    folder = tmp_path_factory.mktemp("runs") / "zero3"
    command_of_its_own(
        "train",
        "smoke",
        "--ranks",
        2,
        *SMALL,
        *AUGMENTED,
        f"input.root={shards}",
        f"log.run_dir={folder}",
        "log.eval_every=2",
    )
    return folder


def rows(folder, kind):
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def test_a_run_leaves_what_is_promised(run_dir):
    names = {path.name for path in run_dir.iterdir()}
    assert names >= {
        "recipe.yaml",
        "ds_config.json",
        "run.json",
        "log.jsonl",
        "tensorboard",
        "codebook.safetensors",
        "reconstruction.png",
        "weights",
    }
    facts = json.loads((run_dir / "run.json").read_text())
    assert facts["versions"]["torch"] == torch.__version__
    assert len(facts["digest"]) == 12
    used = json.loads((run_dir / "ds_config.json").read_text())
    assert used["zero_optimization"]["stage"] == 3
    micro, accumulated = (
        used["train_micro_batch_size_per_gpu"],
        used["gradient_accumulation_steps"],
    )
    assert micro * accumulated * 2 == 8
    with Image.open(run_dir / "reconstruction.png") as picture:
        width, height = picture.size
    assert width >= 4 * 128
    assert height >= 3 * 128


def test_a_log_step_has_every_figure(run_dir):
    training = rows(run_dir, "train")
    assert [row["steps_done"] for row in training] == [2, 4]
    assert training[0].keys() >= {
        "loss",
        "class_loss",
        "mim_loss",
        "top1",
        "lr",
        "grad_norm",
        "images_per_s",
        "data_wait",
        "peak_memory_bytes",
        "eta_s",
        "skipped_steps",
        "step_time_s",
        "bad_samples",
    }
    for row in training:
        assert row["loss"] == pytest.approx(row["class_loss"] + row["mim_loss"], rel=1e-5)
    assert [row["images"] for row in rows(run_dir, "eval")] == [33, 33]


def test_tensorboard_has_the_curves_and_the_picture(run_dir):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= {"train/loss", "train/lr", "eval/top1"}
    assert events.Tags()["images"] == ["reconstruction"]
    curve = [event.value for event in events.Scalars("train/loss")]
    assert curve == pytest.approx([row["loss"] for row in rows(run_dir, "train")], rel=1e-6)


def test_sharded_training_of_real_jpegs_equals_plain_pytorch(run_dir, shards, tmp_path):
    """Order, crops, augmentation, mixing, masks and codebook are the same on one rank and two."""
    command(
        "train",
        "smoke",
        *SMALL,
        *AUGMENTED,
        f"input.root={shards}",
        f"log.run_dir={tmp_path}/plain",
        "engine.kind=plain",
        "engine.activation_checkpointing=none",
    )
    sharded, plain = rows(run_dir, "train"), rows(tmp_path / "plain", "train")
    for a, b in zip(sharded, plain, strict=True):
        for name in ("loss", "class_loss", "mim_loss", "grad_norm"):
            assert a[name] == pytest.approx(b[name], abs=1e-5)
        assert a["top1"] == b["top1"]


def test_eval_counts_every_image_once_on_one_and_three_ranks(run_dir, shards):
    root = f"input.root={shards}"
    alone = json.loads(command("eval", run_dir, root).stdout)
    assert alone["images"] == 33
    assert alone["weights"] == "ema"
    assert alone["top1"] == rows(run_dir, "eval")[-1]["top1"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=3",
            "-m",
            "supmim_scale",
            "eval",
            run_dir,
            root,
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("{"))
    assert json.loads(line) == alone


def test_plain_timm_opens_an_export_and_gives_the_same_logits(run_dir, tmp_path):
    """No overhead at inference: nothing of ours is needed, or left, after training."""
    command("export", run_dir, tmp_path / "export")
    images = torch.randn(3, 3, 48, 48)
    torch.save(images, tmp_path / "images.pt")
    subprocess.run(
        [
            sys.executable,
            "-c",
            PLAIN_TIMM,
            tmp_path / "export",
            tmp_path / "images.pt",
            tmp_path / "logits.pt",
        ],
        check=True,
        cwd=tmp_path,
    )
    encoder = recipe_encoder(load_config(str(run_dir / "recipe.yaml"))).eval()
    load_encoder(encoder, last_weights(run_dir))
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "logits.pt"), encoder(images))


def test_deepspeeds_launcher_starts_a_run(run_dir, shards, tmp_path):
    done = subprocess.run(
        [
            Path(sys.executable).parent / "deepspeed",
            "--num_accelerators",
            "2",
            "--module",
            "supmim_scale",
            "train",
            "smoke",
            *SMALL,
            *AUGMENTED,
            f"input.root={shards}",
            f"log.run_dir={tmp_path}/run",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "DS_ACCELERATOR": "cuda" if torch.cuda.is_available() else "cpu",
        },
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert rows(tmp_path / "run", "train")[-1]["loss"] == rows(run_dir, "train")[-1]["loss"]


def test_a_vqgan_gives_the_targets_and_the_pictures(shards, tmp_path):
    from diffusers import VQModel

    torch.manual_seed(0)  # of its weights: some draws use few of the codes, and are learnt at once
    VQModel(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        num_vq_embeddings=32,
        vq_embed_dim=4,
        latent_channels=4,
        norm_num_groups=4,
    ).save_pretrained(tmp_path / "vqgan", safe_serialization=True)
    options = ["mim.target=vqgan", f"mim.vqgan={tmp_path}/vqgan", "engine.kind=plain"]
    command(
        "train", "smoke", *SMALL, *options, f"input.root={shards}", f"log.run_dir={tmp_path}/run"
    )
    assert rows(tmp_path / "run", "train")[0]["mim_loss"] == pytest.approx(math.log(32), rel=0.1)
    assert (tmp_path / "run/reconstruction.png").exists()
    done = command("check", "smoke", "mim.target=vqgan", "mim.vqgan=nowhere", check=False)
    assert_refused(done, "mim.vqgan", "config.json")


def test_multi_label_shards_train_with_the_sigmoid_loss(tmp_path, shards):
    """And are refused with softmax."""
    train = open_dataset(shards, "train", SampleLayout())
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        samples = (
            (f"{i}", train.read(i).tobytes(), "jpg", f"{i % 5} {i % 7 + 5}") for i in range(16)
        )
        write_shard(tmp_path / split / "x.tar", samples)
    root = f"input.root={tmp_path}"
    assert_refused(command("check", "smoke", root, check=False), "loss.kind=sigmoid")
    command(
        "train",
        "smoke",
        *SMALL,
        root,
        "loss.kind=sigmoid",
        "engine.kind=plain",
        "mim.target=pixel",
        f"log.run_dir={tmp_path}/run",
    )
    # 16 sigmoids at the prior 1/16, two labels: -2 log(1/16) - 14 log(15/16)
    first = rows(tmp_path / "run", "train")[0]["class_loss"]
    assert first == pytest.approx(2 * math.log(16) + 14 * math.log(16 / 15), rel=0.1)


def test_tfrecords_with_several_labels_train(tmp_path, shards):
    from tfrecord import TFRecordWriter

    train = open_dataset(shards, "train", SampleLayout())
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        writer = TFRecordWriter(str(tmp_path / split / "x.tfrecord"))
        for i in range(16):
            image, labels = train.read(i).tobytes(), [*range(i % 3), 5]
            writer.write({"image/encoded": (image, "byte"), "image/class/label": (labels, "int")})
        writer.close()
    command(
        "train",
        "smoke",
        *SMALL,
        f"input.root={tmp_path}",
        "data.reader=tfrecord",
        "loss.kind=sigmoid",
        "engine.kind=plain",
        f"log.run_dir={tmp_path}/run",
    )
    assert rows(tmp_path / "run", "eval")[-1]["images"] == 16


def test_a_set_without_labels_trains_masked_image_modelling_alone(tmp_path, shards):
    train = open_dataset(shards, "train", SampleLayout())
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        samples = ((f"{i}", train.read(i).tobytes(), "jpg", None) for i in range(16))
        write_shard(tmp_path / split / "x.tar", samples)
    root = f"input.root={tmp_path}"
    assert_refused(command("check", "smoke", root, check=False), "missing label")
    command(
        "train",
        "smoke",
        "--ranks",
        2,
        *SMALL,
        root,
        "loss.kind=none",
        f"log.run_dir={tmp_path}/run",
    )
    last = rows(tmp_path / "run", "train")[-1]
    assert last["class_loss"] == 0
    assert last["loss"] == pytest.approx(last["mim_loss"])


def with_bad_samples(shards, root, count):
    """The small set with the first images of a shard cut short."""
    shutil.copytree(shards, root, ignore=shutil.ignore_patterns("*.index"))
    train = open_dataset(shards, "train", SampleLayout())
    samples = []
    for i in range(32):
        data, (label,) = train.read(i).tobytes(), train.labels_of(i)
        samples.append((f"n{i}", data[: 300 if i < count else None], "jpg", str(label)))
    write_shard(root / "train/train-000000.tar", samples)


def test_bad_samples_are_skipped_counted_and_listed_on_two_ranks(tmp_path, shards):
    with_bad_samples(shards, tmp_path / "data", 3)
    root, skip = f"input.root={tmp_path / 'data'}", "input.bad_samples=skip"
    train = ["train", "smoke", "--ranks", 2, *SMALL, root, "optim.steps=12", "mim.target=pixel"]
    command(*train, skip, "input.bad_rate=0.05", f"log.run_dir={tmp_path}/run")
    assert rows(tmp_path / "run", "train")[-1]["bad_samples"] == 3
    listed = [
        json.loads(line)
        for path in (tmp_path / "run/quarantine").iterdir()
        for line in path.read_text().splitlines()
    ]
    assert {row["key"] for row in listed} == {"n0.jpg", "n1.jpg", "n2.jpg"}
    done = command(*train, skip, "input.bad_rate=0.02", f"log.run_dir={tmp_path}/more", check=False)
    assert done.returncode != 0
    assert "bad samples: train/train-000000.tar: n" in done.stderr
    assert "at most 0.02 of 96 samples" in done.stderr
    assert "Traceback" not in done.stderr


def test_report_compares_runs(run_dir):
    table = command("report", run_dir, run_dir).stdout
    for word in ("held-out top-1", "images/s", "peak memory", "reconstruction.png", "localhost"):
        assert word in table


def test_a_finished_run_is_not_overwritten_nor_gone_on_with_by_another_recipe(run_dir, shards):
    train = ["train", "smoke", *SMALL, f"input.root={shards}", f"log.run_dir={run_dir}"]
    before = (run_dir / "log.jsonl").read_bytes()
    assert_refused(command(*train, *AUGMENTED, check=False), "log.run_dir", "new folder")
    assert_refused(
        command(*train, check=False),
        "augment.kind 'none' (was 'three_augment')",
        "--allow-drift augment.kind",
    )
    assert (run_dir / "log.jsonl").read_bytes() == before


def test_mistakes_end_before_any_rank_starts(shards, tmp_path):
    done = command(
        "train",
        "smoke",
        "--ranks",
        2,
        *SMALL,
        f"input.root={shards}",
        "model.num_classes=3",
        f"log.run_dir={tmp_path}/run",
        check=False,
    )
    assert_refused(done, "model.num_classes=16")
    assert not (tmp_path / "run").exists()


def test_a_rank_that_fails_ends_the_job_at_once(shards, tmp_path):
    """A shard cut after it was indexed: no rank may wait for the one that found out."""
    shutil.copytree(shards, tmp_path / "cut")
    shard = tmp_path / "cut/train/train-000002.tar"
    size, stamp = shard.stat().st_size, shard.stat().st_mtime_ns
    command("check", "smoke", *SMALL, f"input.root={tmp_path}/cut")
    os.truncate(shard, 1024)
    os.truncate(shard, size)  # the same length and time, but the images are gone
    os.utime(shard, ns=(stamp, stamp))
    done = command(
        "train",
        "smoke",
        "--ranks",
        2,
        *SMALL,
        f"input.root={tmp_path}/cut",
        f"log.run_dir={tmp_path}/run",
        check=False,
        timeout=120,
    )
    assert done.returncode != 0
    assert "train/train-000002.tar: " in done.stderr
    assert not (tmp_path / "run/weights").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    assert_refused(command("eval", tmp_path, check=False), "no recipe.yaml")
    assert_refused(command("export", tmp_path, tmp_path / "out", check=False), "no recipe.yaml")
    assert_refused(command("report", tmp_path, check=False), "no log.jsonl")

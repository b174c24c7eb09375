"""`eval` as users type it: what it takes, what it refuses, and on several ranks."""

import json
from pathlib import Path

import pytest
import timm
import torch
from conftest import run_ranks
from eval_fixture import ALONE, write_run, write_set
from eval_worker import rows
from PIL import Image
from safetensors.torch import load_file, save_file

from supmim_scale.cli.main import main
from supmim_scale.data.dataset import open_dataset
from supmim_scale.data.readers import SampleLayout
from supmim_scale.evaluation.subject import Subject, open_subject
from supmim_scale.models.weights import read_weights, save_weights

WORKER = Path(__file__).with_name("eval_worker.py")
TINY = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 16,
}
NAME = "vit_tiny_patch16_224"
EXACT = (
    "top1",
    "top5",
    "images",
    "knn_top1",
    "knn_top5",
    "knn_plain10_top1",
    "recall_at_5",
    "few_shot1_top1",
    "probe_l2",
    "probe_top1",
    "segment_linear_images",
)


@pytest.fixture
def timm_folder(tmp_path):
    """A model as timm itself writes it."""
    torch.manual_seed(0)
    model = timm.create_model(NAME, **TINY).eval()
    torch.nn.init.normal_(model.head.weight)
    config = {
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "input_size": (3, 32, 32),
    }
    timm.models.save_for_hf(
        model, str(tmp_path / "model"), model_args=TINY, data_config=config, safe_serialization=True
    )
    return model, tmp_path / "model"


@pytest.mark.parametrize("ranks", [2, 3])
def test_figures_are_the_same_on_ranks_that_do_not_divide_the_set(ranks, run_dir, tmp_path):
    sets = ["val", "val/val-000000.tar", "val/val-000001.tar"]  # 33 and 32 images, and 1
    masks = write_set(tmp_path / "masks", "voc", count=4)
    run_ranks(WORKER, run_dir, tmp_path, masks, *sets, ranks=ranks)
    shared = json.loads((tmp_path / f"{ranks}.json").read_text())
    alone = rows(run_dir, tmp_path, masks, sets, ALONE)
    for one, many, images in zip(alone, shared, (33, 32, 1), strict=True):
        assert one["images"] == images
        for name in EXACT:
            assert many[name] == one[name], name
        for name in ("retrieval_map", "calibration_error", "nll"):
            assert many[name] == pytest.approx(one[name], abs=1e-6)
        assert many["segment_linear_miou"] == pytest.approx(one["segment_linear_miou"], abs=1e-3)


def test_a_run_gives_figures_pictures_and_curves(cli, run_dir):
    code, row, _ = cli("eval", run_dir, "--knn", "--knn-k", "7", "--reconstructions")
    assert code == 0
    assert json.loads((run_dir / "eval.json").read_text()) == row
    assert row["knn_k"] == 7
    assert row["train_images"] == 96
    for name in ("neighbours", "reconstruction"):
        with Image.open(run_dir / f"eval/{name}.png") as picture:
            assert min(picture.size) > 100
    assert list((run_dir / "eval/tensorboard").iterdir())
    kept = list((run_dir / "eval").glob("features-*.safetensors"))
    assert len(kept) == 1
    assert cli("eval", run_dir, "--knn", "--knn-k", "7")[1] == row  # from the features kept
    assert list((run_dir / "eval").glob("features-*.safetensors")) == kept
    weights = run_dir / "weights/step-00000004.safetensors"
    assert cli("eval", weights)[1]["top1"] == row["top1"]


def test_a_folder_of_timms_gives_timms_logits_and_so_does_its_file(timm_folder, monkeypatch):
    model, folder = timm_folder
    images_BCHW = torch.rand(3, 3, 32, 32)
    mean, std = (
        torch.tensor(model_mean).view(3, 1, 1)
        for model_mean in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    normalised_BCHW = (images_BCHW - mean) / std
    with torch.no_grad():
        expected = model(normalised_BCHW)
    for what, name in ((folder, None), (folder / "model.safetensors", None)):
        subject = open_subject(str(what), None, name, [])
        assert subject.view_settings(ALONE.device).spec.cubic
        subject.encoder.eval()
        given_BCHW = subject.prepared((images_BCHW - 0.5) / 0.5)
        assert (given_BCHW - normalised_BCHW).abs().max() <= 1e-6
        monkeypatch.setattr(Subject, "prepared", lambda _, images: images)
        with torch.no_grad():
            ours = subject.logits(subject.features(normalised_BCHW))
        monkeypatch.undo()
        assert (ours - expected).abs().max() <= 1e-6


def test_a_folder_of_timms_is_measured(timm_folder, shards, cli, tmp_path):
    _, folder = timm_folder
    code, row, _ = cli("eval", folder, f"input.root={shards}", "--knn", "--out", tmp_path / "out")
    assert code == 0
    assert row["images"] == 33
    assert row["mean"] == [0.485, 0.456, 0.406]
    assert (tmp_path / "out/eval.json").exists()


def test_a_file_needs_the_name_of_its_architecture(tmp_path, refused, cli, shards):
    model = timm.create_model(NAME, num_classes=16)
    path = tmp_path / "some.safetensors"
    save_file(model.state_dict(), path)
    refused(["eval", path], "--model NAME")
    refused(["eval", path, "--model", "vit_tiny_patch61_224"], "--model", "did you mean")
    refused(
        ["eval", path, "--model", "vit_small_patch16_224"],
        "some.safetensors: cls_token",
        "[1, 1, 192]",
        "[1, 1, 384]",
    )
    code, row, _ = cli(
        "eval",
        path,
        "--model",
        NAME,
        f"input.root={shards}",
        "data.val=val/val-000001.tar",
        "model.num_classes=16",
        "--out",
        tmp_path,
    )
    assert (code, row["images"]) == (0, 1)
    left = load_file(path)
    del left["blocks.3.attn.qkv.weight"]
    save_file(left, path)
    refused(["eval", path, "--model", NAME], "blocks.3.attn.qkv.weight", "no such tensor")


def test_wrong_checkpoints_are_one_clear_line(run_dir, timm_folder, shards, tmp_path, refused):
    _, folder = timm_folder
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    refused(["eval", folder, f"input.root={shards}"], "timm cannot open")
    (tmp_path / "text.safetensors").write_text("no tensors")
    refused(["eval", tmp_path / "text.safetensors", "--model", NAME], "a safetensors file")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled/config.json").write_text("{}")
    (tmp_path / "pickled/pytorch_model.bin").write_bytes(b"")
    refused(["eval", tmp_path / "pickled"], "no model.safetensors")
    other = write_run(tmp_path / "other", "model.width=48", f"input.root={shards}")
    refused(
        ["eval", run_dir, "--weights", other / "weights/step-00000004.safetensors"],
        "pos_embed",
        "32]",
        "48]",
    )
    refused(["eval", run_dir, "model.num_classes=17"], "head.weight", "[17, 32]")
    deeper = write_run(tmp_path / "deeper", "model.depth=3", f"input.root={shards}")
    refused(
        ["eval", run_dir, "--weights", deeper / "weights/step-00000004.safetensors"],
        "blocks.2.",
        "without a place",
    )
    refused(["eval", tmp_path / "nowhere/run"], "no such file or folder")
    refused(["eval", "vit_tinny_patch16_224"], "neither a path nor a timm name")


def test_every_option_reaches_the_ranks(monkeypatch):
    given = [
        "eval",
        "run",
        "a=1",
        "--weights",
        "w",
        "--model",
        "m",
        "--out",
        "o",
        "--knn",
        "--knn-k",
        "3",
        "--knn-temperature",
        "0.1",
        "--probe",
        "--probe-solver",
        "sgd",
        "--few-shot",
        "--calibration",
        "--robustness",
        "real",
        "x",
        "--robustness",
        "imagenet-a",
        "y",
        "--reconstructions",
        "--segment",
        "s",
        "--segment-finetune",
        "--segment-steps",
        "5",
        "--segment-classes",
        "4",
    ]
    started = []
    local = "supmim_scale.launch.local.launch"
    monkeypatch.setattr(local, lambda *words: started.append(words) or 0)
    assert main([*given, "--ranks", "2"]) == 0
    assert started == [(2, given)]


def test_wrong_sets_and_measures_that_cannot_be_are_one_clear_line(run_dir, shards, refused):
    refused(["eval", run_dir, "input.root=/nowhere"], "input.root")
    refused(["eval", run_dir, "--knn", "--knn-k", "97"], "--knn-k", "1 to 96")
    refused(["eval", run_dir, "--robustness", "imagenet-x", "x"], "--robustness", "imagenet-v2")
    refused(["eval", run_dir, "--robustness", "imagenet-v2", "/nowhere"], "no folder /nowhere")
    refused(["eval", run_dir, "--robustness", "imagenet-a", shards], "data.classes")


def test_a_model_without_a_head_is_measured_by_its_features(tmp_path, shards, refused, cli):
    model = timm.create_model(NAME, num_classes=0)
    path = tmp_path / "headless.safetensors"
    save_file(model.state_dict(), path)
    words = [
        "eval",
        path,
        "--model",
        NAME,
        f"input.root={shards}",
        "--out",
        tmp_path,
        "data.val=val/val-000001.tar",
        "data.train=val/val-000000.tar",
    ]
    refused(words, "without a head", "--knn")
    code, row, _ = cli(*words, "--knn")
    assert code == 0
    assert "top1" not in row
    assert 0 <= row["knn_top1"] <= 1


def test_whatever_cannot_be_is_refused_before_the_first_image(
    run_dir, shards, tmp_path, refused, monkeypatch
):
    def reads(*_):
        raise AssertionError("images were read")

    monkeypatch.setattr("supmim_scale.evaluation.sets.extract", reads)
    asked = ["--knn", "--probe", "--few-shot"]
    plain = write_run(tmp_path / "plain", "mim.weight=0", f"input.root={shards}")
    refused(["eval", plain, *asked, "--reconstructions"], "has no decoder")
    refused(["eval", run_dir, *asked, "--segment", tmp_path], "ADE20K or Pascal VOC")
    refused(["eval", run_dir, *asked, "--robustness", "imagenet-v2", "/nowhere"], "no folder")
    (tmp_path / "file").touch()
    refused(["eval", run_dir, *asked, "--out", tmp_path / "file/out"], "--out", "writable")
    (tmp_path / "real.json").write_text("[[], []]")
    val = as_folders(shards, tmp_path / "data/val", str)
    (tmp_path / "classes.txt").write_text("\n".join(map(str, range(16))))
    refused(
        [
            "eval",
            run_dir,
            "data.reader=folder",
            f"data.classes={tmp_path}/classes.txt",
            f"input.root={val.parent}",
            "--robustness",
            "real",
            tmp_path / "real.json",
        ],
        "labels up to -1",
    )
    twice = [w for name in "ab" for w in ("--robustness", "imagenet-v2", tmp_path / name / "x")]
    refused(["eval", run_dir, *twice], "two of the name x")


def test_a_head_of_other_classes_is_not_measured_by_chance(shards, tmp_path, refused, cli):
    path = tmp_path / "thousand.safetensors"
    save_file(timm.create_model(NAME, num_classes=1000).state_dict(), path)
    words = [
        "eval",
        path,
        "--model",
        NAME,
        f"input.root={shards}",
        "--out",
        tmp_path,
        "data.val=val/val-000001.tar",
        "data.train=val/val-000001.tar",
    ]
    refused(words, "a head of 1000 outputs", "model.num_classes=1000")
    code, row, _ = cli(*words, "--few-shot")
    assert code == 0
    assert "top1" not in row
    assert "1000 outputs" in row["head"]
    name = "deit_tiny_distilled_patch16_224"
    save_file(timm.create_model(name).state_dict(), path)
    refused(["eval", path, "--model", name], "several heads")


def test_the_recipes_precision_is_the_encoders_and_the_head_is_in_fp32(run_dir, cli):
    subject = open_subject(str(run_dir), None, None, ["engine.precision=bf16"])
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        features = subject.features(images)
        exact = open_subject(str(run_dir), None, None, []).features(images)
    assert 0 < (features.float() - exact).abs().max() < 0.1
    assert subject.logits(features.float()).dtype == torch.float32
    assert [
        cli("eval", run_dir, f"engine.precision={name}")[1]["precision"]
        for name in ("auto", "fp32", "bf16")
    ] == ["fp32", "fp32", "bf16"]


def test_features_that_are_not_finite_are_one_line_that_names_an_image(run_dir, refused):
    path = run_dir / "weights/step-00000004.safetensors"
    given, facts = read_weights(path)
    given["encoder.blocks.1.mlp.fc2.bias"][0] = torch.nan
    save_weights(given, path, facts)
    refused(["eval", run_dir], "features of image 0 that are not finite")


def as_folders(shards, root, name_of, count=33):
    """Held-out images in a folder a class."""
    held_out = open_dataset(shards, "val", SampleLayout())
    for i in range(count):
        folder = root / name_of(int(held_out.labels_of(i)[0]))
        folder.mkdir(parents=True, exist_ok=True)
        number = f"ILSVRC2012_val_{i + 1:08d}.jpg"
        (folder / number).write_bytes(held_out.read(i).tobytes())
    return root


def test_robustness_sets_are_read_in_their_layouts(run_dir, shards, tmp_path, cli):
    names = [f"n{i:08d}" for i in range(16)]
    (tmp_path / "classes.txt").write_text("\n".join(names))
    a = as_folders(shards, tmp_path / "a", lambda k: names[k], count=4)
    r = [
        as_folders(shards, tmp_path / name, lambda k: names[k], count=c)
        for name, c in (("r-one", 2), ("r-two", 3))
    ]
    v2 = as_folders(shards, tmp_path / "v2", str)
    val = as_folders(shards, tmp_path / "data/val", lambda k: names[k])
    lists = [[i % 16, (i + 3) % 16] if i % 11 else [] for i in range(40)]
    (tmp_path / "real.json").write_text(json.dumps(lists))
    code, row, _ = cli(
        "eval",
        run_dir,
        f"data.classes={tmp_path}/classes.txt",
        "data.reader=folder",
        f"input.root={val.parent}",
        "--robustness",
        "imagenet-a",
        a,
        "--robustness",
        "imagenet-v2",
        v2,
        "--robustness",
        "real",
        tmp_path / "real.json",
        "--robustness",
        "imagenet-r",
        r[0],
        "--robustness",
        "imagenet-r",
        r[1],
    )
    assert code == 0
    assert row["imagenet_v2_images"] == row["images"] == 33
    assert row["imagenet_v2_top1"] == row["top1"]
    assert row["imagenet_a_images"] == 4
    assert row["imagenet_a_top1"] >= 0
    assert (row["imagenet_r_r_one_images"], row["imagenet_r_r_two_images"]) == (2, 3)
    assert row["real_images"] == 30  # every eleventh list is empty

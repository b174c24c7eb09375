"""What is exported: read by timm and onnxruntime, whole or not there, with a card that is true."""

import json

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from eval_fixture import write_run

from supmim_scale.exports.card import shown
from supmim_scale.exports.parity import compare
from supmim_scale.models.weights import read_weights, save_weights

NAMES = {"model.safetensors", "config.json", "README.md"}


def opened(folder):
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def test_an_export_is_a_folder_that_timm_and_the_hub_read(cli, run_dir, tmp_path):
    code, _, _ = cli("export", run_dir, tmp_path / "out")
    assert code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == NAMES
    readable = {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert len(readable) == 1  # the weights are not their owner's alone
    model = opened(tmp_path / "out")
    given, _ = read_weights(run_dir / "weights/step-00000004.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, given[f"encoder.{name}"])
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["pretrained_cfg"]["crop_pct"] == 0.875
    assert config["pretrained_cfg"]["input_size"] == [3, 48, 48]


def test_a_card_tells_recipe_data_metrics_versions_and_digest(cli, run_dir, tmp_path):
    cli("export", run_dir, tmp_path / "before")
    assert "Not measured" in (tmp_path / "before/README.md").read_text()
    _, row, _ = cli("eval", run_dir, "--calibration")
    cli("export", run_dir, tmp_path / "after")
    card = (tmp_path / "after/README.md").read_text()
    for words in (
        "arXiv 2312.00950",
        "trained on | synth",
        "optim:",
        row["digest"],
        f"| calibration_error | {row['calibration_error']:.4f} |",
        torch.__version__,
        "parity | timm",
        "library_name: timm",
    ):
        assert words in card


def test_a_card_adds_what_was_measured_one_after_the_other_and_names_another_set(
    cli, run_dir, tmp_path
):
    _, first, _ = cli("eval", run_dir, "--knn")
    cli("eval", run_dir)
    kept = json.loads((run_dir / "eval.json").read_text())
    assert kept == first
    cli("export", run_dir, tmp_path / "own")
    card = (tmp_path / "own/README.md").read_text()
    assert "on 33 images of the recipe's `synth`, part `val`" in card
    assert f"| knn_top1 | {first['knn_top1']:.4f} |" in card
    _, other, _ = cli("eval", run_dir, "data.val=train")
    assert json.loads((run_dir / "eval.json").read_text()) == other
    cli("export", run_dir, tmp_path / "other")
    card = (tmp_path / "other/README.md").read_text()
    assert "on 96 images of another set than the recipe's: `synth`, part `train`" in card
    assert "knn_top1" not in card
    assert len((run_dir / "eval.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("probe_l2", 1e-6, "1e-06"),
        ("train_images", 1281167, "1281167"),
        ("top1", 0.5, "0.5000"),
        ("images", 50000.0, "50000"),
        ("nll", 2.0, "2"),
        ("knn_temperature", 0.07, "0.07"),
        ("top1", 1.0, "1.0000"),
    ],
)
def test_figures_are_shown_as_what_they_are(name, value, text):
    assert shown(name, value) == text


def test_another_size_has_resampled_positions_and_says_so(cli, run_dir, tmp_path):
    cli("eval", run_dir)
    code, _, _ = cli("export", run_dir, tmp_path / "out", "--image-size", "64")
    assert code == 0
    model = opened(tmp_path / "out")
    assert model.pos_embed.shape[1] == 64
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 16)
    assert "Measured at 48 px" in (tmp_path / "out/README.md").read_text()


def test_raw_weights_are_taken_where_they_are_asked_for(cli, run_dir, tmp_path, refused):
    given, facts = read_weights(run_dir / "weights/step-00000004.safetensors")
    averaged = {name: tensor + 1 for name, tensor in given.items()}
    path = run_dir / "weights/step-00000004-ema.safetensors"
    save_weights(averaged, path, facts | {"weights": "ema"})
    cli("export", run_dir, tmp_path / "ema")
    cli("export", run_dir, tmp_path / "raw", "--raw")
    bias = [opened(tmp_path / name).head.bias for name in ("ema", "raw")]
    assert torch.equal(bias[0], given["encoder.head.bias"] + 1)
    assert torch.equal(bias[1], given["encoder.head.bias"])
    refused(["export", run_dir, tmp_path / "x", "--raw", "--weights", path], "--raw")


def test_onnx_gives_the_same_logits_for_any_number_of_images(cli, run_dir, tmp_path):
    code, _, _ = cli("export", run_dir, tmp_path / "out", "--onnx")
    assert code == 0
    assert "onnxruntime" in (tmp_path / "out/README.md").read_text()
    session = onnxruntime.InferenceSession(
        str(tmp_path / "out/model.onnx"), providers=["CPUExecutionProvider"]
    )
    model = opened(tmp_path / "out")
    for count in (1, 3):
        images = torch.randn(count, 3, 48, 48)
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        with torch.no_grad():
            assert np.abs(logits - model(images).numpy()).max() < 1e-5


def test_what_cannot_be_exported_leaves_nothing(run_dir, tmp_path, refused, shards):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").touch()
    refused(["export", run_dir, tmp_path / "full"], "there already")
    refused(["export", run_dir, tmp_path / "out", "--image-size", "50"], "model.image_size")
    refused(["export", tmp_path / "nowhere", tmp_path / "out"], "no recipe.yaml")
    other = write_run(tmp_path / "other", "model.depth=3", f"input.root={shards}")
    path = other / "weights/step-00000004.safetensors"
    foreign = run_dir / "weights/step-00000004.safetensors"
    refused(["export", other, tmp_path / "out", "--weights", foreign], "blocks.2", "no such tensor")
    path.write_bytes(path.read_bytes()[:-100])
    refused(["export", other, tmp_path / "out"], str(path))
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.part").exists()


def test_logits_that_differ_are_not_left_behind():
    with pytest.raises(RuntimeError, match="differ by"):
        compare("timm", lambda x: x, lambda x: x + 1e-3, torch.ones(1, 2), 1e-6)

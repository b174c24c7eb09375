"""For tests of evaluation and export: features, a run without a training, commands in process."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from supmim_scale.build.model import recipe_model, target_features
from supmim_scale.cli.main import main
from supmim_scale.config import as_yaml, digest, load_config
from supmim_scale.evaluation.features import Features
from supmim_scale.launch.world import World
from supmim_scale.models.weights import save_weights

ALONE = World(0, 0, 1, torch.device("cpu"), "none")


def features_of(count, seed, width=12, classes=4, spread=1.0, labels=1):
    """Gaussian clusters, one a class; clusters are the same for every seed."""
    centres = np.random.default_rng(99).normal(size=(classes, width))
    rng = np.random.default_rng(seed)
    labels_NL = rng.integers(0, classes, (count, labels))
    if labels > 1:
        labels_NL[::3, 1:] = -1
    rows_ND = centres[labels_NL[:, 0]] + rng.normal(size=(count, width)) / spread
    rows = torch.from_numpy(rows_ND).float()
    return Features(np.arange(count), torch.from_numpy(labels_NL), rows)


def write_set(root, layout, count=6):
    """Images with a red and a blue half on green, whose masks say so; a border is unlabelled."""
    first, ignored = (1, 0) if layout == "ade" else (0, 255)
    for split, part in (("train", "training"), ("val", "validation")):
        images, masks = (
            (root / "images" / part, root / "annotations" / part)
            if layout == "ade"
            else (root / "JPEGImages", root / "SegmentationClass")
        )
        names = [f"{split}{i}" for i in range(count)]
        for folder in (images, masks):
            folder.mkdir(parents=True, exist_ok=True)
        for i, name in enumerate(names):
            height, width, edge = 56 + 8 * i, 64, 16 + 8 * (i % 3)
            mask = np.zeros((height, width), dtype=np.uint8)
            mask[:edge], mask[edge:, width // 2 :] = 1, 2
            colours = np.array([[40, 200, 40], [220, 30, 30], [30, 30, 220]], dtype=np.uint8)
            Image.fromarray(colours[mask]).save(images / f"{name}.jpg", quality=95)
            mask += first
            mask[:2] = ignored
            Image.fromarray(mask).save(masks / f"{name}.png")
        if layout == "voc":
            lists = root / "ImageSets/Segmentation"
            lists.mkdir(parents=True, exist_ok=True)
            (lists / f"{split}.txt").write_text("\n".join(names))
    return root


def write_run(folder, *overrides):
    """A run folder with drawn weights."""
    from conftest import SMALL

    config = load_config("smoke", [*SMALL, "mim.target=pixel", *overrides])
    model = recipe_model(config, target_features(config))
    folder.mkdir()
    (folder / "recipe.yaml").write_text(as_yaml(config))
    facts = {"steps_done": "4", "digest": digest(config), "weights": "raw"}
    save_weights(model.state_dict(), folder / "weights/step-00000004.safetensors", facts)
    return folder


@pytest.fixture
def run_dir(shards, tmp_path):
    return write_run(tmp_path / "run", f"input.root={shards}")


@pytest.fixture
def cli(monkeypatch, capsys):
    """`cli(words) -> (exit code, last line of JSON, lines of errors)`."""
    monkeypatch.setattr("supmim_scale.evaluation.start.join_world", lambda: ALONE)

    def call(*words):
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        lines = [line for line in out.splitlines() if line.startswith("{")]
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        return code, json.loads(lines[-1]) if lines else None, errors

    return call


@pytest.fixture
def refused(cli):
    """`refused(words, *parts)`: exit code 2 and one line that holds the parts."""

    def call(words, *parts):
        code, _, errors = cli(*words)
        assert code == 2
        assert len(errors) == 1
        for part in parts:
            assert part in errors[0], errors[0]

    return call


@pytest.fixture
def one_thread():
    """Small products wait for each other's threads where several workers share the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

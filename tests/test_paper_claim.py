"""The benchmark of the paper's claim: fair, paired, and reported as its rows say."""

import json
import sys

import numpy as np
import pytest
from conftest import ROOT
from scipy import stats

from supmim_scale.assemble import encoder_geometry
from supmim_scale.config import load_config
from supmim_scale.config.load import resolved
from supmim_scale.data.dataset import open_dataset
from supmim_scale.data.readers import Layout
from supmim_scale.run_folder import identity_of

sys.path.insert(0, str(ROOT / "benchmarks"))
import paper_claim
import paper_claim_report


@pytest.mark.parametrize("short", [True, False])
def test_the_objectives_differ_in_the_mim_term_alone(short):
    shared = paper_claim.SHORT if short else []
    a, b = (load_config(paper_claim.RECIPE, [*shared, *own])
            for own in paper_claim.OBJECTIVES.values())  # fmt: skip
    differing = {key for key, value in identity_of(a).items() if identity_of(b)[key] != value}
    assert differing == {"mim.weight"}
    assert encoder_geometry(a).num_patches >= 64
    assert resolved(a)["optim"] == resolved(b)["optim"]


@pytest.mark.parametrize("name", paper_claim.ABLATIONS)
def test_an_ablation_changes_the_key_that_names_it(name):
    base = load_config(paper_claim.RECIPE)
    changed = load_config(paper_claim.RECIPE, paper_claim.ABLATIONS[name])
    then, now = identity_of(base), identity_of(changed)
    assert {key for key in now if now[key] != then[key]} == {name.partition("=")[0]}


def test_images_are_packed_as_they_are_and_the_tuning_split_is_of_the_training_set(
    shards, tmp_path, monkeypatch
):
    given = {"train": open_dataset(shards, "train", Layout()),
             "test": open_dataset(shards, "val", Layout())}  # fmt: skip
    for name, dataset in given.items():
        images = [dataset.read(i) for i in range(len(dataset))]
        labels = np.array([dataset.labels_of(i)[0] for i in range(len(dataset))], dtype=np.uint8)
        offsets = np.cumsum([0, *(len(image) for image in images)])
        arrays = {"jpeg": np.concatenate(images), "offsets": offsets, "labels": labels}
        np.savez(tmp_path / f"{name}.npz", **arrays)
    words = ["paper_claim", "--cifar10", str(tmp_path), "--work", str(tmp_path / "work")]
    monkeypatch.setattr(sys, "argv", words)
    whole, tuning = paper_claim.prepare(paper_claim.parse_arguments())
    sets = {(folder, split): open_dataset(folder, split, Layout())
            for folder in (whole, tuning) for split in ("train", "val")}  # fmt: skip
    assert [len(dataset) for dataset in sets.values()] == [96, 33, 87, 9]

    def contents(dataset):
        ids = range(len(dataset))
        return {(dataset.read(i).tobytes(), int(dataset.labels_of(i)[0])) for i in ids}

    assert contents(sets[whole, "val"]) == contents(given["test"])
    both = contents(sets[tuning, "train"]) | contents(sets[tuning, "val"])
    assert both == contents(sets[whole, "train"]) == contents(given["train"])
    assert not contents(sets[tuning, "train"]) & contents(sets[tuning, "val"])


def rows_with(differences):
    """Rows of a baseline at 0.5 and of a joint run beside it, a seed each."""
    base = {"kind": "run", "short": True, "train_images": 9, "images_seen": 90, "images": 5.0,
            "device": "cpu", "lr": 0.1, "precision": "fp32",
            "curve": [[1, 2.0, 0.0], [2, 1.0, 0.0]]}  # fmt: skip
    rows = []
    for seed, difference in enumerate(differences):
        for objective, value in (("supervised", 0.5), ("supervised_mim", 0.5 + difference)):
            figures = dict.fromkeys(paper_claim_report.MEASURES, value)
            rows.append({**base, "objective": objective, "seed": seed, **figures})
    return rows


def test_differences_are_paired_and_their_interval_is_students(tmp_path):
    differences = [0.01, 0.03, -0.02]
    mean, wide = paper_claim_report.interval(differences)
    low, high = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert (mean - wide, mean + wide) == pytest.approx((low, high))
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows_with(differences)))
    table = paper_claim_report.report(path)
    assert f"{100 * mean:+.2f} +- {100 * wide:.2f} points | 3 |" in table
    assert "Ablations: not run." in table
    assert (tmp_path / "rows_short.png").stat().st_size > 1000

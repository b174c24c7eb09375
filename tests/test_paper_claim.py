"""The benchmark of the paper's claim: fair, paired, and reported as its rows say."""

import json
import sys

import numpy as np
import pytest
from scipy import stats

from benchmarks.claim import paper_claim, report
from supmim_scale.build.model import encoder_geometry
from supmim_scale.config import load_config
from supmim_scale.config.load import resolved
from supmim_scale.data.dataset import open_dataset
from supmim_scale.data.readers import SampleLayout
from supmim_scale.runs.folder import identity_of


@pytest.mark.parametrize("shared", paper_claim.WORDS.values(), ids=paper_claim.WORDS)
def test_the_objectives_differ_in_the_mim_term_alone(shared):
    a, b = (
        load_config(paper_claim.RECIPE, [*shared, *own]) for own in paper_claim.OBJECTIVES.values()
    )
    differing = {key for key, value in identity_of(a).items() if identity_of(b)[key] != value}
    assert differing == {"mim.weight"}
    assert encoder_geometry(a).num_patches >= 64
    assert resolved(a)["optim"] == resolved(b)["optim"]


@pytest.mark.parametrize("size", paper_claim.SIZES)
def test_a_size_is_what_its_name_says_and_has_64_patches_or_more(size):
    config = load_config(paper_claim.RECIPE, paper_claim.size_words(size))
    shape, geometry = config.model, encoder_geometry(config)
    assert size == f"{shape.width}x{shape.depth}/{shape.patch_size}"
    assert geometry.num_patches == (shape.image_size // shape.patch_size) ** 2 >= 64


def test_every_size_has_a_table_and_a_figure_of_its_own(tmp_path):
    larger = [
        row_of("run", name, seed, value, size="96x6/4")
        for name, value in (("supervised", 0.5), ("supervised_mim", 0.6))
        for seed in (0, 1)
    ]
    table = table_of(tmp_path, [*rows_with([0.01, 0.03]), *larger])
    assert "| top-1 | 50.00% | 60.00% | +10.00 +- 0.00 points | 2 |" in table
    assert "| +2.00 +- " in table
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "rows_short_64x4p4.png",
        "rows_short_96x6p4.png",
    }


@pytest.mark.parametrize("name", paper_claim.ABLATIONS)
def test_an_ablation_changes_the_key_that_names_it(name):
    base = load_config(paper_claim.RECIPE)
    changed = load_config(paper_claim.RECIPE, paper_claim.ABLATIONS[name])
    then, now = identity_of(base), identity_of(changed)
    assert {key for key in now if now[key] != then[key]} == {name.partition("=")[0]}


def test_images_are_packed_as_they_are_and_the_tuning_split_is_of_the_training_set(
    shards, tmp_path, monkeypatch
):
    given = {
        "train": open_dataset(shards, "train", SampleLayout()),
        "test": open_dataset(shards, "val", SampleLayout()),
    }
    for name, dataset in given.items():
        images = [dataset.read(i) for i in range(len(dataset))]
        labels = np.array([dataset.labels_of(i)[0] for i in range(len(dataset))], dtype=np.uint8)
        offsets = np.cumsum([0, *(len(image) for image in images)])
        arrays = {"jpeg": np.concatenate(images), "offsets": offsets, "labels": labels}
        np.savez(tmp_path / f"{name}.npz", **arrays)
    words = ["paper_claim", "--cifar10", str(tmp_path), "--work", str(tmp_path / "work")]
    monkeypatch.setattr(sys, "argv", words)
    whole, tuning = paper_claim.prepare(paper_claim.parse_arguments())
    sets = {
        (folder, split): open_dataset(folder, split, SampleLayout())
        for folder in (whole, tuning)
        for split in ("train", "val")
    }
    assert [len(dataset) for dataset in sets.values()] == [96, 33, 87, 9]

    def contents(dataset):
        ids = range(len(dataset))
        return {(dataset.read(i).tobytes(), int(dataset.labels_of(i)[0])) for i in ids}

    assert contents(sets[whole, "val"]) == contents(given["test"])
    both = contents(sets[tuning, "train"]) | contents(sets[tuning, "val"])
    assert both == contents(sets[whole, "train"]) == contents(given["train"])
    assert not contents(sets[tuning, "train"]) & contents(sets[tuning, "val"])


def row_of(kind, objective, seed, value, lr=0.1, **changed):
    figures = dict.fromkeys(report.MEASURES, value)
    return {
        "kind": kind,
        "objective": objective,
        "seed": seed,
        "lr": lr,
        "version": "short",
        "size": "64x4/4",
        "train_images": 9,
        "images_seen": 90,
        "steps": 9,
        "images": 5.0,
        "device": "cpu",
        "precision": "fp32",
        "commit": "a" * 40,
        "curve": [[1, 2.0, 0.0], [2, 1.0, 0.0]],
        "overrides": [*(["mim.weight=0"] if objective == "supervised" else []), f"optim.lr={lr}"],
        **figures,
        **changed,
    }


def rows_with(differences):
    """Rows of a baseline that varies with the seed and of a joint run beside it, in any order."""
    rows = []
    for seed, difference in enumerate(differences):
        base = 0.5 + 0.07 * seed
        rows.append(row_of("run", "supervised", seed, base))
        rows.append(row_of("run", "supervised_mim", seed, base + difference))
    return [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]


def table_of(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return report.report(path)


def test_differences_are_paired_and_their_interval_is_students(tmp_path):
    differences = [0.01, 0.03, -0.02]
    mean, wide = report.interval(differences)
    low, high = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert (mean - wide, mean + wide) == pytest.approx((low, high))
    table = table_of(tmp_path, rows_with(differences))
    assert f"{100 * mean:+.2f} +- {100 * wide:.2f} points | 3 |" in table
    assert "Ablations: not run." in table
    assert "not comparable" in table
    assert "Warning" not in table
    assert (tmp_path / "rows_short_64x4p4.png").stat().st_size > 1000


def test_a_pair_is_of_one_size_and_recipe_at_the_learning_rates_that_the_tuning_chose(tmp_path):
    tuned = [
        row_of("tune", name, 1000, value, lr, images=100.0)
        for name in report.NAMES
        for lr, value in ((0.1, 0.4), (0.2, 0.5), (0.3, 0.5))
    ]
    words = [row_of("run", name, seed, 0.5, 0.2) for name in report.NAMES for seed in (0, 1)]
    strays = [
        row_of("run", "supervised_mim", 0, 0.9, 0.3),
        row_of("run", "supervised_mim", 1, 0.9, 0.2, images_seen=91),
    ]
    table = table_of(tmp_path, [*tuned, *strays, *words])
    assert "+0.00 +- 0.00 points | 2 |" in table
    assert "left out: 2." in table
    assert "lr 0.2: 50.00% of 100 held-out training images, standard error 5.00% (taken)" in table
    first = table_of(tmp_path, [*tuned[:2], *tuned[3:5], *words])
    assert "(taken, on the edge of the grid)" in first


def test_commits_are_named_and_a_pair_of_two_is_told(tmp_path):
    rows = rows_with([0.0, 0.1])
    next(r for r in rows if r["seed"] == 1)["commit"] = "b" * 40 + "+changes"
    table = table_of(tmp_path, rows)
    assert "aaaaaaaaaa, bbbbbbbbbb+changes" in table
    assert "Warning: runs of two commits are paired, seeds 1." in table

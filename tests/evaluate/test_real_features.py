"""Figures of real images' features beside scikit-learn, from the model to the last digit."""

import json
import warnings

import numpy as np
import pytest
import timm
import torch
from eval_fixture import write_run
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import KNeighborsClassifier

from supmim_scale.data.dataset import open_dataset
from supmim_scale.data.loader import evaluation_batches
from supmim_scale.data.readers import SampleLayout
from supmim_scale.data.shards import write_shard
from supmim_scale.errors import UserError
from supmim_scale.evaluation.features import Features
from supmim_scale.evaluation.probe import fit_lbfgs
from supmim_scale.evaluation.subject import open_subject
from supmim_scale.models import timm_models

pytestmark = pytest.mark.usefixtures("one_thread")


CPU = torch.device("cpu")


def test_figures_of_real_features_are_scikit_learns(run_dir, cli, monkeypatch):
    # The training set is the held-out one of a second call, so that its features are kept too.
    monkeypatch.setattr("supmim_scale.evaluation.probe.L2", (0.01,))
    _, row, _ = cli("eval", run_dir, "--knn", "--probe")
    cli("eval", run_dir, "--knn", "data.train=val", "data.val=train")
    bank, queries = sorted(
        (load_file(path) for path in (run_dir / "eval").glob("features-*")),
        key=lambda kept: -len(kept["ids"]),
    )
    x, y = (bank[name].double().numpy() for name in ("features", "labels"))
    asked, truth = (queries[name].double().numpy() for name in ("features", "labels"))
    voting = KNeighborsClassifier(
        20, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07)
    ).fit(x, y[:, 0])
    assert row["knn_top1"] == (voting.predict(asked) == truth[:, 0]).mean()
    same, similar = truth == y.T, cosine_similarity(asked, x)
    precisions = [average_precision_score(s, v) for s, v in zip(same, similar, strict=True)]
    assert row["retrieval_map"] == pytest.approx(np.mean(precisions), abs=1e-6)
    linear = LogisticRegression(
        C=1 / (len(x) * row["probe_l2"]), solver="newton-cholesky", tol=1e-12
    )
    with warnings.catch_warnings():  # at this tolerance its line search may say that it is done
        warnings.simplefilter("ignore")
        linear.fit(x, y[:, 0])
    assert row["probe_top1"] == (linear.predict(asked) == truth[:, 0]).mean()
    assert np.array_equal(linear.classes_, np.arange(len(linear.classes_)))
    train = Features(bank["ids"].numpy(), bank["labels"], bank["features"])
    probe = fit_lbfgs(train, len(linear.classes_), row["probe_l2"], CPU)
    ours = probe.logits(queries["features"]).softmax(1).numpy()
    assert np.abs(ours - linear.predict_proba(asked)).max() <= 1e-6


def test_several_labels_an_image_have_a_mean_average_precision(shards, tmp_path, cli):
    held_out = open_dataset(shards, "val", SampleLayout())
    (tmp_path / "val").mkdir()
    labels = [[i % 5, i % 7 + 5] for i in range(33)]
    write_shard(
        tmp_path / "val/x.tar",
        (
            (f"{i}", held_out.read(i).tobytes(), "jpg", " ".join(map(str, labels[i])))
            for i in range(33)
        ),
    )
    run_dir = write_run(tmp_path / "run", "loss.kind=sigmoid", f"input.root={tmp_path}")
    code, row, _ = cli("eval", run_dir)
    assert code == 0
    subject = open_subject(str(run_dir), None, None, [])
    cpu = torch.device("cpu")
    batches = evaluation_batches(
        open_dataset(tmp_path, "val", SampleLayout()),
        subject.view_settings(cpu),
        batch=33,
        device=cpu,
    )
    with torch.no_grad():
        (scores,) = (subject.encoder.eval()(batch.images_BCHW) for batch in batches)
    truth = np.zeros((33, 16))
    for i, ids in enumerate(labels):
        truth[i, ids] = 1
    expected = average_precision_score(truth[:, :12], scores[:, :12].numpy(), average="macro")
    assert row["map"] == pytest.approx(expected, abs=1e-6)


def test_a_name_is_opened_by_timm_and_what_it_cannot_have_is_one_line(
    shards, tmp_path, cli, refused, monkeypatch
):
    """Without a network: what timm would fetch is put in its place."""
    create = timm.create_model

    def fetch(name, pretrained=False, **options):
        assert pretrained
        return create(name, patch_size=32, **options)

    monkeypatch.setattr(timm_models.timm, "create_model", fetch)
    monkeypatch.chdir(tmp_path)
    code, row, _ = cli(
        "eval",
        "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
        f"input.root={shards}",
        "data.val=val/val-000001.tar",
        "model.image_size=64",
        "model.num_classes=1000",
    )
    assert code == 0
    assert (row["images"], row["mean"], row["interpolation"]) == (1, [0.5] * 3, "bicubic")
    (kept,) = (tmp_path / "evals").iterdir()
    assert json.loads((kept / "eval.json").read_text()) == row

    def unreachable(name, **_):
        raise OSError("no route\nto the hub")

    monkeypatch.setattr(timm_models.timm, "create_model", unreachable)
    refused(["eval", "vit_tiny_patch16_224"], "no route to the hub")
    with pytest.raises(UserError, match="no route"):
        timm_models.open_named("vit_tiny_patch16_224")

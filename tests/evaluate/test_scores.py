"""Average precision beside scikit-learn, calibration beside a count by hand."""

import numpy as np
import pytest
import torch
from eval_fixture import ALONE
from sklearn.metrics import average_precision_score, top_k_accuracy_score

from supmim_scale.data.loader import Batch
from supmim_scale.evaluation.classify import evaluate, hits
from supmim_scale.evaluation.probe import one_hot
from supmim_scale.evaluation.scores import BINS, calibration, mean_average_precision


def test_map_is_scikit_learns_over_the_classes_that_occur():
    rng = torch.Generator().manual_seed(0)
    logits_NK = 10 * torch.randn(80, 6, generator=rng)
    labels_NL = torch.randint(0, 5, (80, 2), generator=rng)  # class 5 never
    labels_NL[::4, 1] = -1
    truth = one_hot(labels_NL, 6).numpy()[:, :5]
    expected = average_precision_score(truth, logits_NK[:, :5].numpy(), average="macro")
    assert mean_average_precision(logits_NK, labels_NL) == pytest.approx(expected, abs=1e-6)


def test_calibration_error_is_the_gap_of_confidence_and_accuracy_in_bins():
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(500, 7)) * 2, rng.integers(0, 7, 500)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    confidence, right = shares.max(1), shares.argmax(1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    expected = sum(
        abs(right[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).mean()
        for b in range(BINS)
        if (bins == b).any()
    )
    row = calibration(torch.from_numpy(logits), torch.from_numpy(labels))
    assert row["calibration_error"] == pytest.approx(expected, abs=1e-6)
    assert row["nll"] == pytest.approx(-np.log(shares[np.arange(500), labels]).mean(), abs=1e-9)


def test_a_model_is_measured_as_it_infers_and_every_image_counts_once():
    """Dropout of everything would leave no class above another."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.999)).train()
    eye = torch.eye(8)[:, :, None, None]
    parts = [
        Batch(eye[i : i + 3], torch.arange(8)[i : i + 3, None], np.arange(8)[i : i + 3], None)
        for i in (0, 3, 6)
    ]
    row = evaluate(model, parts, ALONE, 8, "fp32")
    assert row == {"top1": 1, "top5": 1, "images": 8}
    wrong = [Batch(part.images_BCHW, part.labels_BL.roll(1), part.ids_B, None) for part in parts]
    assert evaluate(model, wrong, ALONE, 8, "bf16")["top1"] == 0


def test_top1_and_top5_are_scikit_learns_and_equal_scores_go_by_class():
    rng = torch.Generator().manual_seed(2)
    logits_NK = torch.randn(97, 11, generator=rng)
    labels_N1 = torch.randint(0, 11, (97, 1), generator=rng)
    counts = hits(logits_NK, labels_N1).tolist()
    for place, k in enumerate((1, 5)):
        wanted = top_k_accuracy_score(labels_N1[:, 0], logits_NK, k=k, normalize=False)
        assert counts[place] == wanted
    tied = hits(torch.zeros(1, 9), torch.tensor([[0]]))
    assert tied.tolist() == [1, 1, 1]
    assert hits(torch.zeros(1, 9), torch.tensor([[5]])).tolist() == [0, 0, 1]

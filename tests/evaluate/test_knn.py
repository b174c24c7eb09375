"""k-NN and retrieval beside scikit-learn, which uses none of our code."""

import numpy as np
import pytest
import torch
from eval_fixture import ALONE, features_of
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from thread_ranks import on_ranks

from supmim_scale.errors import UserError
from supmim_scale.evaluation import knn
from supmim_scale.evaluation.classify import hits, ranked
from supmim_scale.evaluation.features import Features
from supmim_scale.evaluation.knn import (
    PLAIN_K,
    KnnSettings,
    average_precision,
    knn_figures,
    neighbours,
    relevant,
    require_room,
    vote,
)
from supmim_scale.launch.world import World


@pytest.mark.parametrize("chunk", [1, 1000, 1 << 20])
def test_the_neighbours_are_scikit_learns_whatever_the_chunk(chunk):
    bank, queries = features_of(300, seed=0), features_of(41, seed=1)
    reference = NearestNeighbors(n_neighbors=20, metric="cosine", algorithm="brute")
    reference.fit(bank.features_ND.double().numpy())
    distances, places = reference.kneighbors(queries.features_ND.double().numpy())
    similar_QK, places_QK = neighbours(queries.features_ND, bank.features_ND, 20, chunk)
    assert np.array_equal(places_QK.numpy(), places)
    assert np.abs(1 - similar_QK.numpy() - distances).max() < 1e-10


def test_equal_neighbours_stand_in_the_order_of_the_bank():
    row = torch.randn(1, 8)
    bank_ND = torch.cat([-row, 3 * row, 0.1 * row, torch.randn(5, 8), 7 * row])
    _, places_QK = neighbours(2 * row, bank_ND, 3)
    assert places_QK.tolist() == [[1, 2, 8]]


@pytest.mark.parametrize("k", [1, 10, 20])
@pytest.mark.parametrize("temperature", [None, 0.07])
def test_votes_choose_scikit_learns_classes(k, temperature):
    bank, queries = features_of(300, seed=2, spread=0.5), features_of(50, seed=3, spread=0.5)
    weights = "uniform" if temperature is None else (lambda d: np.exp((1 - d) / temperature))
    reference = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=weights)
    reference.fit(bank.features_ND.double().numpy(), bank.labels_NL[:, 0].numpy())
    shares = reference.predict_proba(queries.features_ND.double().numpy())
    similar_QK, places_QK = neighbours(queries.features_ND, bank.features_ND, k)
    votes_QC = vote(similar_QK, bank.labels_NL[places_QK], 4, temperature)
    ours = votes_QC / votes_QC.sum(1, keepdim=True)
    assert np.abs(ours.numpy() - shares).max() < 1e-6
    chosen_Q = reference.predict(queries.features_ND.double().numpy())
    assert np.array_equal(ranked(votes_QC, 1)[:, 0].numpy(), chosen_Q)
    row = knn_figures(bank, queries, 4, KnnSettings(k), ALONE)
    name = "knn_top1" if temperature else f"knn_plain{k}_top1"
    if temperature or k in PLAIN_K:
        assert row[name] == (chosen_Q == queries.labels_NL[:, 0].numpy()).mean()
    else:
        assert name not in row


def test_retrievals_map_is_scikit_learns_average_precision():
    bank, queries = features_of(200, seed=4), features_of(30, seed=5)
    row = knn_figures(bank, queries, 4, KnnSettings(), ALONE)
    unit = [torch.nn.functional.normalize(f.features_ND.double(), dim=1) for f in (bank, queries)]
    scores = (unit[1] @ unit[0].T).numpy()
    same = queries.labels_NL.numpy() == bank.labels_NL.numpy().T
    expected = np.mean([average_precision_score(s, v) for s, v in zip(same, scores, strict=True)])
    assert row["retrieval_map"] == pytest.approx(expected, abs=1e-6)
    first = np.take_along_axis(same, np.argsort(-scores, axis=1), 1)
    for k in (1, 5, 10):
        assert row[f"recall_at_{k}"] == first[:, :k].any(1).mean()


def test_an_image_of_several_labels_is_relevant_by_any():
    """Known by hand: the bank in the order of its similarity to the one query."""
    angles = torch.tensor([0.0, 0.1, 0.2, 0.3])
    rows_ND = torch.stack([angles.cos(), angles.sin()], dim=1)
    labels_NL = torch.tensor([[3, -1], [1, 2], [2, 0], [-1, -1]])
    bank = Features(np.arange(4), labels_NL, rows_ND)
    query = Features(np.arange(1), torch.tensor([[0, 1, -1]]), torch.tensor([[1.0, 0.0]]))
    assert relevant(query.labels_NL, labels_NL).tolist() == [[False, True, True, False]]
    row = knn_figures(bank, query, 4, KnnSettings(3, 1e6), ALONE)
    assert row["retrieval_map"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert [row[f"recall_at_{k}"] for k in (1, 5, 10)] == [0, 1, 1]
    assert row["knn_plain1_top1"] == 0  # the nearest is of class 3
    assert row["knn_top1"] == 0  # class 2 has two votes


def test_a_query_without_a_relevant_image_counts_in_top1_alone():
    """By hand: the bank is of class 0, 1, 0, 1 in the order of its similarity to every query."""
    angles = torch.tensor([0.0, 0.1, 0.2, 0.3])
    bank = Features(
        np.arange(4),
        torch.tensor([[0], [1], [0], [1]]),
        torch.stack([angles.cos(), angles.sin()], dim=1),
    )
    labels = torch.tensor([[0], [1], [5], [-1]])  # two of them have nothing to find
    queries = Features(np.arange(4), labels, torch.tensor([[1.0, -0.5]] * 4))
    row = knn_figures(bank, queries, 6, KnnSettings(1), ALONE)
    first, second = (1 + 2 / 3) / 2, (1 / 2 + 2 / 4) / 2
    assert row["retrieval_map"] == pytest.approx((first + second) / 2)
    assert [row[f"recall_at_{k}"] for k in (1, 5, 10)] == [0.5, 1, 1]
    assert row["knn_top1"] == row["knn_plain1_top1"] == 0.25
    nothing = queries.rows(np.array([2, 3]))
    none = knn_figures(bank, nothing, 6, KnnSettings(1), ALONE)
    assert [none[name] for name in ("retrieval_map", "recall_at_1", "recall_at_10")] == [0, 0, 0]


def test_the_precision_of_a_ranking_without_anything_relevant_is_not_a_number():
    relevant_QN = torch.tensor([[True, False, True], [False, False, False], [False, False, True]])
    found = average_precision(relevant_QN).tolist()
    assert found[0] == pytest.approx((1 + 2 / 3) / 2)
    assert np.isnan(found[1])
    assert found[2] == pytest.approx(1 / 3)


def test_the_settings_are_those_of_the_papers():
    """Caron et al. 2021 (arXiv 2104.14294), section 4.1, for the vote."""
    assert (KnnSettings().k, KnnSettings().temperature) == (20, 0.07)
    row = knn_figures(features_of(100, seed=8), features_of(9, seed=9), 4, KnnSettings(), ALONE)
    votes = {"knn_top1", "knn_top5", "knn_plain1_top1", "knn_plain10_top1", "knn_plain100_top1"}
    assert set(row) == votes | {"recall_at_1", "recall_at_5", "recall_at_10", "retrieval_map"}


def test_votes_weigh_by_similarity_over_temperature():
    """By hand: exp(-0.1 / 0.5) beside 1, over classes with labels that are padded."""
    similar = torch.tensor([[0.9, 0.8, 0.3]], dtype=torch.float64)
    labels = torch.tensor([[[0, -1], [1, 2], [1, -1]]])
    found = vote(similar, labels, 4, 0.5)[0].tolist()
    near, far = np.exp(-0.1 / 0.5), np.exp(-0.6 / 0.5)
    assert found == pytest.approx([1, near + far, near, 0])
    assert vote(similar, labels, 4, None)[0].tolist() == [1, 2, 1, 0]


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_the_figures_do_not_depend_on_the_number_of_ranks(ranks):
    bank, queries = features_of(60, seed=6), features_of(11, seed=7)
    alone = knn_figures(bank, queries, 4, KnnSettings(5), ALONE)
    found = on_ranks(ranks, lambda world: knn_figures(bank, queries, 4, KnnSettings(5), world))
    assert all(row == pytest.approx(alone, abs=1e-12) for row in found)


def test_a_class_without_a_vote_is_not_among_the_five():
    bank = Features(np.arange(3), torch.full((3, 1), 7), torch.eye(3))
    query = Features(np.arange(1), torch.tensor([[0]]), torch.ones(1, 3))
    row = knn_figures(bank, query, 8, KnnSettings(3), ALONE)
    assert row["knn_top5"] == 0
    assert hits(torch.full((1, 2), -torch.inf), torch.tensor([[-1]])).tolist() == [0, 0, 1]


def test_a_bank_smaller_than_k_is_refused():
    with pytest.raises(UserError, match="--knn-k"):
        neighbours(torch.randn(2, 4), torch.randn(3, 4), 4)


def test_a_bank_that_does_not_fit_the_gpu_is_refused_to_the_byte():
    """ImageNet-1k's 1.28 M images at a width of 1024, and five int64 of 2^25 similarities."""
    needed = 1_281_167 * 1024 * 8 + 5 * 8 * 2**25
    require_room(1_281_167, 1024, needed)
    require_room(1_281_167, 1024, None)
    with pytest.raises(UserError) as refused:
        require_room(1_281_167, 1024, needed - 1)
    for words in ("1281167 images x 1024", "9.77 GiB", "1.25 GiB", "11.02 GiB free", "data.train"):
        assert words in str(refused.value)
    with pytest.raises(UserError, match=r"2\.50 GiB for ranking"):  # one query at a time
        require_room(1 << 26, 1, 0)


def test_the_fullest_rank_decides_before_anything_is_computed(monkeypatch):
    bank = features_of(30, seed=0)
    monkeypatch.setattr(knn, "_unit_bank", lambda *_: pytest.fail("computed"))
    monkeypatch.setattr(World, "gather", lambda *_: [1 << 40, 1 << 20, None])
    with pytest.raises(UserError, match=r"0\.00 GiB free"):
        knn_figures(bank, bank, 4, KnnSettings(), ALONE)


def test_eval_refuses_a_bank_without_room_before_the_first_image(run_dir, refused, monkeypatch):
    monkeypatch.setattr(knn, "free_bytes", lambda _: 1 << 30)
    monkeypatch.setattr("supmim_scale.evaluation.sets.extract", lambda *_: pytest.fail("computed"))
    refused(["eval", run_dir, "--knn"], "k-NN", "1.00 GiB free", "CUDA_VISIBLE_DEVICES")

"""The linear probes and few-shot beside scikit-learn."""

import warnings
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from eval_fixture import ALONE, features_of
from sklearn.linear_model import LogisticRegression, Ridge
from thread_ranks import on_ranks

from supmim_scale.errors import UserError
from supmim_scale.evaluation.features import Features
from supmim_scale.evaluation.few_shot import draw_shots, few_shot_figures, fit_ridge
from supmim_scale.evaluation.probe import (
    L2,
    LEARNING_RATES,
    fit_lbfgs,
    fit_sgd,
    one_hot,
    probe_figures,
    scored,
    spread_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")


CPU = torch.device("cpu")


@pytest.mark.parametrize("l2", [1e-1, 1e-3])
def test_the_probe_is_scikit_learns_logistic_regression(l2):
    train, held_out = features_of(200, seed=0), features_of(60, seed=1)
    x, y = train.features_ND.double().numpy(), train.labels_NL[:, 0].numpy()
    reference = LogisticRegression(C=1 / (len(x) * l2), solver="newton-cg", tol=1e-12)
    with warnings.catch_warnings():  # at this tolerance its line search may say that it is done
        warnings.simplefilter("ignore")
        reference.fit(x, y)
    probe = fit_lbfgs(train, 4, l2, CPU)
    ours = probe.logits(held_out.features_ND).softmax(1).numpy()
    theirs = reference.predict_proba(held_out.features_ND.double().numpy())
    assert np.abs(ours - theirs).max() < 1e-6
    top1, _ = scored(probe, held_out, ALONE)
    right = (
        reference.predict(held_out.features_ND.double().numpy()) == held_out.labels_NL[:, 0].numpy()
    )
    assert top1 == right.mean()


def test_features_of_unequal_scales_do_not_keep_the_probe_from_its_minimum():
    """A thousand rounds in the features' own coordinates leave a gradient of 0.1."""
    train = features_of(200, seed=10, spread=0.5)
    scales_D = torch.logspace(-2, 2, 12)
    given = Features(train.ids_N, train.labels_NL, train.features_ND * scales_D + 5)
    x, y = given.features_ND.double().numpy(), train.labels_NL[:, 0].numpy()
    probe = fit_lbfgs(given, 4, 1e-4, CPU, rounds=100)
    assert probe.gradient <= 1e-6
    reference = LogisticRegression(C=1 / (len(x) * 1e-4), solver="newton-cholesky", tol=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference.fit(x, y)
    ours = probe.logits(given.features_ND).softmax(1).numpy()
    assert np.abs(ours - reference.predict_proba(x)).max() < 1e-6


def scaled(features, by, offset_ND=0.0):
    return Features(features.ids_N, features.labels_NL, features.features_ND * by + offset_ND)


def test_whether_the_probe_came_to_its_minimum_does_not_depend_on_the_unit_of_features():
    """In the features' own coordinates the gradient grows with their unit."""
    train = features_of(200, seed=11, spread=0.5)
    for unit in (1e-4, 1e4):
        large = scaled(train, unit)
        short = fit_lbfgs(train, 4, 1e-4, CPU, rounds=3)
        assert fit_lbfgs(large, 4, 1e-4 * unit**2, CPU, rounds=3).gradient == pytest.approx(
            short.gradient, rel=1e-3
        )
        assert short.gradient > 1e-6
        for l2 in (1e-4, 1e-4 * unit**2):
            assert fit_lbfgs(large, 4, l2, CPU).gradient <= 1e-6


@pytest.mark.parametrize("l2", [0.0, 1e-6])
def test_fewer_images_than_features_that_go_together_have_a_probe(l2):
    train = features_of(30, seed=12, width=100)
    common_ND = 1e5 * torch.linspace(-1, 1, 30)[:, None] * torch.ones(100)
    given = scaled(train, 1e3, common_ND)
    probe = fit_lbfgs(given, 4, l2, CPU, rounds=100)
    assert scored(probe, given, ALONE)[0] == 1


def test_the_spread_of_the_same_rows_is_asked_for_once(monkeypatch):
    """Once for the sweep, once for the whole set."""
    sets = []

    def counted(rows, device):
        sets.append(len(rows))
        return spread_of(rows, device)

    monkeypatch.setattr("supmim_scale.evaluation.probe.spread_of", counted)
    probe_figures(features_of(40, seed=13), features_of(10, seed=14), 4, "lbfgs", ALONE)
    assert sets == [36, 40]


def test_the_probe_of_several_labels_is_a_regression_a_class():
    train = features_of(150, seed=2, labels=2)
    probe = fit_lbfgs(train, 4, 1e-2, CPU)
    truth = one_hot(train.labels_NL, 4).numpy()
    x = train.features_ND.double().numpy()
    ours = probe.logits(train.features_ND).sigmoid().numpy()
    for k in range(4):
        reference = LogisticRegression(C=1 / (len(x) * 1e-2), solver="newton-cg", tol=1e-12)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reference.fit(x, truth[:, k])
        assert np.abs(ours[:, k] - reference.predict_proba(x)[:, 1]).max() < 1e-6


def test_sgd_learns_what_can_be_learned_and_the_sweep_says_its_choice():
    train, held_out = features_of(200, seed=3, spread=3), features_of(60, seed=4, spread=3)
    assert scored(fit_sgd(train, 4, 0.1, ALONE, epochs=20, batch=32), held_out, ALONE)[0] > 0.95
    row = probe_figures(train, held_out, 4, "lbfgs", ALONE)
    assert row["probe_top1"] > 0.95
    assert row["probe_l2"] in (1e-1, 1e-2, 1e-3)
    assert row["probe_on_edge"] == (row["probe_l2"] == 1e-1)
    assert row["probe_converged"]
    assert row["probe_gradient"] <= 1e-6
    assert fit_lbfgs(train, 4, 1e-6, CPU, rounds=2).gradient > 1e-6


def tenth(train):
    """(the tenth that the sweep is measured on, the rest)."""
    order = np.random.default_rng(0).permutation(len(train))
    return train.rows(order[: len(train) // 10]), train.rows(order[len(train) // 10 :])


@pytest.mark.parametrize("solver", ["lbfgs", "sgd"])
def test_the_sweep_is_decided_by_a_tenth_of_the_training_set_and_nothing_else(solver):
    """Sets whose best value by that tenth is neither the best on the rest nor on the evaluation
    set; each value is fitted on nine tenths, the chosen one on all."""
    values, name = (L2, "probe_l2") if solver == "lbfgs" else (LEARNING_RATES, "probe_lr")
    seed = 72 if solver == "lbfgs" else 20
    train, held_out = features_of(100, seed, spread=0.3), features_of(60, seed + 100, spread=0.3)
    kept, rest = tenth(train)

    def fit(rows, value, rounds=100):
        if solver == "lbfgs":
            return fit_lbfgs(rows, 4, value, CPU, rounds)
        return fit_sgd(rows, 4, value, ALONE)

    probes = [fit(rest, value) for value in values]
    best = {
        what: int(np.argmax([scored(probe, rows, ALONE)[0] for probe in probes]))
        for what, rows in (("tenth", kept), ("rest", rest), ("evaluation", held_out))
    }
    assert best["tenth"] not in (best["rest"], best["evaluation"]), best
    row = probe_figures(train, held_out, 4, solver, ALONE)
    assert row[name] == values[best["tenth"]]
    whole = fit(train, values[best["tenth"]], 1000)
    assert (row["probe_top1"], row["probe_top5"]) == scored(whole, held_out, ALONE)


def test_the_probe_does_not_depend_on_the_number_of_ranks():
    train, held_out = features_of(31, seed=18), features_of(13, seed=19)
    alone = fit_lbfgs(train, 4, 1e-2, CPU)
    for row in on_ranks(3, lambda world: scored(alone, held_out, world)):
        assert row == scored(alone, held_out, ALONE)
    for solver in ("sgd", "lbfgs"):
        figures = probe_figures(train, held_out, 4, solver, ALONE)
        found = on_ranks(2, lambda world, s=solver: probe_figures(train, held_out, 4, s, world))
        assert found == [figures] * 2


def test_features_are_standardised_as_numpy_does():
    train = features_of(70, seed=9)
    probe = fit_sgd(train, 4, 0.1, ALONE, epochs=1)
    rows = train.features_ND.double().numpy()
    assert np.abs(probe.mean_D.numpy() - rows.mean(0)).max() < 1e-12
    assert np.abs(probe.scale_D.numpy() - rows.std(0)).max() < 1e-12


def test_few_shot_is_ridge_regression_in_both_spaces():
    for count in (8, 40):  # fewer images than the 12 features, and more
        train = features_of(count, seed=5)
        ours = fit_ridge(train, 4, 1.0, ALONE.device)
        x = train.features_ND.double().numpy()
        reference = Ridge(alpha=1.0).fit(x, 2 * one_hot(train.labels_NL, 4).numpy() - 1)
        assert np.abs(ours.logits(train.features_ND).numpy() - reference.predict(x)).max() < 1e-6


def test_shots_are_drawn_a_class_and_what_a_class_cannot_give_is_left_out():
    train = features_of(60, seed=6, spread=3)
    places = draw_shots(train.labels_NL, 5, seed=0)
    assert np.bincount(train.labels_NL[places, 0]).tolist() == [5] * 4
    assert len(np.unique(places)) == 20
    few = train.rows(places[:17])
    row = few_shot_figures(few, train, 4, ALONE)
    assert set(row) == {"few_shot1_top1", "few_shot1_std"}
    assert few_shot_figures(train, train, 4, ALONE)["few_shot10_top1"] > 0.9


def test_sgd_sees_every_image_once_an_epoch_and_no_epoch_in_the_order_of_another():
    class Noted(Features):
        def rows(self, places):
            seen.append(places.tolist())
            return super().rows(places)

    seen, train = [], features_of(40, seed=22)
    fit_sgd(Noted(train.ids_N, train.labels_NL, train.features_ND), 4, 0.1, ALONE, 3, batch=8)
    assert [len(places) for places in seen] == [8] * 15
    epochs = [list(chain.from_iterable(seen[first : first + 5])) for first in (0, 5, 10)]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize(("left", "converged"), [(1e-6, True), (1.1e-6, False)])
def test_a_probe_has_converged_where_no_gradient_is_above_a_millionth(monkeypatch, left, converged):
    def fit(*given):
        return replace(fit_lbfgs(*given), gradient=left)

    monkeypatch.setattr("supmim_scale.evaluation.probe.fit_lbfgs", fit)
    row = probe_figures(features_of(20, seed=24), features_of(5, seed=25), 4, "lbfgs", ALONE)
    assert (row["probe_gradient"], row["probe_converged"]) == (left, converged)


def test_what_has_no_label_has_no_probe():
    train = features_of(40, seed=23)
    none = Features(train.ids_N, torch.full((40, 1), -1), train.features_ND)
    some = Features(train.ids_N, train.labels_NL.clone(), train.features_ND)
    some.labels_NL[7] = -1
    for unlabelled in (none, some):
        with pytest.raises(UserError, match="images without a label"):
            probe_figures(unlabelled, train, 4, "lbfgs", ALONE)


def test_few_shots_mean_and_deviation_are_over_its_five_draws():
    train, held_out = features_of(80, seed=20, spread=0.5), features_of(50, seed=21, spread=0.5)
    row = few_shot_figures(train, held_out, 4, ALONE)

    def unit(features):
        rows_ND = torch.nn.functional.normalize(features.features_ND.double(), dim=1)
        return Features(features.ids_N, features.labels_NL, rows_ND)

    for shots in (1, 5, 10):
        tops = []
        for seed in range(5):
            few = unit(train.rows(draw_shots(train.labels_NL, shots, seed)))
            tops.append(scored(fit_ridge(few, 4, 1.0, ALONE.device), unit(held_out), ALONE)[0])
        mean = sum(tops) / 5
        deviation = (sum((top - mean) ** 2 for top in tops) / 4) ** 0.5
        assert deviation > 0
        assert row[f"few_shot{shots}_top1"] == pytest.approx(mean, abs=1e-12)
        assert row[f"few_shot{shots}_std"] == pytest.approx(deviation, abs=1e-12)


def test_a_set_too_small_for_a_probe_is_refused():
    with pytest.raises(UserError, match="--probe"):
        probe_figures(features_of(19, seed=7), features_of(5, seed=8), 4, "lbfgs", ALONE)

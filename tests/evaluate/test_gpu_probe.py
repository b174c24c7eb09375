"""The linear probe on a GPU; `pytest -m gpu` there."""

import pytest
import torch
from eval_fixture import ALONE, features_of

from supmim_scale.evaluation.features import Features
from supmim_scale.evaluation.probe import fit_lbfgs, fit_sgd, probe_figures
from supmim_scale.launch.world import World

pytestmark = pytest.mark.gpu
CUDA = World(0, 0, 1, torch.device("cuda", 0), "none")


@pytest.fixture
def sets(monkeypatch):
    """(training, held-out) features that overlap, in chunks of 64."""
    monkeypatch.setattr("supmim_scale.evaluation.probe.ROWS", 64)
    return tuple(features_of(n, seed=n, width=32, spread=0.4) for n in (400, 90))


@pytest.mark.parametrize("fit", [fit_sgd, fit_lbfgs])
def test_the_probe_is_the_cpus_whether_its_features_lie_on_the_gpu_or_not(fit, sets):
    train, held_out = sets
    where = (lambda world: world) if fit is fit_sgd else (lambda world: world.device)
    expected_NK = fit(train, 4, 0.01, where(ALONE)).logits(held_out.features_ND)
    for given in (train, train.on(CUDA.device)):
        logits_NK = fit(given, 4, 0.01, where(CUDA)).logits(held_out.features_ND)
        assert logits_NK.device == CUDA.device
        assert (logits_NK.cpu() - expected_NK).abs().max() < 1e-6


@pytest.mark.parametrize("solver", ["lbfgs", "sgd"])
@pytest.mark.parametrize("free_bytes", [None, 1024])
def test_figures_are_the_cpus_however_little_memory_is_free(solver, free_bytes, sets, monkeypatch):
    expected = probe_figures(*sets, 4, solver, ALONE)
    assert 0.3 < expected["probe_top1"] < 1
    uploaded, upload = [], Features.on

    def counted(rows, device):
        found = upload(rows, device)
        uploaded.append(found is not rows)
        return found

    monkeypatch.setattr(Features, "on", counted)
    if free_bytes is not None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (free_bytes, 1 << 34))
    found = probe_figures(*sets, 4, solver, CUDA)
    assert uploaded == [free_bytes is None] * 3  # the chosen on, the fitted, and all
    assert found == pytest.approx(expected, abs=1e-6)

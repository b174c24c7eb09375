"""What `eval.json` keeps of earlier calls."""

from supmim_scale.evaluation.results import merged

OF = {"weights_digest": "w", "set_digest": "s"}


def test_figures_of_one_measure_are_of_one_call():
    kept = {**OF, "top1": 0.5, "probe_top1": 0.6, "probe_l2": 1e-3, "probe_converged": True}
    sgd = {**OF, "top1": 0.5, "probe_top1": 0.7, "probe_lr": 0.1}
    assert merged(kept, sgd) == sgd
    assert merged(kept, {**OF, "knn_top1": 0.4}) == {**kept, "knn_top1": 0.4}
    assert merged(kept, {**sgd, "weights_digest": "other"}) == {**sgd, "weights_digest": "other"}

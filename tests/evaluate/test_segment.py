"""Segmentation: mIoU beside scikit-learn and torchmetrics, windows, both layouts, refusals."""

import numpy as np
import pytest
import torch
from eval_fixture import ALONE, write_set
from PIL import Image
from sklearn.metrics import jaccard_score
from torchmetrics.functional.classification import multiclass_jaccard_index

from supmim_scale.evaluation.segment import (
    SegmentSettings,
    confusion,
    open_parts,
    scores_of,
    segment_figures,
    slide,
)
from supmim_scale.evaluation.segment_sets import IGNORE, open_masks
from supmim_scale.evaluation.subject import open_subject

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("seed", range(3))
def test_miou_is_that_of_two_libraries_with_the_ignored_label(seed):
    rng = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, 5, (4, 30, 31), generator=rng)
    predicted = torch.where(
        torch.rand(truth.shape, generator=rng) < 0.6, truth, torch.randint(0, 5, truth.shape)
    )
    truth[torch.rand(truth.shape, generator=rng) < 0.2] = IGNORE
    iou_K, accuracy = scores_of(
        sum(confusion(p, t, 5) for p, t in zip(predicted, truth, strict=True))
    )
    kept = truth != IGNORE
    pair = (truth[kept].numpy(), predicted[kept].numpy())
    assert np.abs(iou_K.numpy() - jaccard_score(*pair, average=None)).max() < 1e-6
    theirs = multiclass_jaccard_index(predicted, truth, 5, ignore_index=IGNORE)
    assert iou_K.mean().item() == pytest.approx(theirs.item(), abs=1e-6)
    assert accuracy == (pair[0] == pair[1]).mean()


HALVES = torch.arange(8).expand(6, 8) // 4  # class 0 on the left, 1 on the right
IGNORED_EDGE = HALVES.clone()
IGNORED_EDGE[:, 4] = IGNORE


@pytest.mark.parametrize(
    ("truth", "predicted", "expected"),
    [
        (HALVES, HALVES, [1, 1]),
        (HALVES, 1 - HALVES, [0, 0]),
        (HALVES, HALVES.roll(1, dims=1), [3 / 5, 3 / 5]),
        (HALVES, torch.zeros_like(HALVES), [1 / 2, 0]),
        # One column fewer of class 1: what is predicted where nothing is labelled does not count.
        (IGNORED_EDGE, torch.zeros_like(HALVES), [4 / 7, 0]),
        (IGNORED_EDGE, HALVES.where(IGNORED_EDGE != IGNORE, 2), [1, 1]),
        (IGNORED_EDGE, HALVES.where(HALVES == 0, 2), [1, 0, 0]),
    ],
    ids=["right", "wrong", "shifted", "one class", "ignored", "wrong where ignored", "a third"],
)
def test_constructed_masks_have_the_iou_of_the_drawing_and_of_scikit_learn(
    truth, predicted, expected
):
    iou_K, accuracy = scores_of(confusion(predicted, truth, 3))
    kept = truth != IGNORE
    pair = (truth[kept].numpy(), predicted[kept].numpy())
    classes = list(range(len(expected)))
    theirs = jaccard_score(*pair, labels=classes, average=None)
    assert iou_K[classes].tolist() == pytest.approx(expected, abs=1e-12)
    assert np.abs(iou_K[classes].numpy() - theirs).max() < 1e-6
    assert iou_K[len(expected) :].isnan().all()
    assert accuracy == (pair[0] == pair[1]).mean()


def test_a_class_that_is_nowhere_does_not_count():
    truth = torch.tensor([[0, 0, 1, IGNORE]])
    iou_K, accuracy = scores_of(confusion(torch.tensor([[0, 1, 1, 2]]), truth, 4))
    assert iou_K[:2].tolist() == [0.5, 0.5]
    assert iou_K[2:].isnan().all()
    assert accuracy == pytest.approx(2 / 3)


@pytest.mark.parametrize("shape", [(8, 8), (8, 21), (30, 9), (17, 40)])
def test_windows_see_every_pixel_and_their_mean_is_taken(shape):
    image_CHW = torch.randn(3, *shape)
    assert torch.allclose(slide(lambda windows: windows, image_CHW, size=8), image_CHW, atol=1e-6)


@pytest.mark.parametrize(("layout", "finetune"), [("voc", False), ("ade", True)])
def test_a_linear_head_learns_what_patches_tell(layout, finetune, run_dir, tmp_path, cli):
    root = write_set(tmp_path / "set", layout)
    words = ["--segment-finetune"] if finetune else []
    code, row, _ = cli(
        "eval", run_dir, "--segment", root, "--segment-steps", 80, "--segment-classes", 3, *words
    )
    assert code == 0
    name = "segment_finetuned" if finetune else "segment_linear"
    assert row[f"{name}_images"] == 6
    assert row[f"{name}_miou"] > 0.5
    assert "top1" not in row  # segmentation alone needs no classified images
    with Image.open(run_dir / "eval/segmentation.png") as picture:
        assert picture.size == (3 * 200, 6 * 152)


def test_a_frozen_encoder_stays_as_it_was(run_dir, tmp_path):
    root = write_set(tmp_path / "set", "voc", count=2)
    subject = open_subject(str(run_dir), None, None, [])
    before = {name: t.clone() for name, t in subject.encoder.state_dict().items()}
    settings = SegmentSettings(root, steps=3, batch=2, classes=3)
    parts = open_parts(subject, settings)
    rows = [segment_figures(subject, parts, settings, ALONE)[0] for _ in range(2)]
    assert rows[0] == rows[1]
    for name, tensor in subject.encoder.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_unlabelled_pixels_are_told_apart_in_both_layouts(tmp_path):
    for layout in ("ade", "voc"):
        masks = open_masks(write_set(tmp_path / layout, layout), "val", 3)
        mask_HW = masks.mask(0)
        assert (mask_HW[:2] == IGNORE).all()
        assert mask_HW[2:].unique().tolist() == [0, 1, 2]


def test_sets_that_cannot_be_are_one_clear_line(run_dir, tmp_path, refused):
    refused(["eval", run_dir, "--segment", tmp_path], "ADE20K or Pascal VOC")
    root = write_set(tmp_path / "set", "voc")
    refused(
        ["eval", run_dir, "--segment", root, "--segment-classes", "2", "--segment-steps", "9"],
        "the value 2",
        "--segment-classes",
    )
    Image.new("L", (9, 9)).save(root / "SegmentationClass/train0.png")
    Image.new("L", (9, 9)).save(root / "SegmentationClass/val0.png")
    refused(
        ["eval", run_dir, "--segment", root, "--segment-steps", "1"], "shape [9, 9]", "[56, 64]"
    )
    (root / "SegmentationClass/val1.png").unlink()
    refused(["eval", run_dir, "--segment", root], "no ", "val1.png")

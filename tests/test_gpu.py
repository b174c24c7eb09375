"""What only a GPU can show; `pytest -m gpu` there."""

import json

import pytest
import torch
from conftest import SMALL, command

from supmim_scale.config.experiment import AugmentConfig
from supmim_scale.data.dali import ViewSpec
from supmim_scale.data.dataset import open_dataset
from supmim_scale.data.loader import Share, ViewSettings, evaluation_batches, training_batches
from supmim_scale.data.order import SampleOrder
from supmim_scale.data.readers import SampleLayout

pytestmark = pytest.mark.gpu


def test_a_short_run_trains_in_bf16_under_zero3(shards, tmp_path):
    command("train", "smoke", *SMALL, f"input.root={shards}", f"log.run_dir={tmp_path}/run")
    lines = (tmp_path / "run/log.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines if '"train"' in line]
    assert all(torch.isfinite(torch.tensor(losses)))
    assert json.loads((tmp_path / "run/ds_config.json").read_text())["bf16"]["enabled"]


def test_the_gpu_decodes_what_the_cpu_decodes(shards):
    held_out = open_dataset(shards, "val", SampleLayout())

    def views(decoder, device):
        settings = ViewSettings(ViewSpec(32, 0.5, 0.5, decoder=decoder))
        batches = evaluation_batches(held_out, settings, batch=8, device=torch.device(device))
        return torch.cat([batch.images_BCHW.cpu() for batch in batches])

    gap = (views("mixed", "cuda:0") - views("cpu", "cpu")).abs() * 127.5
    assert gap.mean() < 2  # the GPU's inverse cosine transform rounds differently


@pytest.mark.parametrize("kind", ["rand_augment", "trivial_augment", "three_augment"])
def test_the_gpu_augments_as_the_cpu_does(shards, kind):
    train = open_dataset(shards, "train", SampleLayout())
    order = SampleOrder(train.sizes, seed=0, lanes=3)
    augment = AugmentConfig(kind, color_jitter=0.3, erase_prob=0.5)

    def views(decoder, device):
        settings = ViewSettings(ViewSpec(32, 0.5, 0.5, decoder=decoder, augment=augment))
        batches = training_batches(
            train, order, settings, Share(48), seed=0, device=torch.device(device)
        )
        return next(batches).images_BCHW.cpu()

    gap = (views("mixed", "cuda:0") - views("cpu", "cpu")).abs() * 127.5
    assert gap.median() < 3  # equalised and solarised levels may tip over

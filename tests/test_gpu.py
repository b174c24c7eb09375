"""What only a GPU can show; `pytest -m gpu` there."""

import json

import pytest
import torch
from conftest import SMALL, command

from supmim_scale.data.dataset import open_dataset
from supmim_scale.data.loader import ViewSettings, evaluation_batches

pytestmark = pytest.mark.gpu


def test_a_short_run_trains_in_bf16_under_zero3(shards, tmp_path):
    command("train", "smoke", *SMALL, f"input.root={shards}", f"log.run_dir={tmp_path}/run")
    lines = (tmp_path / "run/log.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines if '"train"' in line]
    assert all(torch.isfinite(torch.tensor(losses)))
    assert json.loads((tmp_path / "run/ds_config.json").read_text())["bf16"]["enabled"]


def test_the_gpu_decodes_what_the_cpu_decodes(shards):
    held_out = open_dataset(shards, "val", "val", None, 16, single_label=True)

    def views(decoder, device):
        settings = ViewSettings(32, 0.5, 0.5, (0.3, 1.0), True, 1.0, decoder, 0.65, 2, 2)
        batches = evaluation_batches(
            held_out, settings, batch=8, rank=0, world_size=1, device=torch.device(device)
        )
        return torch.cat([batch.images_BCHW.cpu() for batch in batches])

    gap = (views("mixed", "cuda:0") - views("cpu", "cpu")).abs() * 127.5
    assert gap.mean() < 2  # the GPU's inverse cosine transform rounds differently

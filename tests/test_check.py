"""`check` refuses what `train` would, with the same line."""

import pytest
from conftest import SMALL
from torch import distributed as dist

from supmim_scale.cli.main import main


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "words",
    [
        "model.init_from=nowhere.safetensors",
        "mim.codebook_size=5000",
        "model.image_size=8",
        "model.decoder_heads=5",
        "engine.attention=cudnn",
        "engine.fp8=linears",
        "engine.ds_config=zero4",
        "input.decoder=mixed",
        "data.val=train",
        "data.train=nowhere",
        "optim.warmup_steps=9",
        "model.num_classes=4",
        "optim.global_batch=-3",
        "seed=nan",
    ],
)
def test_one_line_for_both(capsys, shards, tmp_path, words):
    key = words.partition("=")[0]
    small = [word for word in SMALL if not word.startswith(f"{key}=")]
    recipe = ["smoke", *small, "engine.kind=plain", f"input.root={shards}", words]
    recipe = [word for word in recipe if key != "engine.ds_config" or word != "engine.kind=plain"]
    run = f"log.run_dir={tmp_path / 'run'}"
    lines = []
    for command in ("check", "train"):
        assert main([command, *recipe, run]) == 2
        lines += [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
        if dist.is_initialized():
            dist.destroy_process_group()
    assert len(lines) == 2
    assert lines[0] == lines[1]
    assert not (tmp_path / "run").exists()


def test_a_run_whose_loss_is_no_number_at_its_end_does_not_end_well(capsys, shards, tmp_path):
    words = ["engine.kind=plain", "mim.weight=0", "optim.lr=1e38", "watch.skipped_in_a_row=9"]
    run = [f"input.root={shards}", f"log.run_dir={tmp_path / 'run'}"]
    assert main(["train", "smoke", *SMALL, *words, *run]) == 2
    assert "error: loss: found nan after the last step" in capsys.readouterr().err
    assert (tmp_path / "run/checkpoints/latest").read_text() == "step-00000004\n"

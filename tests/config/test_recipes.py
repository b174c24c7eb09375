import json

import pytest
import torch

from supmim_scale.build.model import recipe_model
from supmim_scale.config import digest, load_config, recipe_names
from supmim_scale.config.checks import accumulation_steps

GIVEN = {
    "smoke",
    "vitb14_in1k",
    "vitl16_in21k",
    "vitl14_in21k",
    "vith14_in21k",
    "vitg14_in21k",
    "vitg14_jft",
}


def test_the_promised_recipes_are_there():
    assert set(recipe_names()) == GIVEN


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_loads_states_its_lab_note_and_builds_on_meta(name):
    config = load_config(name)
    assert all(vars(config.about).values())
    assert name in config.about.command
    with torch.device("meta"):
        model = recipe_model(config, out_features=config.mim.codebook_size)
    assert model.decoder is not None
    assert all(param.is_meta for param in model.parameters())


@pytest.mark.parametrize("name", recipe_names())
def test_batch_numbers_multiply_out_on_the_stated_nodes(name):
    config = load_config(name)
    nodes = config.about.hardware.split()[0]
    ranks = 2 if name == "smoke" else int(nodes) * 8
    micro, accumulation = accumulation_steps(config, ranks)
    assert micro * accumulation * ranks == config.optim.global_batch


def test_the_digest_names_the_half_that_may_change_the_result():
    base = digest(load_config("smoke"))
    assert digest(load_config("smoke", ["optim.lr=0.5"])) != base
    assert digest(load_config("smoke", ["seed=1"])) != base
    assert digest(load_config("smoke", ["engine.ds_config=zero1", "log.every=7"])) == base


def test_a_resolved_recipe_loads_as_an_equal_one(tmp_path):
    from supmim_scale.config import as_yaml

    config = load_config("smoke", ["optim.lr=3e-4", "model.depth=null", "log.run_dir=x"])
    path = tmp_path / "recipe.yaml"
    path.write_text(as_yaml(config))
    assert load_config(str(path)) == config


def test_deepspeed_accepts_every_file_we_ship():
    deepspeed_config = pytest.importorskip("deepspeed.runtime.zero.config").DeepSpeedZeroConfig
    from supmim_scale.engine.ds_config import complete_ds_config, find_ds_config, load_ds_config

    folder = find_ds_config("zero3").parent
    assert {p.stem for p in folder.glob("*.json")} == {"zero1", "zero2", "zero3", "zero3_offload"}
    for path in folder.glob("*.json"):
        whole = complete_ds_config(
            load_ds_config(path.stem),
            micro_batch=4,
            accumulation=1,
            precision="bf16",
            policy="selective",
            clip_grad_norm=1.0,
            block_params=10**7,
        )
        zero = deepspeed_config(**whole["zero_optimization"])
        assert zero.stage == json.loads(path.read_text())["zero_optimization"]["stage"]
        if zero.stage == 3:
            assert zero.max_live_parameters == 4 * 10**7

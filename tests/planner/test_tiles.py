"""Whole attention tiles, and what is said where they are not."""

import re

import pytest

from supmim_scale.cli.main import main
from supmim_scale.config import load_config
from supmim_scale.planner.tiles import tile_line, tokens_of, wasted


@pytest.mark.parametrize(
    "recipe", ["vitb14_in1k", "vitl14_in21k", "vith14_in21k", "vitg14_in21k", "vitg14_jft"]
)
def test_recipes_of_14_pixel_patches_are_whole_in_every_pass(recipe):
    config = load_config(recipe)
    assert tokens_of(config) == {"clean pass": 256, "masked pass": 128, "decoder": 256}
    assert tile_line(config) is None


def test_a_plan_tells_what_is_not_whole(capsys):
    recipe = ["vitl16_in21k", "optim.global_batch=64", "engine.micro_batch=8", "model.depth=2"]
    assert main(["plan", *recipe, "--gpu", "a100", "--nodes", "1"]) == 0
    text = capsys.readouterr().out
    assert "clean pass 196 tokens (47% of the last tile empty), masked pass 98 tokens" in text
    assert "whole with model.image_size=256 or model.patch_size=14" in text


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("vitl16_in21k", []),
        ("vitl14_in21k", ["mask.ratio=0.75"]),
        ("vitl14_in21k", ["mask.ratio=0.4", "model.image_size=252"]),
        ("vitl16_in21k", ["mim.layout=masked_only"]),
        ("vitl16_in21k", ["mim.weight=0"]),
        ("vitl14_in21k", ["mask.ratio=0.4", "mask.ratio_max=0.9"]),
    ],
    ids=str,
)
def test_what_is_advised_makes_tiles_whole(recipe, overrides):
    line = tile_line(load_config(recipe, overrides))
    assert line
    sizes = re.findall(r"model\.\w+=\d+", line)
    ratio = re.findall(r"mask\.ratio=[\d.]+", line)
    assert sizes or ratio
    for size in sizes or [""]:
        words = [word for word in (size, *ratio) if word]
        assert tile_line(load_config(recipe, [*overrides, *words])) is None


def test_a_token_beside_the_patches_opens_a_tile_that_is_nearly_empty():
    config = load_config("vitl14_in21k", ["model.class_token=true"])
    assert wasted(tokens_of(config)["clean pass"]) == 127 / 128
    assert "model.class_token" in (tile_line(config) or "")


def test_where_no_ratio_is_whole_it_is_said_what_would_be():
    config = load_config("vitl14_in21k", ["mask.ratio=0.2", "mask.ratio_max=0.4"])
    assert "a mask.ratio that leaves 128 tokens" in (tile_line(config) or "")


def test_drawn_ratios_keep_what_their_smallest_leaves():
    config = load_config("vitl14_in21k", ["mask.ratio=0.5", "mask.ratio_max=0.9"])
    assert tokens_of(config)["masked pass"] == 128

"""One line of one file says a key's type, default, range, unit and meaning."""

from dataclasses import asdict

import pytest
from conftest import ROOT

from supmim_scale.cli.main import main
from supmim_scale.config import as_yaml, load_config
from supmim_scale.config.fields import Range
from supmim_scale.config.keys import all_keys, keys_like, reference
from supmim_scale.config.schema import IDENTITY_SECTIONS
from supmim_scale.errors import UserError

NUMBERS = [key for key in all_keys() if key.is_number]


def test_every_key_of_a_resolved_recipe_is_listed_and_means_something():
    whole = asdict(load_config("smoke"))
    whole.pop("about")
    seed = whole.pop("seed")
    names = {f"{section}.{key}" for section, keys in whole.items() for key in keys} | {"seed"}
    assert seed == 0
    assert {key.name for key in all_keys()} == names
    assert all(len(key.meaning) > 10 for key in all_keys())


def test_every_number_has_a_range():
    assert [key.name for key in NUMBERS if key.range is None] == []
    assert len(NUMBERS) > 60


@pytest.mark.parametrize("key", NUMBERS, ids=lambda key: key.name)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1e9"])
def test_no_key_takes_what_is_no_number_or_beyond_its_range(key, value):
    with pytest.raises(UserError) as error:
        load_config("smoke", [f"{key.name}={value}"])
    assert error.value.where == f"command line: {key.name}"


@pytest.mark.parametrize("key", NUMBERS, ids=lambda key: key.name)
def test_a_default_lies_in_its_own_range(key):
    if key.default not in (None, "null"):
        assert key.range.holds(float(key.default))


@pytest.mark.parametrize(
    ("interval", "inside", "outside", "words"),
    [
        ("[0, 1)", [0, 0.5], [1, -0.1], "0 or more, below 1"),
        ("(0, 1]", [1, 1e-9], [0, 1.1], "above 0, at most 1"),
        ("[0, 1]", [0, 1], [1.1, -1], "from 0 to 1"),
        ("(0, inf)", [1e300], [0, float("inf"), float("nan")], "above 0"),
        ("[1, inf)", [1], [0, float("inf")], "1 or more"),
    ],
)
def test_a_range_holds_finite_numbers_between_its_ends(interval, inside, outside, words):
    wanted = Range.of(interval)
    assert all(wanted.holds(value) for value in inside)
    assert not any(wanted.holds(value) for value in outside)
    assert str(wanted) == words


def test_the_halves_of_a_recipe_are_told_apart():
    for key in all_keys():
        assert key.changes_result == (key.name.partition(".")[0] in IDENTITY_SECTIONS)
        assert ("may change the result" in str(key)) == key.changes_result


def test_the_reference_page_is_current():
    """`supmim-scale recipes --keys --markdown > docs/keys.md` makes it."""
    assert (ROOT / "docs/keys.md").read_text() == reference()


def test_keys_are_found_by_pattern_by_part_and_by_meaning():
    assert {key.name.partition(".")[0] for key in keys_like("optim.*")} == {"optim"}
    assert "optim.warmup_steps" in {key.name for key in keys_like("warmup")}
    assert "engine.fp8" in {key.name for key in keys_like("torchao")}
    with pytest.raises(UserError, match="part of a key"):
        keys_like("no such thing at all")


def test_the_command_prints_what_a_key_takes(capsys):
    assert main(["recipes", "--keys", "optim.lr"]) == 0
    shown = capsys.readouterr().out
    assert "optim.lr  required  [number above 0]" in shown
    assert "peak learning rate" in shown
    assert main(["recipes", "--keys"]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 2 * len(all_keys()) - 1
    assert main(["recipes", "--markdown"]) == 2


def test_a_recipe_of_ones_own_needs_neither_a_lab_note_nor_a_name_of_its_data(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "model: {name: vit_ti16, num_classes: 3}\n"
        "optim: {global_batch: 8, lr: 1.0e-3, steps: 5}\n"
        f"input: {{root: {tmp_path}/three_birds}}\n"
    )
    config = load_config(str(path))
    assert config.data.name == "three_birds"
    assert load_config(str(path), ["input.root=elsewhere/cats"]).data.name == "cats"
    assert load_config(str(path), ["data.name=dogs"]).data.name == "dogs"
    path.write_text(as_yaml(config))
    assert load_config(str(path)) == config


def test_a_key_given_twice_on_the_command_line_is_refused(capsys):
    assert main(["check", "smoke", "optim.lr=1", "seed=3", "optim.lr=2"]) == 2
    assert "optim.lr: found 1 and 2; expected one value" in capsys.readouterr().err

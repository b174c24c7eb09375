"""A study's YAML file as runs, and what it may not say."""

import pyarrow.parquet
import pytest
import yaml
from conftest import SMALL, assert_refused, command

from supmim_scale.build.model import recipe_model
from supmim_scale.config import load_config
from supmim_scale.errors import UserError
from supmim_scale.jobs.arrays import waves_of
from supmim_scale.jobs.manifest import Study, StudyRun, read_manifest, write_manifest
from supmim_scale.studies.design import load_design

STUDY = {"name": "s", "recipe": "smoke", "grid": {"seed": [0, 1]}}
SIZES = {"w32": {"model.width": 32, "model.heads": 2}, "w64": {"model.width": 64}}
WSD = {"optim.schedule": "wsd", "optim.warmup_steps": 2, "optim.cooldown_steps": 10}


def designed(tmp_path, **tree):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return load_design(path)


def test_runs_are_all_combinations_the_cheapest_first(tmp_path):
    design = designed(
        tmp_path,
        name="s",
        recipe="smoke",
        sizes=SIZES,
        images=[6400, 1280],
        overrides={"optim.warmup_steps": 2},
        objectives={"alone": {"mim.weight": 0}, "joint": {}},
        seeds=[0, 1],
    )
    assert len(design.runs) == 2 * 2 * 2 * 2
    assert design.runs[0].run.name == "w32_alone_seed0_images1280"
    flops = [one.train_flops for one in design.runs]
    assert flops == sorted(flops)
    assert {one.arm for one in design.runs} == {"supervised", "joint"}
    last = design.runs[-1]
    assert (last.run.name, last.config.optim.steps) == ("w64_joint_seed1_images6400", 100)


def test_params_and_flops_are_those_of_the_model_that_trains(tmp_path):
    (one,) = designed(
        tmp_path, name="s", recipe="smoke", images=[640], overrides={"optim.warmup_steps": 2}
    ).runs
    config = load_config("smoke")
    model = recipe_model(config, 256)
    named = model.encoder.named_parameters()
    assert one.params == sum(p.numel() for name, p in named if not name.startswith("head."))
    assert one.images == 640


def test_iso_flop_rungs_cost_the_same_whatever_the_size(tmp_path):
    design = designed(
        tmp_path,
        name="s",
        recipe="smoke",
        sizes=SIZES,
        flops=[1.0e12, 4.0e12],
        overrides={"optim.warmup_steps": 2},
    )
    for one in design.runs:
        rung = 1e12 if "1e+12" in one.run.name else 4e12
        assert one.train_flops == pytest.approx(rung, rel=0.05)  # whole steps


def test_images_per_parameter_grow_with_the_model(tmp_path):
    design = designed(
        tmp_path,
        name="s",
        recipe="smoke",
        sizes=SIZES,
        images_per_param=[0.1],
        overrides={"optim.warmup_steps": 2},
    )
    assert [one.images / one.params for one in design.runs] == pytest.approx([0.1, 0.1], rel=0.05)


def test_lengths_of_one_schedule_share_their_steps(tmp_path):
    tree = {"name": "s", "recipe": "smoke", "images": [1280, 2560, 6400], "overrides": WSD}
    runs = designed(tmp_path, **tree).runs
    assert [one.run.parent for one in runs] == [None, "images1280", "images2560"]
    assert [one.shared_images for one in runs] == [0, 1280 - 640, 2560 - 640]
    assert sum(one.own_flops for one in runs) < sum(one.train_flops for one in runs)
    apart = designed(tmp_path, **tree, branch=False).runs
    assert [one.run.parent for one in apart] == [None, None, None]
    cosine = designed(tmp_path, **tree | {"overrides": {"optim.warmup_steps": 2}}).runs
    assert [one.run.parent for one in cosine] == [None, None, None]


def test_arms_are_objectives_and_schedules_and_the_supervised_one_is_called_so(tmp_path):
    design = designed(
        tmp_path,
        name="s",
        recipe="smoke",
        images=[6400],
        objectives={"alone": {"mim.weight": 0}, "half": {"mim.weight": 0.5}, "full": {}},
        schedules={"cos": {}, "wsd": WSD},
    )
    assert {one.arm for one in design.runs} == {
        "supervised, cos",
        "supervised, wsd",
        "half, cos",
        "half, wsd",
        "full, cos",
        "full, wsd",
    }
    plain = designed(tmp_path, name="s", recipe="smoke", grid={"mim.weight": [0, 1]})
    assert {one.arm for one in plain.runs} == {"supervised", "supervised + MIM, clean_and_masked"}


def test_nothing_is_shared_where_a_run_is_all_cool_down(tmp_path):
    short = WSD | {"optim.warmup_steps": 0}
    runs = designed(tmp_path, name="s", recipe="smoke", images=[640, 1280], overrides=short).runs
    assert [(one.run.parent, one.shared_images) for one in runs] == [(None, 0), (None, 0)]


def test_a_manifest_gives_back_its_runs(tmp_path):
    study = Study("f", (StudyRun("a", "smoke", ("seed=1",)), StudyRun("b", "smoke", (), "a")))
    write_manifest(study, tmp_path / "f")
    assert read_manifest(tmp_path / "f") == study
    other = Study("f", (StudyRun("a", "smoke", ("seed=2",)),))
    write_manifest(other, tmp_path / "f")  # nothing has run yet
    (tmp_path / "f/a").mkdir()
    with pytest.raises(UserError, match="another study"):
        write_manifest(study, tmp_path / "f")
    (tmp_path / "f/a").rmdir()
    (tmp_path / "f/submitted.jsonl").touch()  # pending elements would read other lines
    with pytest.raises(UserError, match="another study"):
        write_manifest(study, tmp_path / "f")


def test_a_run_waits_for_the_wave_of_what_it_branches_off_from():
    runs = [
        StudyRun("a", "r", ()),
        StudyRun("b", "r", ()),
        StudyRun("a2", "r", (), "a"),
        StudyRun("a3", "r", (), "a2"),
        StudyRun("b2", "r", (), "b"),
    ]
    study = Study("s", tuple(runs))
    assert waves_of(study, set(), set()) == ([(0, 1), (2, 4), (3,)], ())
    assert waves_of(study, {"a", "a2"}, set()) == ([(1, 3), (4,)], ())
    assert waves_of(study, set(), {"a"}) == ([(1,), (4,)], ("a2", "a3"))
    assert waves_of(study, {run.name for run in runs}, set()) == ([], ())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"grids": 1}, ["grids", "did you mean grid"]),
        ({"runs": {"a": {}}}, ["runs beside grid"]),
        ({"grid": {}}, ["neither axes nor runs"]),
        ({"grid": {"seed": 1}}, ["grid.seed", "a list"]),
        ({"grid": {"seed": [1, 1]}}, ["seed1", "two runs"]),
        ({"grid": {"model.width": [33]}}, ["run width33", "model.heads"]),
        ({"recipe": "smog"}, ["recipe", "smoke"]),
        ({"name": "../up"}, ["../up", "a name that no folder can have"]),
        ({"overrides": ["x"]}, ["overrides", "key: value"]),
        ({"overrides": {"data.name": "a\tb"}}, ["no tab or line break"]),
        ({"images": [1e3], "flops": [1e12]}, ["images and flops", "one of them"]),
        ({"images": [0]}, ["images", "numbers above 0"]),
        ({"images": [float("inf")]}, ["images", "inf"]),
        ({"images": [6400, 6410]}, ["seed0_images6410", "the same run as seed0_images6400"]),
        ({"images": [6400], "overrides": {"optim.steps": 9}}, ["optim.steps", "9 beside images"]),
        ({"seeds": [0, 1]}, ["seed", "set by two axes"]),
        ({"grid": {}, "runs": {"report": {}}}, ["runs beside grid"]),
        ({"name": "report"}, ["report", "no folder can have"]),
        ({"images": [64]}, ["run seed0_images64", "optim.warmup_steps"]),
        ({"branch": "no way"}, ["branch", "true or false"]),
        ({"recipe": "vitb14_in1k"}, ["optim.epochs", "optim.steps"]),
    ],
)
def test_a_wrong_study_is_one_line(tmp_path, change, expected):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY | change))
    done = command("study", "plan", tmp_path / "study.yaml", check=False)
    assert_refused(done, *expected)


def test_a_study_runs_on_a_laptop_and_goes_on_where_it_was(shards, tmp_path):
    import csv

    pairs = dict(word.split("=", 1) for word in SMALL)
    grid = {"seed": [0], "mim.weight": [0, 1.0]}
    tree = STUDY | {"grid": grid, "overrides": {**pairs, "input.root": str(shards)}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    words = ["study", "run", tmp_path / "study.yaml", "--ranks", 1]
    said = command(*words, SUPMIM_RUNS=str(tmp_path)).stdout
    assert "seed0_weight1.0: NOT STARTED" in said
    said = command(*words, SUPMIM_RUNS=str(tmp_path)).stdout
    assert "[2/2] seed0_weight1.0: COMPLETED" in said
    assert "step" not in said
    command("study", "collect", tmp_path / "s")
    with open(tmp_path / "s/runs.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["arm"].partition(",")[0] for row in rows] == ["supervised", "supervised + MIM"]
    assert pyarrow.parquet.read_table(tmp_path / "s/runs.parquet").num_rows == 2

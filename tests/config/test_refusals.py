"""One line, exit code 2, for every recipe mistake that is promised to be caught."""

import json

import pytest

from supmim_scale.cli.main import main
from supmim_scale.config import load_config
from supmim_scale.errors import UserError


def refused(capsys, *arguments):
    """The one line that a refused command prints."""
    assert main(list(arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.learning_rate=1", ["optim.learning_rate", "unknown key"]),
        ("optim.lrr=1", ["did you mean", "lr"]),
        ("optimm.lr=1", ["optimm", "did you mean optim"]),
        ("profile=true", ["profile", "did you mean log.profile?"]),
        ("lr=1e-3", ["did you mean optim.lr?"]),
        ("every=5", ["did you mean log.every or checkpoint.every?"]),
        ("optim.lr=fast", ["optim.lr", "'fast'", "a number"]),
        ("optim.steps=1.5", ["optim.steps", "whole number"]),
        ("data.flip=no", ["data.flip", "true or false"]),
        ("mim.layout=clean", ["mim.layout", "clean_and_masked"]),
        ("model.image_size=50", ["model.image_size", "50", "multiple of 8", "48"]),
        ("model.heads=3", ["model.heads", "divisor"]),
        ("model.pool=token", ["model.class_token=true"]),
        ("mask.ratio=1.0", ["mask.ratio"]),
        ("mask.ratio_max=0.2", ["mask.ratio"]),
        ("optim.lr=-1", ["optim.lr", "above 0"]),
        ("optim.epochs=2", ["optim.steps, optim.epochs", "both"]),
        ("optim.warmup_steps=1000", ["warm-up", "220"]),
        ("optim.cooldown_steps=9", ["cosine"]),
        ("mim.target=vqgan", ["mim.vqgan"]),
        ("data.reader=lmdb", ["data.reader", "webdataset, tfrecord, folder, list"]),
        ("data.reader=tfrecords", ["did you mean tfrecord"]),
        ("augment.kind=randaugment", ["did you mean rand_augment"]),
        ("augment.magnitude=9", ["augment.magnitude", "from 0 to 1"]),
        ("augment.mixup_alpha=-1", ["augment.mixup_alpha", "0 or more"]),
        ("input.bad_samples=ignore", ["input.bad_samples", "stop, skip"]),
        ("input.bad_rate=2", ["input.bad_rate", "from 0 to 1"]),
        ("input.readers=0", ["input.readers", "1 or more"]),
        ("loss.label_smoothing=2", ["from 0 to 1"]),
        ("nonsense", ["section.key=value"]),
        ("model.depth=0", ["model.depth", "1 or more"]),
        ("model.patch_size=0", ["model.patch_size", "1 or more"]),
        ("model.patch_size=-8", ["model.patch_size", "1 or more"]),
        ("model.width=130", ["model.heads", "divisor"]),
        ("model.decoder_heads=3", ["model.decoder_heads", "3 for width 64", "divisor"]),
        ("model.image_size=8", ["model.image_size", "one patch", "16"]),
        ("optim.lr=inf", ["optim.lr", "inf", "above 0"]),
        ("optim.lr=nan", ["optim.lr", "nan", "above 0"]),
        ("model.init_from=nowhere.safetensors", ["model.init_from", "no file nowhere.safetensors"]),
        ("model.init_from=timm/vit_nothing", ["model.init_from", "timm/vit_nothing"]),
        ("engine.attention=cudnn", ["engine.attention", "cudnn"]),
        ("input.decoder=mixed", ["input.decoder", "without a GPU"]),
        ("engine.fp8=linears", ["engine.fp8", "8.9"]),
        ("engine.ds_config=zero4", ["engine.ds_config", "zero3"]),
    ],
)
def test_a_wrong_override_is_one_line(capsys, override, words):
    line = refused(capsys, "check", "smoke", override)
    for word in words:
        assert word in line


@pytest.mark.parametrize("ranks", ["0", "-1"])
@pytest.mark.parametrize("command", ["check", "train"])
def test_a_number_of_ranks_that_cannot_be_started_is_one_line(capsys, command, ranks):
    assert "1 or more" in refused(capsys, command, "smoke", f"--ranks={ranks}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optim: {lr: 1e-4}", ["optim.lr", "text '1e-4'", "1.0e-4"]),
        ("mim: {layout: no}", ["mim.layout", "false", "yes/no/on/off"]),
        ("data: {name: no}", ["data.name", "quotes"]),
        ("data: {flip: 'no'}", ["data.flip", "true or false"]),
        ("optim: {steps: true}", ["optim.steps", "whole number"]),
        ("optim: 3", ["optim", "a section of keys"]),
        ("model: {depth: 2, depth: 3}", ["depth", "twice"]),
        ("model: [1", ["invalid YAML"]),
        ("warmup_steps: 5", ["warmup_steps", "did you mean optim.warmup_steps?"]),
        ("seed: 1", ["model", "add the key"]),
    ],
)
def test_a_wrong_recipe_file_is_one_line(capsys, tmp_path, text, words):
    path = tmp_path / "mine.yaml"
    base = ""
    if "seed" not in text and "[1" not in text:
        base = "about: {paper: p, command: c, hardware: h, expected: e}\n"
    path.write_text(base + text + "\n")
    line = refused(capsys, "check", str(path))
    for word in words:
        assert word in line


def test_numbers_typed_on_the_command_line_may_have_exponents():
    assert load_config("smoke", ["optim.lr=1e-4"]).optim.lr == 1e-4


def test_an_unknown_recipe_names_close_ones(capsys):
    assert "vitl16_in21k" in refused(capsys, "check", "vitl16_in21")


def test_a_missing_shard_folder_is_one_line(capsys, tmp_path):
    line = refused(capsys, "check", "smoke", f"input.root={tmp_path / 'none'}")
    assert "input.root" in line
    assert "data synth" in line


def test_an_empty_shard_folder_is_one_line(capsys, tmp_path):
    (tmp_path / "train").mkdir()
    assert "data.train" in refused(capsys, "check", "smoke", f"input.root={tmp_path}")


def test_a_pattern_that_leaves_the_root_is_one_line(capsys, tmp_path):
    line = refused(capsys, "check", "smoke", f"input.root={tmp_path}", "data.train=../other")
    assert "below input.root" in line


def test_more_classes_in_the_data_than_in_the_head_is_one_line(capsys, shards):
    line = refused(capsys, "check", "smoke", f"input.root={shards}", "model.num_classes=4")
    assert "model.num_classes=16" in line


def test_batch_numbers_that_do_not_multiply_out_are_one_line(capsys, shards):
    root = f"input.root={shards}"
    line = refused(capsys, "check", "smoke", root, "--ranks", "3")
    assert "optim.global_batch" in line
    line = refused(capsys, "check", "smoke", root, "engine.micro_batch=48")
    assert "48 x 1 ranks" in line


def test_a_pattern_without_a_match_is_one_line(capsys, shards):
    line = refused(capsys, "check", "smoke", f"input.root={shards}", "data.train=train/*.tgz")
    for word in ("data.train", "train/*.tgz", "no match"):
        assert word in line


@pytest.mark.parametrize("reader", ["tfrecord", "list", "folder"])
def test_shards_of_another_kind_are_one_line(capsys, shards, reader):
    line = refused(capsys, "check", "smoke", f"input.root={shards}", f"data.reader={reader}")
    assert "data.train" in line


def test_train_and_val_that_number_their_classes_apart_are_one_line(capsys, tmp_path):
    for folder in ("train/a", "train/b", "train/c", "val/a", "val/c"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x.jpg").write_bytes(b"x")
    recipe = ["check", "smoke", f"input.root={tmp_path}", "data.reader=folder", "mim.weight=0"]
    assert "class folder 'b' exists only in data.train" in refused(capsys, *recipe)
    (tmp_path / "classes.txt").write_text("".join(f"{name}\n" for name in "abcdefghijklmnop"))
    assert main([*recipe, f"data.classes={tmp_path / 'classes.txt'}"]) == 0


def test_more_ranks_than_shards_are_one_line_where_the_recipe_is_strict(capsys, shards):
    """Three shards: enough for two ranks, not for four, nor for two that mix pairs."""
    recipe = ["check", "smoke", f"input.root={shards}", "input.strict_shards=true"]
    assert main([*recipe, "--ranks", "2"]) == 0
    for more in (["--ranks", "4"], ["--ranks", "2", "augment.mixup_alpha=0.8"]):
        line = refused(capsys, *recipe, *more)
        assert "input.strict_shards" in line
        assert "3 shards read at the same time" in line


def test_a_class_list_of_another_length_is_one_line(capsys, shards):
    line = refused(
        capsys, "check", "smoke", f"input.root={shards}", "data.classes=timm/imagenet22k"
    )
    assert "set model.num_classes=21841" in line


def test_mixing_pairs_in_odd_micro_batches_is_one_line(capsys, shards):
    recipe = ["check", "smoke", f"input.root={shards}", "augment.cutmix_alpha=1"]
    assert "even micro-batch" in refused(capsys, *recipe, "engine.micro_batch=1")
    assert main([*recipe, "engine.micro_batch=2"]) == 0


def test_more_centres_than_patches_are_one_line(capsys, shards):
    recipe = ["check", "smoke", f"input.root={shards}", "mim.codebook_images=2"]
    assert "256 centres for 72 patches" in refused(capsys, *recipe)
    assert main([*recipe, "mim.codebook_size=72"]) == 0


def test_a_run_folder_that_is_a_file_is_one_line(capsys, shards, tmp_path):
    (tmp_path / "run").write_text("")
    recipe = ["check", "smoke", f"input.root={shards}"]
    for folder in ("run", "run/below"):
        line = refused(capsys, *recipe, f"log.run_dir={tmp_path / folder}")
        assert "which is a file" in line
    assert main([*recipe, f"log.run_dir={tmp_path / 'new/one'}"]) == 0
    assert not (tmp_path / "new").exists()


def test_plain_pytorch_on_several_ranks_is_one_line(capsys, shards):
    recipe = ["check", "smoke", f"input.root={shards}", "engine.kind=plain"]
    assert "plain with 2 ranks" in refused(capsys, *recipe, "--ranks", "2")


def test_held_out_images_that_are_the_training_images_are_one_line(capsys, shards):
    line = refused(capsys, "check", "smoke", f"input.root={shards}", "data.val=train")
    assert "data.val" in line
    assert "expected held-out images" in line


def test_nothing_to_learn_is_one_line(capsys):
    assert "loss.kind" in refused(capsys, "check", "smoke", "loss.kind=none", "mim.weight=0")


def test_a_quarantine_list_that_is_none_is_one_line(capsys, shards, tmp_path):
    (tmp_path / "list").write_text("nonsense\n")
    recipe = ["check", "smoke", f"input.root={shards}", f"input.quarantine={tmp_path / 'list'}"]
    assert "input.bad_samples=skip" in refused(capsys, *recipe)
    assert "data verify" in refused(capsys, *recipe, "input.bad_samples=skip")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}},
            ["reduce_bucket_size", "auto"],
        ),
        ({"zero_optimization": {"stage": 3}, "train_batch_size": 8}, ["optim.global_batch"]),
        ({"zero_optimization": {"stage": 3}, "bf16": {"enabled": True}}, ["engine.precision"]),
        ({"zero_optimization": {"stage": 3}, "optimizer": {}}, ["the optim section"]),
        ({"zero_optimization": {"stage": 3}, "gradient_clipping": 1}, ["optim.clip_grad_norm"]),
        ({"zero_optimization": {"stage": 0}}, ["engine.kind=plain"]),
        ([], ["JSON object"]),
    ],
)
def test_a_deepspeed_file_that_says_what_the_recipe_says_is_one_line(
    capsys, tmp_path, shards, content, words
):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(content))
    line = refused(capsys, "check", "smoke", f"input.root={shards}", f"engine.ds_config={path}")
    for word in words:
        assert word in line


def test_a_missing_deepspeed_file_names_those_there_are(capsys, shards):
    root = f"input.root={shards}"
    assert "zero3_offload" in refused(capsys, "check", "smoke", root, "engine.ds_config=zero4")


@pytest.mark.parametrize(
    "name",
    ["resnet50", "vit_nothing_patch16", "swin_tiny_patch4_window7_224", "vit_giant_patch14_dinov2"],
)
def test_a_model_that_is_no_plain_vit_is_one_line(capsys, shards, name):
    line = refused(
        capsys,
        "check",
        "smoke",
        f"input.root={shards}",
        f"model.name={name}",
        "model.patch_size=null",
        "model.width=null",
        "model.depth=null",
        "model.heads=null",
        "model.image_size=224",
    )
    assert "model.name" in line


def test_user_errors_survive_the_way_between_ranks():
    import pickle

    error = UserError("where", "found", "expected", "fix")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)

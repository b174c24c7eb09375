"""Who may import whom, over the whole syntax tree, so that local imports count too."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "supmim_scale"

# Each room may import the rooms above it, and itself. A line is a room.
ORDER = [
    "errors", "units", "variants", "draws", "upload", "flops", "report",
    "stopping", "launcher", "progress", "checksums", "tensor_files",
    "scaling",
    "config",
    "cluster",
    "models",
    "data",
    "optim",
    "assemble", "inputs",
    "engine",
    "engine_choice", "planner", "studies",
    "provenance", "preflight", "weights", "pictures", "evaluate", "export",
    "metrics", "profiling", "checkpoints",
    "saving", "watching", "run_folder", "branching", "opening",
    "run",
    "train",
    "data_commands", "planner_commands", "cluster_commands", "scaling_commands", "study_commands",
    "eval_commands",
    "cli", "__main__",
]  # fmt: skip
FLOOR = {room: place for place, room in enumerate(ORDER)}
# Strangers: neither may know the other although one stands above.
STRANGERS = [("data", "models"), ("data", "config"), ("models", "config"), ("engine", "config"),
             ("engine", "data"), ("models", "engine")]  # fmt: skip
# Third-party packages that one module, or one room, owns.
OWNERS = {
    "deepspeed": {"engine/zero.py"},
    "nvidia": {"data/dali.py"},
    "yaml": {"config/load.py"},
    "timm": {"models/encoder.py", "models/pretrained.py"},
    "torchmetrics": {"evaluate/scores.py"},
    "onnxruntime": {"export/onnx_file.py"},
    "tqdm": {"progress.py", "metrics.py", "data/synth.py"},
    "tfrecord": {"data/readers/tfrecord_reader.py"},
    "matplotlib": {
        "data/stats.py",
        "scaling/figures.py",
        "scaling/style.py",
        "studies/coverage.py",
    },
    "diffusers": {"models/targets.py"},
    "torchao": {"engine/fp8.py"},
    "sklearn": {"models/targets.py"},
}
TORCH_FREE = [
    "stopping",
    "launcher",
    "errors",
    "units",
    "variants",
    "draws",
    "flops",
    "report",
    "config",
    "cluster",
    "cluster_commands",
    "study_commands",
    "scaling",
    "scaling_commands",
]


def imports(path):
    """Every imported module's dotted name, wherever in the file it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_rooms_above_its_own(path):
    mine = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "supmim_scale" or len(parts) < 2 or parts[1] not in FLOOR:
            continue
        theirs = parts[1]
        assert FLOOR[theirs] <= FLOOR[mine], f"{mine} imports {theirs}, which stands below it"
        assert (mine, theirs) not in STRANGERS, f"{mine} must not know {theirs}"


@pytest.mark.parametrize("package", OWNERS)
def test_a_third_party_package_has_one_importer(package):
    found = {
        str(path.relative_to(PACKAGE))
        for path in FILES
        if any(name.split(".")[0] == package for name in imports(path))
    }
    assert found == OWNERS[package]


def test_one_module_calls_slurm():
    """Its programs stand as words of a command in no other."""
    programs = {"sbatch", "squeue", "scontrol", "srun", "scancel"}
    found = {
        str(path.relative_to(PACKAGE))
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.List)
        for word in node.elts
        if isinstance(word, ast.Constant) and word.value in programs
    }
    assert found == {"cluster/slurm.py"}


def test_every_room_has_its_place():
    assert {room(path) for path in FILES} == set(ORDER)


def test_recipes_are_read_without_torch():
    for path in FILES:
        if room(path) in TORCH_FREE:
            assert not any(name.split(".")[0] == "torch" for name in imports(path)), path


def test_the_planner_knows_no_process_group():
    allowed = {"activation_checkpointing", "attention", "ds_config"}
    for path in FILES:
        if room(path) != "planner":
            continue
        names = [name.split(".") for name in imports(path) if "supmim_scale.engine." in name]
        assert {parts[2] for parts in names} <= allowed, path


def test_no_file_has_outgrown_a_room():
    sizes = {path.name: len(path.read_text().splitlines()) for path in FILES}
    assert max(sizes.values()) <= 350, sizes


def test_the_train_loop_fits_on_a_page():
    tree = ast.parse((PACKAGE / "train.py").read_text())
    (loop,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "train")
    assert loop.end_lineno - loop.lineno < 60

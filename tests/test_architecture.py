"""Who may import whom, over the whole syntax tree, so that local imports count too."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "supmim_scale"

# Each room may import the rooms above it, and itself. A line is a floor: its rooms are strangers.
FLOORS = [
    ["errors", "units", "randomness", "sizes"],
    ["files", "config", "slurm"],
    ["hardware"],
    ["models", "data"],
    ["scaling", "jobs"],
    ["launch"],
    ["engine"],
    ["build"],
    ["runs"],
    ["evaluation", "planner"],
    ["exports", "studies"],
    ["training"],
    ["api"],
    ["cli"],
    ["__main__"],
]
FLOOR = {room: place for place, rooms in enumerate(FLOORS) for room in rooms}
# The second may not know the first although it stands above.
STRANGERS = [("engine", "data")]
# Sections of a recipe are passed on as they are; the recipe itself is known from `build` on.
SECTIONS = {"config.experiment", "config.running"}
KNOW_SECTIONS = ("data", "models", "engine")
# Third-party packages that one module, or one room, owns.
OWNERS = {
    "deepspeed": {"engine/zero.py"},
    "nvidia": {"data/dali.py"},
    "yaml": {"config/load.py"},
    "timm": {"models/encoder.py", "models/timm_models.py"},
    "onnxruntime": {"exports/onnx_file.py"},
    "tqdm": {"files/progress.py", "runs/log.py", "data/synth.py"},
    "tfrecord": {"data/readers/tfrecord.py"},
    "matplotlib": {
        "data/inspect.py",
        "scaling/answer.py",  # for a type alone
        "scaling/figures.py",
        "scaling/style.py",
        "studies/coverage.py",
    },
    "diffusers": {"models/targets.py"},
    "torchao": {"engine/fp8.py"},
    "sklearn": {"models/targets.py", "evaluation/scores.py"},
}
# Rooms and modules that a login node, or a person who waits for help, runs without torch.
TORCH_FREE = (
    "errors.py",
    "units.py",
    "sizes.py",
    "randomness.py",
    "config/",
    "slurm/",
    "jobs/",
    "scaling/",
    "cli/",
    "models/flops.py",
    "launch/local.py",
    "launch/signals.py",
    "runs/compare.py",
    "files/checksums.py",
    "hardware/gpus.py",
)


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


def name_of(path):
    """`supmim_scale.training.loop`; a room's own name for its `__init__`."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def known(path):
    """Modules of ours that a module imports; a room's `__init__` only where none below it is."""
    names = {name_of(other) for other in MODULES}
    mine = name_of(path)
    found = {name for name in imports(path) if name in names and name != mine}
    found -= {name for name in found if mine.startswith(name + ".")}
    return {name for name in found if not any(other.startswith(name + ".") for other in found)}


MODULES = sorted(PACKAGE.rglob("*.py"))
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_rooms_above_its_own(path):
    mine = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "supmim_scale" or len(parts) < 2 or parts[1] not in FLOOR:
            continue
        theirs = parts[1]
        if theirs == mine:
            continue
        assert FLOOR[theirs] < FLOOR[mine], f"{mine} imports {theirs}, which is not above it"
        assert (mine, theirs) not in STRANGERS, f"{mine} must not know {theirs}"
        if theirs == "config" and mine in KNOW_SECTIONS and len(parts) > 2:
            assert ".".join(parts[1:3]) in SECTIONS, f"{mine} may know sections, not {name}"


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
    assert found == {"slurm/commands.py"}


def test_every_room_has_its_place():
    assert {room(path) for path in FILES} == set(FLOOR)


def test_no_module_imports_itself_through_others():
    """Inside of rooms too; a room's `__init__` counts where it is what an import names."""
    needs = {name_of(path): known(path) for path in MODULES}
    while needs:
        free = [name for name, others in needs.items() if not others & needs.keys()]
        assert free, f"a cycle among {sorted(needs)}"
        for name in free:
            del needs[name]


def test_every_room_says_what_it_is_for():
    for path in PACKAGE.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_recipes_are_read_without_torch():
    for path in FILES:
        if str(path.relative_to(PACKAGE)).startswith(TORCH_FREE):
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
    tree = ast.parse((PACKAGE / "training/loop.py").read_text())
    (loop,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "train")
    assert loop.end_lineno - loop.lineno < 60

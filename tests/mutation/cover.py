"""Which tests cover which module: quick ones that run in one process, then those that start others.

Paths below `supmim_scale/` and below `tests/`, without `.py`. A module whose fault the quick tests
let through is shown to the slow ones.
"""

COVERED: dict[str, tuple[str, str]] = {
    "runs/checkpoints": ("test_saving test_checkpoints test_loop", "test_branching"),
    "training/saver": ("test_saving test_loop", "test_resume"),
    "training/watch": ("test_watching test_loop", "test_resume"),
    "models/optim": ("test_optim models/test_joint test_loop engine/test_plain", ""),
    "training/build": ("test_loop", "test_resume test_end_to_end"),
    "training/loop": ("test_loop", "test_resume test_end_to_end"),
    "randomness": ("test_draws", ""),
    "engine/plain": ("engine/test_plain test_loop", "test_resume"),
    "engine/ema": ("engine/test_plain test_loop", "engine/test_stages"),
    "engine/zero": (
        "engine/test_ds_config",
        "engine/test_stages engine/test_gathers test_host_reads",
    ),
    "engine/ds_config": ("engine/test_ds_config", "engine/test_stages"),
    "launch/world": ("engine/test_world", ""),
    "engine/activation_checkpointing": ("engine/test_activation_checkpointing", ""),
    "models/masking": ("models/test_masking test_draws", ""),
    "models/losses": ("models/test_joint", ""),
    "models/joint": ("models/test_joint models/test_encoder models/test_drop_path", ""),
    "models/decoder": ("models/test_joint", ""),
    "models/encoder": (
        "models/test_encoder models/test_joint models/test_imported",
        "export/test_export",
    ),
    "models/targets": ("models/test_targets test_draws", ""),
    "models/drop_path": ("models/test_drop_path models/test_joint", ""),
    "data/order": ("data/test_order test_draws", ""),
    "data/position": ("data/test_order test_loop", ""),
    "data/quarantine": ("data/test_shares data/test_bad_samples", "data/test_tools"),
    "data/mixing": ("data/test_mixing test_draws", ""),
    "data/augment": ("data/test_augment test_draws", ""),
    "data/views": ("data/test_loader test_draws", ""),
    "data/feed": ("data/test_shares data/test_bad_samples data/test_loader", ""),
    "data/loader": ("data/test_shares test_draws data/test_bad_samples data/test_loader", ""),
    "scaling/fit": ("scaling/test_scaling_fits scaling/test_optimum", ""),
    "scaling/chinchilla": ("scaling/test_optimum scaling/test_scaling_refusals", ""),
    "scaling/bootstrap": ("scaling/test_optimum scaling/test_scaling_fits", ""),
    "scaling/laws": ("scaling/test_scaling_fits scaling/test_optimum", ""),
    "planner/states": ("planner/test_states planner/test_memory", ""),
    "planner/memory": ("planner/test_memory", "planner/test_measured"),
    "planner/sharding": ("planner/test_memory planner/test_live planner/test_zero_plus_plus", ""),
    "planner/live": ("planner/test_live planner/test_activations", ""),
    "evaluation/scores": ("evaluate/test_scores", ""),
    "evaluation/classify": (
        "evaluate/test_scores evaluate/test_knn",
        "evaluate/test_eval_commands",
    ),
    "evaluation/knn": ("evaluate/test_knn", "evaluate/test_online"),
    "evaluation/probe": ("evaluate/test_probe", "evaluate/test_real_features"),
    "evaluation/few_shot": ("evaluate/test_probe", ""),
    "evaluation/features": ("evaluate/test_features evaluate/test_online", ""),
}


def files_of(module: str) -> tuple[list[str], list[str]]:
    """(quick, slow) test files of a module, as paths from the root."""
    quick, slow = COVERED[module]
    return _paths(quick), _paths(slow)


def source_of(module: str) -> str:
    """The module's path from the root."""
    return f"supmim_scale/{module}.py"


def _paths(names: str) -> list[str]:
    return [f"tests/{name}.py" for name in names.split()]

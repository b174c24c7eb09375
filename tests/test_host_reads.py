"""Where the host waits for the device: counted over the whole loop of a real training."""

import json

import pytest
from conftest import AUGMENTED, SMALL, run_ranks

STEPS, LOGGED = 7, 4  # a step's figures are read after it, before the next


@pytest.mark.parametrize(
    ("ranks", "engine"),
    [(1, ["engine.kind=plain"]), (2, ["engine.ds_config=zero3", "engine.precision=bf16"])],
    ids=["plain", "zero3"],
)
def test_a_step_reads_no_more_from_the_device_than_its_engine_states(
    shards, tmp_path, ranks, engine
):
    run_ranks(
        "tests/reads_worker.py",
        tmp_path / "reads.json",
        "smoke",
        *SMALL,
        *AUGMENTED,
        *engine,
        f"input.root={shards}",
        f"log.run_dir={tmp_path}/run",
        f"optim.steps={STEPS}",
        f"log.every={LOGGED}",
        "log.images_every=0",
        ranks=ranks,
    )
    found = json.loads((tmp_path / "reads.json").read_text())
    third, fourth, fifth, sixth, seventh = (
        found["at_step"][step] - found["at_step"][step - 1] for step in range(2, STEPS)
    )  # DeepSpeed learns the order of the modules in the first two
    assert 0 < max(third, fourth, sixth, seventh) <= found["stated"]
    assert fifth > seventh  # the log's reading is seen, so another would be

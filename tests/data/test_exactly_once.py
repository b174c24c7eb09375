"""An epoch over 10,007 samples in 13 shards, with readers killed and started again in between."""

import io
import json
import random
from pathlib import Path

import forked
import numpy as np
import pytest
from PIL import Image

from supmim_scale.data.dataset import open_dataset
from supmim_scale.data.position import ReaderPosition
from supmim_scale.data.readers import SampleLayout
from supmim_scale.data.shards import write_shard

SIZES = [701, 833, 1, 765, 850, 799, 777, 813, 790, 1200, 1000, 778, 700]
WORKER = Path(__file__).with_name("reader_worker.py")
GLOBAL_BATCH = 60


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("epoch")
    (root / "train").mkdir()
    rng, number = np.random.default_rng(0), 0
    for shard, size in enumerate(SIZES):
        samples = []
        for _ in range(size):
            out = io.BytesIO()
            pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((16, 16)).save(out, "JPEG")
            samples.append((f"{number}", out.getvalue(), "jpg", str(number % 10)))
            number += 1
        write_shard(root / f"train/{shard:02}.tar", samples)
    return root


class Ranks:
    """Processes of one start; a step is what all of them print."""

    def __init__(self, root, world_size, position):
        arguments = [root, world_size, GLOBAL_BATCH, position.to_json()]
        self.processes = [
            forked.start(
                [WORKER, arguments[0], rank, *arguments[1:]], stdin=forked.PIPE, stdout=forked.PIPE
            )
            for rank in range(world_size)
        ]

    def step(self):
        return [row for p in self.processes for row in json.loads(p.stdout.readline())]

    def go_on(self):
        for process in self.processes:
            process.stdin.write("\n")
            process.stdin.flush()

    def kill(self):
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.communicate()


def test_every_sample_is_seen_once_whatever_is_killed_and_however_many_go_on(root):
    """Nothing is padded: the batch that ends the epoch begins the next one. A step counts when
    all ranks have it; one that was cut short is read again, bit for bit as it would have been."""
    dataset = open_dataset(root, "train", SampleLayout())
    assert (len(dataset), len(dataset.shards)) == (10_007, 13)
    rng = random.Random(0)
    committed, seen = [], {}
    position = ReaderPosition(0, len(dataset), dataset.digest)
    while len(committed) <= 10_500:
        ranks = Ranks(root, rng.choice([1, 2, 3]), position)
        for _ in range(rng.randrange(10, 45)):
            step = ranks.step()
            for epoch, sample, total in step:
                assert seen.setdefault((epoch, sample), total) == total
            committed += step
            position = ReaderPosition(len(committed), position.num_samples, position.digest)
            ranks.go_on()
        if rng.random() < 0.5:  # a step in hand that nobody wrote down
            for epoch, sample, total in ranks.step():
                assert seen.setdefault((epoch, sample), total) == total
        ranks.kill()
    epochs = np.array([epoch for epoch, _, _ in committed])
    ids = np.array([sample for _, sample, _ in committed])
    assert (np.bincount(ids[epochs == 0], minlength=10_007) == 1).all()
    later = ids[epochs == 1]
    assert len(np.unique(later)) == len(later) == len(committed) - 10_007


MEMORY = """
import json, sys, psutil, torch
from pathlib import Path
from supmim_scale.data.dali import ViewSpec
from supmim_scale.data.dataset import open_dataset
from supmim_scale.data.loader import Share, ViewSettings, training_batches
from supmim_scale.data.order import SampleOrder
from supmim_scale.data.readers import SampleLayout
dataset = open_dataset(Path(sys.argv[1]), "train", SampleLayout())
order = SampleOrder(dataset.sizes, 0, 64)
settings = ViewSettings(ViewSpec(48, 0.5, 0.5), threads=1)
batches = training_batches(dataset, order, settings, Share(32), seed=0, device=torch.device("cpu"))
resident = []
for epoch in range(50):
    for _ in range(len(dataset) // 32):
        next(batches)
    resident.append(psutil.Process().memory_info().rss)
print(json.dumps(resident))
"""


def test_memory_stays_flat_over_fifty_epochs(shards):
    done = forked.run(["-c", MEMORY, shards], check=True)
    resident = np.array(json.loads(done.stdout)) / 2**20
    noise = np.ptp(resident[2:10])
    assert resident[-1] - resident[2] < max(8, 2 * noise), resident

"""A rank of its own node that looks at itself: `preflight_worker.py RUN_DIR DATA_OF_EACH...`."""

import os
import sys
from pathlib import Path

from supmim_scale.engine import join_world, leave_world
from supmim_scale.errors import UserError
from supmim_scale.preflight import inspect_nodes

world = join_world()
os.environ["SLURMD_NODENAME"] = f"node{world.rank + 1}"
data = [Path(word) for word in sys.argv[2:]]
try:
    line = inspect_nodes(world, data[world.rank], Path(sys.argv[1]))
except UserError as error:
    line = f"error: {error}"
print(f"rank {world.rank}: {line}", flush=True)
leave_world(world)

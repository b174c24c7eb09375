"""A rank of its own node that looks at itself: `preflight_worker.py RUN_DIR DATA_OF_EACH...`.

On a data folder named `dead` looking takes for ever, as on a dead mount.
"""

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

from supmim_scale.errors import UserError
from supmim_scale.launch import nodes
from supmim_scale.launch.join import join_world, leave_world
from supmim_scale.launch.nodes import inspect_nodes

world = join_world()
os.environ["SLURMD_NODENAME"] = f"node{world.rank + 1}"
nodes._ANSWER_WITHIN = timedelta(seconds=3)
look = nodes._data_problem
nodes._data_problem = lambda root: time.sleep(12) if root.name == "dead" else look(root)
data = [Path(word) for word in sys.argv[2:]]
try:
    line = inspect_nodes(world, data[world.rank], Path(sys.argv[1]))
except UserError as error:
    line = f"error: {error}"
print(f"rank {world.rank}: {line}", flush=True)
if "no answer" in line:
    os._exit(0)
leave_world(world)

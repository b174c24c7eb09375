import pytest

from supmim_scale.errors import RankError, UserError
from supmim_scale.slurm.allocation import job_label, read_allocation, require_cpus, require_geometry

# As srun of Slurm 22.05 set them for the last of four tasks on two nodes.
TASK = {
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_GPUS_ON_NODE": "2",
    "SLURM_CPUS_PER_TASK": "3",
}


def given(**changed):
    return read_allocation({**TASK, **changed})


def test_a_task_knows_its_place():
    task = given()
    assert (task.rank, task.local_rank, task.num_tasks, task.restart) == (3, 1, 4, 0)
    assert (task.tasks_on_node, task.gpus_on_node, task.cpus_per_task) == (2, 2, 3)


@pytest.mark.parametrize(
    ("text", "nodes"),
    [("2(x2)", [0, 0, 1, 1]), ("3,1", [0, 0, 0, 1]), ("1(x2),2", [0, 1, 2, 2]), ("4", [0] * 4)],
)
def test_ranks_lie_on_nodes_in_blocks(text, nodes):
    task = given(SLURM_STEP_TASKS_PER_NODE=text)
    assert [task.node_index_of(rank) for rank in range(4)] == nodes


def test_a_batch_shell_is_no_task():
    assert read_allocation({k: v for k, v in TASK.items() if k != "SLURM_STEP_NODELIST"}) is None


def test_an_element_is_named_by_its_array_for_its_own_id_may_be_the_whole_arrays():
    element = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "5"}
    assert job_label(element) == "12_5"
    assert job_label({"SLURM_JOB_ID": "12"}) == "12"
    assert job_label({}) is None


def test_gpus_of_the_node_or_one_each_are_both_fine():
    require_geometry(given(), threads=2, use_gpus=True, visible_gpus=2)
    require_geometry(given(), threads=2, use_gpus=True, visible_gpus=1)  # --gpus-per-task=1
    require_geometry(given(SLURM_GPUS_ON_NODE="0"), threads=2, use_gpus=True, visible_gpus=0)


def test_tasks_unlike_gpus_are_refused_unless_the_cpu_is_wanted():
    task = given(SLURM_STEP_TASKS_PER_NODE="3,1")  # this node has one task
    with pytest.raises(UserError, match=r"1 tasks and 2 GPUs.*--ntasks-per-node=2"):
        require_geometry(task, threads=2, use_gpus=True, visible_gpus=2)
    require_geometry(task, threads=2, use_gpus=False, visible_gpus=0)


def test_gpus_that_torch_does_not_see_are_told_once_a_node(monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "node2")
    with pytest.raises(RankError, match=r"node2, rank 3: found no GPU .*--exclude=node2"):
        require_geometry(given(SLURM_LOCALID="0"), threads=2, use_gpus=True, visible_gpus=0)
    with pytest.raises(UserError) as told:
        require_geometry(given(), threads=2, use_gpus=True, visible_gpus=0)
    assert not isinstance(told.value, RankError)


def test_cores_below_the_decoding_threads_are_refused():
    require_cpus(3, threads=2)
    with pytest.raises(UserError, match="--cpus-per-task: found 2; expected 3"):
        require_cpus(2, threads=2)

import pytest

from supmim_scale.errors import RankError, UserError
from supmim_scale.launch import join

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "n0",
    "MASTER_PORT": "29500",
}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "16",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "31007",
    "SLURM_STEP_NODELIST": "node[3-4]",
    "MASTER_ADDR": "node3",
}


def test_a_launchers_variables_are_taken_as_they_are():
    assert TORCHRUN.items() <= join.launch_variables(TORCHRUN).items()


def test_an_srun_task_becomes_a_rank():
    found = join.launch_variables(SLURM)
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"]) == ("5", "16", "1")
    assert found["MASTER_ADDR"] == "node3"
    assert 10_000 <= int(found["MASTER_PORT"]) < 25_000
    assert found["launcher"] == "srun"


def test_two_jobs_on_a_host_get_different_ports():
    other = join.launch_variables({**SLURM, "SLURM_JOB_ID": "31008"})
    assert other["MASTER_PORT"] != join.launch_variables(SLURM)["MASTER_PORT"]


def test_a_batch_shell_without_srun_is_one_process():
    shell = {k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"}
    assert join.launch_variables(shell)["WORLD_SIZE"] == "1"


def test_a_lone_process_is_a_world_of_one():
    found = join.launch_variables({})
    assert (found["RANK"], found["WORLD_SIZE"]) == ("0", "1")


def test_half_a_launcher_is_refused():
    with pytest.raises(UserError, match="WORLD_SIZE"):
        join.launch_variables({"RANK": "0"})


def test_ranks_have_one_kind_of_device_and_each_its_own():
    join.require_own_devices(["a cpu", "b cpu"])
    join.require_own_devices(["a cuda 1", "a cuda 2", "b cuda 1"])
    with pytest.raises(RankError, match="b, rank 2: found cpu; expected cuda"):
        join.require_own_devices(["a cuda 1", "a cuda 2", "b cpu"])
    with pytest.raises(RankError, match="a, rank 1: found the GPU of rank 0"):
        join.require_own_devices(["a cuda 1", "a cuda 1", "b cuda 1"])


def test_a_task_takes_its_own_gpu_whether_it_sees_all_or_one(monkeypatch):
    monkeypatch.setattr(join.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(join.torch.cuda, "device_count", lambda: 8)
    assert join._device(3).index == 3
    with pytest.raises(RankError, match="local rank 8: found 8 visible GPUs"):
        join._device(8)
    monkeypatch.setattr(join.torch.cuda, "device_count", lambda: 1)  # --gpus-per-task=1
    assert join._device(3).index == 0

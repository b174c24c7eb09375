"""A real Slurm of virtual nodes on this machine: munged, slurmctld and a slurmd a node.

Its own key, sockets, ports and state lie in one folder; daemons, jobs and folder end with the
process that started them (tests/keeper.py). Facts it rests on, of Slurm 22.05: counted GPUs need
character devices; `CgroupPlugin=cgroup/v1` keeps slurmd from asking systemd for a scope;
`cred_expire` is how long a requeued job waits.
"""

import json
import os
import pwd
import random
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

SBIN = ("/usr/sbin", "/usr/local/sbin", "/usr/bin")
DAEMONS = ("munged", "slurmctld", "slurmd")
MEMORY_MIB = 64_000  # that each node advertises
UP_S, STOP_S = 30, 30
REQUEUE_DELAY_S = 5  # below 5 Slurm takes 120
_STAND_INS = (
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/ptmx",
    "/dev/console",
)


def find(daemon):
    return shutil.which(daemon, path=os.pathsep.join(SBIN))


def missing():
    """Programs that are not installed."""
    return [name for name in (*DAEMONS, "sbatch") if not (find(name) or shutil.which(name))]


class LocalSlurm:
    """`environ` is what its commands need."""

    def __init__(self, folder, nodes=2, gpus=2, cpus=16):
        self.folder, self.num_nodes = Path(folder), nodes
        self._gpus, self._cpus = gpus, cpus
        self.pids = {}
        for name in ("state", "spool", "log", "run", "munge"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        self.conf = self.folder / "slurm.conf"
        self.environ = {**os.environ, "SLURM_CONF": str(self.conf)}
        self._ports = free_ports(nodes + 1)
        self._keeper = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("keeper.py"), folder],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def start(self):
        self._write_configuration()
        self._start_munge()
        self._daemon("slurmctld", "-f", self.conf, pid="slurmctld")
        for name in self.nodes:
            self.start_node(name)
        self.wait_for_nodes()

    @property
    def nodes(self):
        return [f"node{i + 1}" for i in range(self.num_nodes)]

    def start_node(self, name):
        (self.folder / "spool" / name).mkdir(exist_ok=True)
        self._daemon("slurmd", "-f", self.conf, "-N", name, pid=f"slurmd-{name}")

    def kill_node(self, name):
        """The daemon alone dies, as if the node did not answer any more."""
        os.kill(self.pids[f"slurmd-{name}"], 9)

    def command(self, *words, check=True, **environment):
        done = subprocess.run(
            [str(word) for word in words],
            env={**self.environ, **environment},
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert not check or done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
        return done

    def stop(self):
        self._keeper.stdin.close()
        self._keeper.wait(timeout=STOP_S)
        self._keeper.stdout.close()

    def _daemon(self, name, *arguments, pid):
        path = self.folder / "run" / f"{pid}.pid"
        path.unlink(missing_ok=True)
        words = [str(word) for word in (find(name), *arguments)]
        self._keeper.stdin.write(json.dumps([words, self.environ]) + "\n")
        self._keeper.stdin.flush()
        code, said = json.loads(self._keeper.stdout.readline())
        assert code == 0, f"{name}: {said}"
        self.pids[pid] = int(wait_for(lambda: path.exists() and path.read_text().strip(), UP_S))

    def _start_munge(self):
        key = self.folder / "munge/key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        (self.folder / "munge").chmod(0o755)
        forced = ["--force"] if os.getuid() == 0 else []  # munged does not like to be root
        self._daemon(
            "munged",
            *forced,
            f"--key-file={key}",
            f"--socket={self.folder}/munge/socket",
            f"--pid-file={self.folder}/run/munged.pid",
            f"--log-file={self.folder}/log/munged",
            f"--seed-file={self.folder}/munge/seed",
            pid="munged",
        )

    def wait_for_nodes(self):
        def idle():
            lines = self.command("sinfo", "-h", "-N", "-p", "low", "-t", "idle", "-o", "%N").stdout
            return set(lines.split()) == set(self.nodes)

        wait_for(idle, UP_S)

    def _write_configuration(self):
        user, host = pwd.getpwuid(os.getuid()).pw_name, socket.gethostname().partition(".")[0]
        here, nodes = self.folder, ",".join(self.nodes)
        lines = [
            "ClusterName=local",
            f"SlurmctldHost={host}(127.0.0.1)",
            f"SlurmUser={user}",
            f"SlurmdUser={user}",
            "AuthType=auth/munge",
            "CredType=cred/munge",
            f"AuthInfo=socket={here}/munge/socket,cred_expire={REQUEUE_DELAY_S}",
            # A job's port follows from its number: two clusters must not count alike.
            f"FirstJobId={random.randrange(1, 15_000)}",
            f"SlurmctldPort={self._ports[0]}",
            f"StateSaveLocation={here}/state",
            f"SlurmdSpoolDir={here}/spool/%n",
            f"SlurmctldPidFile={here}/run/slurmctld.pid",
            f"SlurmdPidFile={here}/run/slurmd-%n.pid",
            f"SlurmctldLogFile={here}/log/slurmctld",
            f"SlurmdLogFile={here}/log/slurmd-%n",
            # No cgroups, no systemd, no binding to cores.
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "JobAcctGatherType=jobacct_gather/none",
            "SwitchType=switch/none",
            "MpiDefault=none",
            "SchedulerType=sched/backfill",
            "SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_Core_Memory",
            "PreemptType=preempt/partition_prio",
            "PreemptMode=REQUEUE",
            "GresTypes=gpu",
            "JobRequeue=1",
            "ReturnToService=2",
            "MailProg=/bin/true",
            "SlurmdParameters=config_overrides",  # a small host may advertise large nodes
            "SlurmctldTimeout=10",
            "SlurmdTimeout=10",
            "KillWait=20",
            "MinJobAge=3600",
            "InactiveLimit=0",
            "EnforcePartLimits=ALL",
            "Waittime=0",
            "OverTimeLimit=0",
            "AccountingStorageType=accounting_storage/none",
            "JobCompType=jobcomp/none",
        ]
        lines += [
            f"NodeName={name} NodeAddr=127.0.0.1 Port={port} CPUs={self._cpus} Boards=1 "
            f"SocketsPerBoard=1 CoresPerSocket={self._cpus} ThreadsPerCore=1 "
            f"RealMemory={MEMORY_MIB} Gres=gpu:{self._gpus} State=UNKNOWN"
            for name, port in zip(self.nodes, self._ports[1:], strict=True)
        ]
        lines += [
            f"PartitionName=low Nodes={nodes} Default=YES MaxTime=INFINITE PriorityTier=1 "
            "PreemptMode=REQUEUE GraceTime=0",
            f"PartitionName=grace Nodes={nodes} MaxTime=INFINITE PriorityTier=1 "
            "PreemptMode=REQUEUE GraceTime=20",
            f"PartitionName=high Nodes={nodes} MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF",
        ]
        self.conf.write_text("\n".join(lines) + "\n")
        names, devices = f"node[1-{self.num_nodes}]", ",".join(self._devices())
        (here / "gres.conf").write_text(f"NodeName={names} Name=gpu File={devices}\n")
        (here / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")

    def _devices(self):
        """Character devices that stand for GPUs; nothing opens them."""
        try:
            made = [self.folder / f"nvidia{i}" for i in range(self._gpus)]
            for path in made:
                os.mknod(path, 0o20666, os.makedev(1, 3))
        except PermissionError:
            return _STAND_INS[: self._gpus]
        return [str(path) for path in made]


def free_ports(count):
    """Below Linux's ephemeral range and away from our jobs' own."""
    ports = random.sample(range(26_000, 32_000), 2 * count)
    return [port for port in ports if is_free(port)][:count]


def is_free(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def wait_for(is_so, seconds, every=0.1):
    """The first true answer. Fails where none comes in time."""
    deadline = time.time() + seconds
    while not (answer := is_so()):
        assert time.time() < deadline, f"not within {seconds} s"
        time.sleep(every)
    return answer

"""The tests' own processes: a fork does as an interpreter does, and nothing outlives pytest."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import forked
import pytest
from conftest import ROOT, command
from local_slurm import missing, wait_for

ASKED = {
    "code": "import sys; print('said'); sys.exit(75)",
    "words": "import sys; sys.exit('in words')",
    "nothing": "import sys; sys.exit()",
    "large code": "import sys; sys.exit(256 + 3)",
    "at once": "import os; os._exit(4)",
    "killed": "import os; os.kill(os.getpid(), 9)",
    "signal": "import os; os.kill(os.getpid(), 15)",
    "no module": "import nothing_of_this_name",
    "arguments": "import sys; print(sys.argv, sys.path[0], __name__)",
    "place": "import os; print(os.getcwd(), os.environ['WORD'], os.environ.get('OTHER'))",
    "input": "print(open(0).read())",
    "at exit": "import atexit; atexit.register(print, 'over'); print('work')",
    "thread": "import threading as t; t.Timer(0.1, print, ['late']).start(); print('early')",
    "descriptors": "import os; print(sorted(os.listdir('/proc/self/fd'))[:3])",
    "threads": "import os; print(len(os.listdir('/proc/self/task')))",
    "handlers": "import signal as s; print([s.getsignal(n) for n in (2, 13, 15, 17)])",
}


@pytest.mark.parametrize("name", ASKED)
def test_a_fork_does_as_an_interpreter_does(tmp_path, name):
    words, environment = ["-c", ASKED[name], "a word", "-x"], {**os.environ, "WORD": "given"}
    (tmp_path / "input").write_text("from a file")
    ended = []
    for run in (forked.start, start_interpreter):
        with open(tmp_path / "input") as given:
            process = run(
                words,
                stdin=given,
                stdout=forked.PIPE,
                stderr=forked.PIPE,
                cwd=tmp_path,
                env=environment,
            )
            out, err = process.communicate(timeout=60)
        ended.append((process.returncode, out, err.strip().splitlines()[-1:]))
    assert ended[0] == ended[1]


def start_interpreter(words, **options):
    return subprocess.Popen([sys.executable, *words], text=True, **options)


def test_forks_do_not_share_what_is_drawn_from_the_systems_entropy():
    code = "import random, numpy, torch; print(random.random(), numpy.random.rand(), torch.rand(1))"
    first, second = (forked.run(["-c", code], check=True).stdout.split() for _ in range(2))
    assert all(a != b for a, b in zip(first, second, strict=True))


def test_a_fork_is_a_group_of_its_own_that_can_be_waited_for_and_killed():
    process = forked.start(["-c", "import time; time.sleep(600)"])
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.1)
    assert os.getpgid(process.pid) == process.pid
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=10) == -signal.SIGTERM
    assert process.poll() == -signal.SIGTERM


@pytest.mark.skipif(forked.GPU.exists(), reason="nothing is forked beside a GPU")
def test_a_fork_ends_with_its_handle():
    process = forked.start(["-c", "import time; time.sleep(600)"])
    pid = process.pid
    del process
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), 10)


def test_workers_that_a_fork_spawns_import_its_main_module_again(shards, tmp_path):
    done = command("data", "pack", shards / "val", tmp_path / "out", "--workers", 2)
    assert "33 images" in done.stdout


@pytest.mark.skipif(bool(missing()), reason="no Slurm")
def test_nothing_outlives_a_pytest_that_is_killed(tmp_path):
    mark = f"SUPMIM_MARK={os.getpid()}-{tmp_path}"
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "SUPMIM"))}
    name, _, value = mark.partition("=")
    session = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "pytest",
            "-n",
            "1",
            "-q",
            "tests/killed_session.py",
            f"--basetemp={tmp_path}/inner",
        ],
        cwd=ROOT,
        env={**clean, "SUPMIM_TOLD": str(tmp_path / "told"), name: value},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for(lambda: (tmp_path / "told").exists() or session.poll() is not None, 120)
    facts = json.loads((tmp_path / "told").read_text())
    assert {session.pid, *facts["pids"]} <= set(marked(mark))
    assert "sleep" in " ".join(marked(mark).values())  # the job's
    session.kill()
    session.wait()
    wait_for(lambda: not marked(mark), 20)
    assert not Path(facts["folder"]).exists()
    assert not (tmp_path / "inner").exists() or forked.GPU.exists()


def marked(mark):
    """Names of the processes that have the variable, by their ids."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if mark.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found[int(pid)] = Path(f"/proc/{pid}/comm").read_text().strip()
        except OSError:
            continue
    return found

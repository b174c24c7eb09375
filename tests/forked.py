"""Processes forked from tests/fork_server.py, with a handle like `subprocess.Popen`'s."""

import contextlib
import json
import os
import re
import secrets
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

from fork_server import die_with_parent

ROOT = Path(__file__).resolve().parents[1]
ADDRESS = "SUPMIM_TEST_FORKS"  # the variable that names the server's socket
PIPE = subprocess.PIPE
KEY = re.compile(r"(seed|[a-z_]+\.[a-z0-9_]+)=")
GPU = Path("/dev/nvidiactl")  # what CUDA has begun does not survive a fork
# As all tests set it: OpenMP reads it once, in the server.
THREADS = {"OMP_NUM_THREADS": "1"}


class ForkServer:
    """Started by the process that controls the session, and found through the environment by its
    workers and by the commands that they start. It imports while tests are collected."""

    def __init__(self):
        name = f"supmim-tests-{os.getpid()}-{secrets.token_hex(4)}"
        self.alive, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with _socket() as listener, theirs:
            listener.bind("\0" + name)
            listener.listen(64)
            self.process = subprocess.Popen(
                [sys.executable, ROOT / "tests/fork_server.py"],
                stdin=theirs,
                stdout=listener,
                cwd=ROOT,
                env={**os.environ, **THREADS},
            )
        os.environ[ADDRESS] = name

    def owns(self, folder):
        """Remove the folder if this process is killed."""
        self.alive.send(json.dumps(str(folder)).encode())

    def stop(self):
        self.owns("")
        os.environ.pop(ADDRESS, None)
        self.alive.close()
        self.process.wait()


def once(words):
    """The words of a command; of a recipe's key that is set again only the last value."""
    words = [str(word) for word in words]
    last = {word.partition("=")[0]: place for place, word in enumerate(words) if KEY.match(word)}
    return [
        word
        for place, word in enumerate(words)
        if not KEY.match(word) or last[word.partition("=")[0]] == place
    ]


def start(words, *, env=None, **options):
    """`python WORDS` in a process group of its own: a fork, or a new process beside a GPU."""
    words = once(words)
    env = {**(os.environ if env is None else env), **THREADS}
    if not GPU.exists():
        return Forked(words, env=env, **options)
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        env=env,
        text=True,
        start_new_session=True,
        preexec_fn=partial(die_with_parent, os.getpid()),
        **{"cwd": ROOT} | options,
    )


class Forked:
    """What `python WORDS` does, in a fork of the server. It ends when its handle is gone.

    `group`: the process group to join; None makes one of its own.
    """

    def __init__(
        self, words, *, stdin=None, stdout=None, stderr=None, cwd=ROOT, env=None, group=None
    ):
        self.args, self.returncode = [str(word) for word in words], None
        self.stdin, stdin = (None, stdin) if stdin != PIPE else _pipe("w")
        self.stdout, stdout = (None, stdout) if stdout != PIPE else _pipe("r")
        self.stderr, stderr = (None, stderr) if stderr != PIPE else _pipe("r")
        given = [_number(one, place) for place, one in enumerate((stdin, stdout, stderr))]
        request = {
            "words": self.args,
            "cwd": str(cwd),
            "group": group,
            "env": dict(os.environ if env is None else env),
        }
        self._server = _socket()
        self._server.connect("\0" + os.environ[ADDRESS])
        socket.send_fds(self._server, [json.dumps(request).encode()], given)
        self.pid = json.loads(self._server.recv(100))
        for ours, theirs in ((self.stdin, stdin), (self.stdout, stdout), (self.stderr, stderr)):
            if ours is not None:
                os.close(theirs)

    def poll(self):
        return self._ended(0)

    def wait(self, timeout=None):
        if self._ended(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.communicate()

    def communicate(self, input=None, timeout=None):
        """Everything it wrote to its pipes, and its end."""
        assert input is None
        deadline = None if timeout is None else time.monotonic() + timeout
        texts = [None, None]
        if self.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.stdin.close()

        def read(place, file):
            texts[place] = file.read()

        files = [
            (place, file)
            for place, file in enumerate((self.stdout, self.stderr))
            if file is not None and not file.closed
        ]
        readers = [threading.Thread(target=read, args=pair, daemon=True) for pair in files]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        self.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        for _, file in files:
            file.close()
        return tuple(texts)

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def __del__(self):
        if hasattr(self, "_server"):
            self._server.close()

    def _ended(self, timeout):
        """The exit code, negative of a signal; None if it runs on."""
        if self.returncode is None and select.select([self._server], [], [], timeout)[0]:
            message = self._server.recv(100)
            assert message, "the server of forks is gone"
            self._server.close()
            self.returncode = json.loads(message)
        return self.returncode


def run(words, *, check=False, timeout=None, **options):
    """`subprocess.run` with captured text."""
    process = start(words, stdout=PIPE, stderr=PIPE, **options)
    try:
        out, err = process.communicate(timeout=timeout)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    if check and done.returncode:
        raise subprocess.CalledProcessError(done.returncode, done.args, out, err)
    return done


def run_ranks(words, ranks, *, timeout):
    """Every rank's WORDS with the five variables of a launcher; one that fails ends the others.
    The code of the first that failed, and what all of them wrote."""
    shared = {
        **os.environ,
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    deadline = time.monotonic() + timeout
    with _memory() as out, _memory() as err:
        running = [
            start(
                words,
                stdout=out,
                stderr=err,
                env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(ranks)
        ]
        try:
            while None in (codes := [rank.poll() for rank in running]) and not any(codes):
                if time.monotonic() > deadline:
                    raise subprocess.TimeoutExpired(words, timeout)
                time.sleep(0.02)
        finally:
            for rank in running:
                rank.kill()
            for rank in running:
                rank.wait()
        said = [os.pread(file.fileno(), 1 << 30, 0).decode() for file in (out, err)]
    return subprocess.CompletedProcess(words, next(filter(None, codes), 0), *said)


class PopenOrFork(subprocess.Popen):
    """`subprocess.Popen` within a forked command: the Python that it starts is forked too, into
    the command's process group: ranks of `--ranks`, torchrun's, and torchrun itself."""

    def __new__(cls, args, **options):
        text, given = options.pop("text", False), dict(options)
        group = None if given.pop("start_new_session", False) else os.getpgrp()
        known = given.keys() <= {"stdin", "stdout", "stderr", "cwd", "env"}
        if args[0] != sys.executable or not known or (PIPE in given.values() and not text):
            return super().__new__(cls)
        words = args[2:] if args[1] == "-u" else args[1:]
        return Forked(words, group=group, **{"cwd": os.getcwd()} | given)


def _socket():
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _memory():
    return open(os.memfd_create("said"), "w+b", buffering=0)


def _pipe(mode):
    """(our file, their descriptor)."""
    reading, writing = os.pipe()
    return (open(reading), writing) if mode == "r" else (open(writing, "w"), reading)


def _number(given, place):
    if given is None:
        return place
    if given == subprocess.DEVNULL:
        return os.open(os.devnull, os.O_RDWR)
    return given if isinstance(given, int) else given.fileno()


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

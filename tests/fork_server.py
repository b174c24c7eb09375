"""Forks commands from a process that has imported everything once.

`fork_server.py` is started once a session, by tests/forked.py. Descriptor 0 is the end of a socket
that closes when pytest is gone, and that says which folder goes with it; 1 listens. A connection
carries one command: a request with descriptors for standard input, output and errors, then back
the process id and, once it is over, the exit status. A connection that closes before ends its
command.

Nothing here may start a thread before a fork. Arrow's allocator has one, and restarts it itself.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import pkgutil
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAZY = (  # what is imported within functions, by the package, DeepSpeed, Arrow and DALI
    "deepspeed.module_inject.auto_ep_config",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "matplotlib.pyplot",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "nvidia.dali._debug_mode",
    "sklearn.cluster",
    "torch._inductor.compile_fx",
    "torchmetrics",
)
PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """The kernel kills this process when its parent is gone."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def import_everything() -> None:
    import supmim_scale

    for module in pkgutil.walk_packages(supmim_scale.__path__, "supmim_scale."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in ("forked", *LAZY):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def quietly(work):
    """What it says is shown where it fails alone."""
    said, shown = os.memfd_create("said"), os.dup(2)
    os.dup2(said, 2)
    try:
        work()
    except BaseException:
        os.dup2(shown, 2)
        print(os.pread(said, 1 << 20, 0).decode(), file=sys.stderr)
        raise
    os.dup2(shown, 2)
    os.close(shown)
    os.close(said)


class Server:
    """`serve` returns in every forked child, with what it is to run."""

    def __init__(self, parent: int, listener: socket.socket):
        self.parent, self.listener = parent, listener
        self.selector = selectors.DefaultSelector()
        self.selector.register(parent, selectors.EVENT_READ, self.parent_speaks)
        self.selector.register(listener, selectors.EVENT_READ, self.accept)
        self.commands = {}  # connections by process id
        self.request, self.folder = None, ""

    def serve(self):
        while self.request is None:
            for key, _ in self.selector.select():
                key.data(key.fileobj)
                if self.request is not None:
                    break
        return self.request

    def accept(self, listener):
        connection, _ = listener.accept()
        self.selector.register(connection, selectors.EVENT_READ, self.read)

    def read(self, connection):
        try:
            message, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 3)
        except ConnectionError:
            message = b""
        if not message:
            for pid, other in self.commands.items():
                if other is connection:
                    kill(pid)
            self.selector.unregister(connection)
            connection.close()
            return
        self.fork(connection, json.loads(message), descriptors)

    def fork(self, connection, request, descriptors):
        server, group = os.getpid(), request["group"]
        pid = os.fork()
        for_group = pid, group or pid
        with contextlib.suppress(OSError):
            os.setpgid(*for_group)
        if pid == 0:
            die_with_parent(server)
            for key in [*self.selector.get_map().values()]:
                os.close(key.fd)
            self.selector.close()
            for place, descriptor in enumerate(descriptors):
                os.dup2(descriptor, place)
                os.close(descriptor)
            self.request = request
            return
        for descriptor in descriptors:
            os.close(descriptor)
        self.commands[pid] = connection
        ended = os.pidfd_open(pid)
        self.selector.register(ended, selectors.EVENT_READ, lambda fd: self.reap(pid, fd))
        connection.send(json.dumps(pid).encode())

    def reap(self, pid, ended):
        self.selector.unregister(ended)
        os.close(ended)
        _, status = os.waitpid(pid, 0)
        connection = self.commands.pop(pid)
        with contextlib.suppress(OSError):
            connection.send(json.dumps(os.waitstatus_to_exitcode(status)).encode())

    def parent_speaks(self, parent):
        """Of the session's folder, empty where it may stay; or no more."""
        if said := os.read(parent, 4096):
            self.folder = json.loads(said)
            return
        for pid in self.commands:
            kill(pid)
        if self.folder:
            time.sleep(1)  # for all others that write there, who are ending now
            shutil.rmtree(self.folder, ignore_errors=True)
        os._exit(0)


def kill(pid):
    """A command and what it started."""
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)
        if os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)


def become(request):
    """Run the words as `python WORDS` would."""
    import forked  # loaded before, as all others
    import numpy
    import torch

    subprocess.Popen = forked.PopenOrFork
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    numpy.random.seed()  # from the system's entropy, as a new process
    torch.default_generator.seed()
    first, *words = request["words"]
    if first == "-m":
        sys.path[0], sys.argv = os.getcwd(), words
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        code, *words = words
        sys.path[0], sys.argv = "", ["-c", *words]
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path[0], sys.argv = os.path.dirname(os.path.abspath(first)), [first, *words]
        runpy.run_path(first, run_name="__main__")


def main():
    parent, listener = os.dup(0), socket.socket(fileno=os.dup(1))
    with open(os.devnull, "r+b") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(nothing.fileno(), 1)
    sys.path.insert(1, str(ROOT))
    quietly(import_everything)
    gc.collect()
    gc.freeze()
    return Server(parent, listener).serve()


def end_as_python(request):
    """As an interpreter ends, but for taking 5,000 modules apart: that takes a second."""
    code = 0
    try:
        become(request)
    except SystemExit as asked:
        code = asked.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code & 0xFF)


if __name__ == "__main__":
    end_as_python(main())

"""Starts daemons, and ends them and their folder when whoever asked for them is gone.

`keeper.py FOLDER`: a line of JSON, `[words, environment]`, on standard input starts a command and
is answered by `[exit code, output]`. A daemon leaves its parent; as a subreaper this process
becomes its new one, and so of all that the daemon starts. The end of the input, whether somebody
closed it or was killed, ends them all.
"""

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


def children(pid):
    try:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return [int(word) for task in tasks for word in (task / "children").read_text().split()]
    except FileNotFoundError:
        return []


def descendants(pid):
    return [one for child in children(pid) for one in (child, *descendants(child))]


def reap():
    """Forget children that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def asked():
    """Lines of the input, reaping in between what daemons have left behind."""
    rest = b""
    while True:
        if not select.select([0], [], [], 0.5)[0]:
            reap()
            continue
        if not (read := os.read(0, 1 << 16)):
            return
        *lines, rest = (rest + read).split(b"\n")
        yield from lines


def end_all(folder):
    while left := descendants(os.getpid()):
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.02)
        reap()
    shutil.rmtree(folder, ignore_errors=True)


def main():
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: whoever asked closes the input
    for line in asked():
        words, environment = json.loads(line)
        done = subprocess.run(
            words,
            env=environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        print(json.dumps([done.returncode, done.stdout + done.stderr]), flush=True)
    end_all(sys.argv[1])


if __name__ == "__main__":
    main()

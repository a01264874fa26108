"""Processes of Python that begin as forks of one that has imported their modules, which saves 0.6 s of CPU each.

``forks.py DESCRIPTOR MODULE...`` is that one. It reads requests from a socket: a message of JSON each, with the
descriptors of the new process's standard streams and of a pipe for its account, which are the process id and the exit
status, a line each. The new process runs a module as ``python -m`` does, or a script. It has its own arguments,
variables, folder and streams, and is in the process group of the tests unless it asks for a session. Only
``/proc/PID/cmdline`` and the time of its start tell it from a process of its own.

Only the standard library is used, because nuropb's Python may have nothing else of the tests.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any


class Forks:
    """The process whose forks are to be had. It ends with this process."""

    def __init__(self, python: str, *modules: str, environment: Mapping[str, str] | None = None) -> None:
        self._socket, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(
            [python, "-P", __file__, str(there.fileno()), *modules],
            pass_fds=[there.fileno()],
            env=os.environ | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        there.close()
        atexit.register(self._end)

    def start(self, streams: Sequence[int], account: int, **request: Any) -> None:
        """Have a process made. ``streams`` are its standard ones, and ``account`` is a pipe to write to.

        ``request`` has ``module`` or ``script``, ``arguments``, and, if they differ from those of the tests,
        ``environment``, ``folder`` and ``session``.
        """
        socket.send_fds(self._socket, [json.dumps(request).encode()], [*streams, account])

    def _end(self) -> None:
        self._socket.close()
        self._process.wait()


def requested(control: socket.socket) -> Any:
    """Serve requests until the tests end, and return None; in each new process, return its request."""
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    accounts: dict[int, int] = {}
    while True:
        readable, _, _ = select.select([control.fileno(), woken], [], [])
        if woken in readable:
            os.read(woken, 4096)
            report_the_ended(accounts)
        if control.fileno() not in readable:
            continue
        message, descriptors, _, _ = socket.recv_fds(control, 2**20, 4)
        if not message:
            return None
        *streams, account = descriptors
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            os.closerange(3, 1024)
            return json.loads(message)
        for stream in streams:
            os.close(stream)
        accounts[pid] = account
        os.write(account, f"{pid}\n".encode())


def report_the_ended(accounts: dict[int, int]) -> None:
    """Write the exit statuses of the processes that have ended."""
    for pid in list(accounts):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            account = accounts.pop(pid)
            with contextlib.suppress(BrokenPipeError):  # the test that started it has ended
                os.write(account, f"{os.waitstatus_to_exitcode(status)}\n".encode())
            os.close(account)


def main() -> None:
    for name in sys.argv[2:]:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal interrupts the whole group
    wanted = requested(socket.socket(fileno=int(sys.argv[1])))
    if wanted is None:
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if wanted.get("session"):
        os.setsid()
    if "environment" in wanted:
        os.environ.clear()
        os.environ.update(wanted["environment"])
    os.chdir(wanted.get("folder", "."))
    if "script" in wanted:
        sys.argv = [wanted["script"], *wanted["arguments"]]
        runpy.run_path(wanted["script"], run_name="__main__")
    else:
        sys.argv[1:] = wanted["arguments"]
        sys.orig_argv[1:] = ["-m", wanted["module"], *wanted["arguments"]]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(wanted["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

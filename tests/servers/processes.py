"""Real NuroPb peers as processes: a service to be called, and a client that calls.

nuropb 0.1.8 exists for Python 3.11 only. Under another Python the peers run in ``.venv-nuropb``, which the
Makefile makes; the gateway's own process never has it then.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, Self

import pytest

from tests.servers.forks import Forks

__all__ = ["PeerError", "ServiceProcess", "call_with_nuropb", "nuropb_python", "unavailable"]

HERE = Path(__file__).resolve().parent
NUROPB_VENV = HERE.parent.parent / ".venv-nuropb"
START_TIMEOUT = 180.0
STOP_TIMEOUT = 10.0
#: The line of rabbitmq.conf by which a broker denies queues that are neither durable nor exclusive.
DENIED = r"deprecated_features\.permit\.transient_nonexcl_queues\s*=\s*false"


class PeerError(RuntimeError):
    """A NuroPb peer did not start or did not answer; the message has the end of its standard error."""


def unavailable(reason: str) -> NoReturn:
    """Skip the test, but fail it in CI, where everything has to be there."""
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def nuropb_python() -> str:
    """The interpreter for NuroPb's own code. Without one the test is skipped, and fails in CI.

    It is skipped, too, on a broker that denies a queue which every peer of nuropb 0.1.8 declares.
    """
    if re.search(DENIED, os.environ.get("NUROPB_TEST_RABBITMQ_SETTINGS", "")):
        pytest.skip("nuropb 0.1.8 declares a transient queue for replies, which this broker denies")
    if importlib.util.find_spec("nuropb") is not None:
        return sys.executable
    other = NUROPB_VENV / "bin" / "python"
    if other.exists():
        return str(other)
    unavailable("nuropb is not installed: it needs Python 3.11, and 'make test' found none")


class Fork:
    """A process in a session of its own, forked from one that has imported nuropb; its pipes are as those of Popen."""

    def __init__(self, forks: Forks, script: str, arguments: Sequence[str], stderr: int) -> None:
        pipes = [os.pipe() for _ in range(3)]
        (given, stdin), (stdout, output), (account, told) = pipes
        try:
            forks.start([given, output, stderr], told, script=script, arguments=arguments, session=True)
        finally:
            for descriptor in (given, output, told):
                os.close(descriptor)
        self.stdin, self.stdout = os.fdopen(stdin, "wb", 0), os.fdopen(stdout, "rb", 0)
        self._account = os.fdopen(account, "rb", 0)
        self._status: int | None = None
        self.pid = int(self._account.readline())

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, and return the exit status; raises TimeoutExpired."""
        if self._status is None:
            if not select.select([self._account], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("nuropb's service", timeout or 0.0)
            self._status = int(self._account.readline())
            self._account.close()
        return self._status

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


@functools.cache
def _forks(python: str) -> Forks:
    return Forks(python, "nuropb.rmq_api", "nuropb.testing.stubs")


class ServiceProcess:
    """A NuroPb service in a process of its own, for a ``with`` block.

    ``kind`` is "echo" (``EchoService`` of nuropb_service.py) or "stub" (nuropb's ``ServiceExample``);
    ``events`` are the topics that it takes. It ends with this process, even if that is killed. A start takes
    about one second, and like everything here it blocks the thread. The service's durable queue stays when it
    is gone.
    """

    def __init__(
        self,
        url: str,
        service: str,
        *,
        kind: Literal["echo", "stub"] = "echo",
        prefetch: int = 1,
        dl_queue: str | None = None,
        events: Sequence[str] = ("#",),
    ) -> None:
        self.service = service
        arguments = ["--url", url, "--service", service, "--kind", kind, "--prefetch", str(prefetch)]
        if dl_queue is not None:
            arguments += ["--dl-queue", dl_queue]
        for pattern in events:
            arguments += ["--events", pattern]
        self._python = nuropb_python()
        self._arguments = arguments
        self._process: Fork | None = None
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._stderr.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
        self._stderr.close()

    @property
    def pid(self) -> int:
        """The process id of the running service."""
        return self._running().pid

    @property
    def queue(self) -> str:
        """The name of the service's queue on the broker."""
        return f"nuropb-{self.service}-sq"

    def start(self) -> None:
        """Start, or start again after ``kill``, and wait until the service consumes its queue."""
        if self._process is not None:
            raise PeerError(f"service {self.service} is running already")
        script = str(HERE / "nuropb_service.py")
        self._process = Fork(_forks(self._python), script, self._arguments, self._stderr.fileno())
        try:
            self._wait_until_ready(self._process)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Ask the service to leave in good order and wait for it. May be called twice."""
        if self._process is not None:
            self._close_pipes(self._process)
            try:
                self._process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def kill(self) -> None:
        """End the service with SIGKILL: what it has not acknowledged goes back to its queue."""
        process = self._running()
        process.kill()
        self.wait()

    def wait(self, timeout: float = STOP_TIMEOUT) -> int:
        """Wait until the service has ended by itself and return its exit status."""
        process = self._running()
        status = process.wait(timeout)
        self._close_pipes(process)
        self._process = None
        return status

    def freeze(self) -> None:
        """Stop the process: it keeps its connection and its messages and does nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let the process go on after ``freeze``."""
        os.kill(self.pid, signal.SIGCONT)

    def stderr(self, size: int = 3000) -> str:
        """The end of what the service has written to its standard error, over all its starts."""
        end = os.fstat(self._stderr.fileno()).st_size
        return os.pread(self._stderr.fileno(), size, max(0, end - size)).decode(errors="replace")

    def _running(self) -> Fork:
        if self._process is None:
            raise PeerError(f"service {self.service} is not running")
        return self._process

    def _wait_until_ready(self, process: Fork) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        said = b""
        while not said.endswith(b"READY\n"):
            readable, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(process.stdout.fileno(), 4096) if readable else b""
            if not chunk:
                what = "ended" if readable else f"was not ready in {START_TIMEOUT:.0f} s"
                raise PeerError(f"service {self.service} {what}; the end of its log:\n{self.stderr()}")
            said += chunk

    @staticmethod
    def _close_pipes(process: Fork) -> None:
        process.stdin.close()
        process.stdout.close()


def call_with_nuropb(
    url: str,
    service: str = "",
    method: str = "",
    params: Mapping[str, Any] | None = None,
    *,
    context: Mapping[str, Any] | None = None,
    command: bool = False,
    event: str | None = None,
    encrypted: bool = False,
    ttl: int | None = None,
    timeout: float = 15.0,
) -> dict[str, Any]:
    """Make one call with nuropb's own client, in a process of its own, and return NuroPb's response.

    With ``command`` a command is sent, and with ``event``, a topic, ``params`` is published as an event: both
    return {"sent": True}. ``ttl`` is in milliseconds. No answer within ``timeout`` seconds is a PeerError.
    """
    arguments = ["--url", url, "--service", service, "--method", method, "--timeout", str(timeout)]
    arguments += ["--params", json.dumps(params or {}), "--context", json.dumps(context or {})]
    if command:
        arguments += ["--command"]
    if event is not None:
        arguments += ["--event", event]
    if encrypted:
        arguments += ["--encrypted"]
    if ttl is not None:
        arguments += ["--ttl", str(ttl)]
    status, output, errors = _ask_client(arguments, timeout + START_TIMEOUT)
    if status != 0:
        raise PeerError(f"nuropb's client ended with {status}:\n{errors[-3000:]}")
    response: dict[str, Any] = json.loads(output)
    return response


#: Processes of nuropb_client.py without a call at the moment. Each call is made in a fork of one of them.
_idle_clients: list[subprocess.Popen[str]] = []


def _ask_client(arguments: Sequence[str], timeout: float) -> tuple[int, str, str]:
    """Have a call made, and return its exit status, output and errors. May be called by several threads at once."""
    try:
        client = _idle_clients.pop()
    except IndexError:
        client = subprocess.Popen(
            [nuropb_python(), "-P", str(HERE / "nuropb_client.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    assert client.stdin is not None
    assert client.stdout is not None
    try:
        client.stdin.write(json.dumps(arguments) + "\n")
        client.stdin.flush()
        readable, _, _ = select.select([client.stdout], [], [], timeout)
        line = client.stdout.readline() if readable else ""
        if not line:
            raise PeerError(f"nuropb's client did not end in {timeout:.0f} s")
    except BaseException:
        client.kill()
        _end_client(client)
        raise
    _idle_clients.append(client)
    status, output, errors = json.loads(line)
    return status, output, errors


def _end_client(client: subprocess.Popen[str]) -> None:
    for pipe in (client.stdin, client.stdout):
        assert pipe is not None
        pipe.close()
    client.wait()


@atexit.register
def _end_clients() -> None:
    while _idle_clients:
        _end_client(_idle_clients.pop())

"""Broker, services and processes of a run."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.contenders import MOLECULER_DIRECTORY, ROOT, Contender
from benchmarks.process import cpu_seconds, family, resident_bytes
from benchmarks.tokens import Keys, make_keys
from tests.servers.rabbitmq import RabbitMQNode, free_port

__all__ = ["BenchmarkError", "Crew", "Process", "Stage"]

START_TIMEOUT: Final = 30.0
STOP_TIMEOUT: Final = 10.0
#: Seconds for an order, beside its own duration: a deadline that detects failures.
ORDER_TIMEOUT: Final = 60.0
SERVICE: Final = "bench"


class BenchmarkError(RuntimeError):
    """A failed start of a process, or an error that it reported."""


class Process:
    """A child process with its standard error in a file."""

    def __init__(self, name: str, *command: str, directory: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self._log = directory / f"{name}-{time.monotonic_ns()}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, **environment},
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> None:
        """Raise BenchmarkError if the process has ended."""
        status = self._process.poll()
        if status is not None:
            raise self.error(f"ended with {status}")

    def error(self, what: str) -> BenchmarkError:
        log = self._log.read_text(errors="replace")[-3000:]
        return BenchmarkError(f"{self.name} {what}; the end of its log:\n{log}")

    def line(self, timeout: float) -> str:
        """Return the next line of its standard output. Raises BenchmarkError on a timeout, or if the process ends."""
        stdout = self._process.stdout
        assert stdout is not None
        deadline = time.monotonic() + timeout
        said = b""
        while not said.endswith(b"\n"):
            readable, _, _ = select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(stdout.fileno(), 65536) if readable else b""
            if not chunk:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(1)
                raise self.error("ended" if readable else f"printed nothing in {timeout:.0f} s")
            said += chunk
        return said.decode().strip()

    def order(self, do: str, **arguments: Any) -> Any:
        """Send an order to clients (see load.py), and return their answer."""
        stdin = self._process.stdin
        assert stdin is not None
        with contextlib.suppress(BrokenPipeError):
            stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            stdin.flush()
        return json.loads(self.line(ORDER_TIMEOUT + arguments.get("count", 0) / 50))

    def stop(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@dataclass(frozen=True)
class Server:
    """A running contender; without a process it is part of the broker."""

    contender: Contender
    port: int
    process: Process | None
    #: Name on the mesh.
    service_name: str

    @property
    def resident_bytes(self) -> int:
        assert self.process is not None
        return resident_bytes(self.process.pid)

    def is_ready(self) -> bool:
        if self.process is None:
            return True
        self.process.check()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


@dataclass(frozen=True)
class Crew:
    """A server and its clients."""

    server: Server
    clients: Process


class Stage:
    """Broker, services and keys for all contenders. ``size`` is the length of each request's text in characters."""

    def __init__(self, stack: contextlib.ExitStack, size: int) -> None:
        self._size = size
        self._directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))
        self._stack = stack
        self._keys: dict[str, Keys] = {}
        self._stomp_port, port = free_port(), free_port()
        self._node = stack.enter_context(
            RabbitMQNode(
                plugins=["rabbitmq_web_stomp"],
                settings=[
                    f"web_stomp.tcp.listener = 127.0.0.1:{self._stomp_port}",
                    f"stomp.listeners.tcp.1 = 127.0.0.1:{port}",
                ],
            )
        )
        url = self._node.url()
        self._service = self._start(stack, "service", sys.executable, "-m", "benchmarks.service", "--url", url)
        self.broker_version = self._service.line(START_TIMEOUT).removeprefix("READY ")
        self._moleculer_service: Process | None = None

    def start(
        self,
        stack: contextlib.ExitStack,
        contenders: Iterable[Contender],
        algorithm: str = "HS256",
        dialect: str | None = None,
    ) -> list[Crew]:
        """Start the contenders, all at once, and for each its clients, which wait for orders.

        The clients speak ``dialect`` in the place of the contender's own.
        """
        servers = [self._serve(stack, contender, algorithm, http=dialect is not None) for contender in contenders]
        for server in servers:
            self._await(server, 0.05)
        return [Crew(server, self._clients(stack, server, algorithm, dialect)) for server in servers]

    def start_alone(self, contender: Contender) -> tuple[float, float]:
        """Start a contender, and stop it once it is ready; return the seconds until then, and its CPU seconds."""
        self._service_for(contender)
        with contextlib.ExitStack() as stack:
            began = time.perf_counter()
            server = self._serve(stack, contender, "HS256")
            self._await(server, 0.002)
            assert server.process is not None
            return time.perf_counter() - began, sum(map(cpu_seconds, family(server.process.pid)))

    def _await(self, server: Server, interval: float) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not server.is_ready():
            if time.monotonic() > deadline:
                assert server.process is not None
                raise server.process.error(f"was not ready in {START_TIMEOUT:.0f} s")
            time.sleep(interval)

    def _serve(
        self, stack: contextlib.ExitStack, contender: Contender, algorithm: str, *, http: bool = False
    ) -> Server:
        if not contender.command:
            return Server(contender, self._stomp_port, None, SERVICE)
        service = self._service_for(contender)
        service.check()
        port = free_port()
        service_name = f"bench-{contender.name}-{port}"
        _, key = self._keys_for(algorithm)
        settings = {
            "NUROPB_GATEWAY_SERVICE_NAME": service_name,
            "NUROPB_GATEWAY_JWT_KEY": key,
            "NUROPB_GATEWAY_JWT_ALGORITHMS": algorithm,
            "NUROPB_GATEWAY_EXPOSE": f"{SERVICE}.*",
            "NUROPB_GATEWAY_EXPOSE_TOPICS": f"{SERVICE}.#",
            "NUROPB_GATEWAY_MAX_CONNECTIONS": "20000",
            "NUROPB_GATEWAY_HTTP": "on" if http else "off",
            # The other contenders have no such limits, and no access log, which nobody reads here.
            "NUROPB_GATEWAY_LOG_LEVEL": "warning",
            "NUROPB_GATEWAY_OVERLOAD_DELAY": "0",
            "NUROPB_GATEWAY_RATE_LIMIT": "off",
            "NUROPB_GATEWAY_RATE_LIMIT_USER": "off",
            "NUROPB_GATEWAY_HANDSHAKE_RATE": "off",
            "NUROPB_GATEWAY_HANDSHAKE_RATE_PER_ADDRESS": "off",
        }
        process = self._start(stack, contender.name, *contender.command, str(port), environment=settings)
        return Server(contender, port, process, service_name)

    def _clients(self, stack: contextlib.ExitStack, server: Server, algorithm: str, dialect: str | None) -> Process:
        contender = server.contender
        pids = {"service": self._service_for(contender).pid, "broker": self._node.pid}
        if server.process is not None:
            pids["server"] = server.process.pid
        broadcaster = contender.broadcaster
        if "." not in broadcaster:
            broadcaster = f"{server.service_name}.{broadcaster}"
        signing_key, _ = self._keys_for(algorithm)
        return self._start(
            stack,
            f"clients of {contender.name}",
            *(sys.executable, "-m", "benchmarks.load", dialect or contender.dialect),
            *("--port", str(server.port), "--size", str(self._size)),
            *("--service", SERVICE, "--broadcaster", broadcaster, "--topic", f"{SERVICE}.{contender.name}"),
            *(f"--pid={name}={pid}" for name, pid in pids.items()),
            environment={"BENCHMARK_SIGNING_KEY": signing_key, "BENCHMARK_ALGORITHM": algorithm},
        )

    def _service_for(self, contender: Contender) -> Process:
        if not contender.is_moleculer:
            return self._service
        if self._moleculer_service is None:
            node = shutil.which("node") or "node"
            program = str(MOLECULER_DIRECTORY / "service.mjs")
            self._moleculer_service = self._start(self._stack, "moleculer-service", node, program)
            self._moleculer_service.line(START_TIMEOUT)
        return self._moleculer_service

    def _keys_for(self, algorithm: str) -> Keys:
        if algorithm not in self._keys:
            self._keys[algorithm] = make_keys(algorithm)
        return self._keys[algorithm]

    def _start(
        self, stack: contextlib.ExitStack, name: str, *command: str, environment: Mapping[str, str] | None = None
    ) -> Process:
        own = {"PYTHONUNBUFFERED": "1", "NUROPB_GATEWAY_MESH_URL": self._node.url(), **(environment or {})}
        process = Process(name, *command, directory=self._directory, environment=own)
        stack.callback(process.stop)
        return process


def rotated(crews: Sequence[Crew], turn: int) -> list[Crew]:
    """Rotate the crews, so that each turn begins with a different crew."""
    shift = turn % len(crews)
    return [*crews[shift:], *crews[:shift]]

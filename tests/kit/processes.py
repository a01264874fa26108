"""The gateway as others run it: in a process of its own, with nothing but an environment and a command line."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final

from nuropb_gateway_asgi.settings import ENV_PREFIX

__all__ = ["ROOT", "Process", "run_module", "run_process"]

#: Seconds. A start costs one of the processor's, and on a busy machine there may be little of that.
DEADLINE: Final = 60.0
ROOT: Final = Path(__file__).resolve().parents[2]


class Process:
    """A running process, and all the lines that it wrote so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self._process = process
        self._news = asyncio.Event()
        self.stdout: list[str] = []
        self.stderr: list[str] = []
        self._readers = [
            asyncio.create_task(self._read(process.stdout, self.stdout)),
            asyncio.create_task(self._read(process.stderr, self.stderr)),
        ]

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it says nothing more."""
        return all(reader.done() for reader in self._readers)

    async def line(self, pattern: str) -> re.Match[str]:
        """The first line, of either stream, in which ``pattern`` is found."""
        try:
            async with asyncio.timeout(DEADLINE):
                while True:
                    for line in self.stdout + self.stderr:
                        if match := re.search(pattern, line):
                            return match
                    assert not self.ended, "the process has ended"
                    self._news.clear()
                    await self._news.wait()
        except (TimeoutError, AssertionError) as error:
            raise AssertionError(f"no line with {pattern!r} in:\n{self.output}") from error

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    async def wait(self) -> int:
        """The exit status, once the process and its output have ended."""
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*self._readers)
            return await self._process.wait()

    @property
    def output(self) -> str:
        return "\n".join(self.stdout + self.stderr)

    async def _read(self, stream: asyncio.StreamReader, lines: list[str]) -> None:
        while line := await stream.readline():
            lines.append(line.decode().rstrip("\n"))
            self._news.set()
        self._news.set()

    async def end(self) -> None:
        """Kill it, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self.wait()


@contextlib.asynccontextmanager
async def run_process(
    *command: str,
    settings: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    **options: Any,
) -> AsyncIterator[Process]:
    """Run a command at the root of the project, with ``settings`` (without their prefix) as its only ones.

    ``environment`` is added to that of the tests; ``options`` are those of subprocess.Popen.
    """
    variables = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    variables |= {"PYTHONPATH": str(ROOT)}
    variables |= {f"{ENV_PREFIX}{name}": value for name, value in (settings or {}).items()}
    variables |= environment or {}
    process = Process(
        await asyncio.create_subprocess_exec(*command, cwd=cwd, env=variables, stdout=PIPE, stderr=PIPE, **options)
    )
    try:
        yield process
    finally:
        await process.end()


def run_module(*arguments: str, **options: Any) -> contextlib.AbstractAsyncContextManager[Process]:
    """Run ``python -m`` with these arguments; the options are those of :func:`run_process`."""
    return run_process(sys.executable, "-m", *arguments, **options)

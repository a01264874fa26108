"""The steps of a page of the docs, as a reader does them: files are written, and commands run in bash.

A block of code with a title such as ``orders.py`` is a file. A console block is a list of commands, each after ``$ ``,
with the output that is expected: "..." stands for anything. A console block with the title ``Terminal 2: ...`` stays
running in that terminal; a later block for the same terminal ends it first.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nuropb_gateway_asgi.settings import ENV_PREFIX

from .processes import Process

__all__ = ["Block", "Walk", "blocks_of", "walk"]

FENCE: Final = re.compile(r'^```(\w+)(?: title="([^"]*)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)
#: Seconds for one command; the installation of packages is the longest.
PATIENCE: Final = 300.0


@dataclass(frozen=True)
class Block:
    """A block of code, and its title or an empty text."""

    language: str
    title: str
    text: str

    @property
    def terminal(self) -> str:
        """The name of the terminal in which the commands stay running, or an empty text."""
        return self.title.partition(":")[0] if self.title.startswith("Terminal") else ""

    def commands(self) -> list[tuple[str, list[str]]]:
        """The commands, each with the lines of output that the page shows."""
        found: list[tuple[str, list[str]]] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif found:
                found[-1][1].append(line)
        return found


def blocks_of(page: Path) -> list[Block]:
    """Return all blocks of a page, in their order."""
    return [Block(*match.groups(default="")) for match in FENCE.finditer(page.read_text(encoding="utf-8"))]


class Walk:
    """A reader in a folder of their own."""

    def __init__(self, folder: Path, replaced: Mapping[str, str], environment: Mapping[str, str]) -> None:
        self.folder = folder
        self._replaced = replaced
        self._environment = environment
        self._terminals: dict[str, Process] = {}
        # The variables that the reader has exported in the first terminal.
        self._exports: list[str] = []

    def terminal(self, name: str) -> Process:
        """The process that runs in a terminal."""
        return self._terminals[name]

    async def do(self, block: Block) -> None:
        """Write a file, run commands, or leave one running."""
        if block.terminal:
            await self._leave_running(block)
        elif block.language == "console":
            for command, expected in block.commands():
                await self._run(command, expected)
        elif block.title:
            file = self.folder / block.title
            file.parent.mkdir(exist_ok=True)
            file.write_text(self._own(block.text), encoding="utf-8")

    def shown(self) -> str:
        """Return what the terminals show, each by its last lines."""
        shown = {name: process.output.splitlines()[-20:] for name, process in self._terminals.items()}
        return "\n".join(line for name, lines in shown.items() for line in [f"{name}:", *lines])

    async def stop(self, terminal: str) -> None:
        """Press Ctrl+C in a terminal."""
        process = self._terminals.pop(terminal, None)
        if process is not None:
            os.killpg(process.pid, signal.SIGINT)
            await process.wait()

    async def end(self) -> None:
        """Stop everything that runs."""
        for terminal in list(self._terminals):
            await self.stop(terminal)

    def _own(self, text: str) -> str:
        for old, new in self._replaced.items():
            text = text.replace(old, new)
        return text

    async def _run(self, command: str, expected: list[str]) -> None:
        if re.match(r"export \w+=|set -a", command):
            self._exports.append(self._own(command))
        script = "\n".join(["set -e", *self._exports, "set +e", self._own(command)])
        process = await self._shell(script)
        status = await process.wait(PATIENCE)
        assert status == 0, f"{command}\n{process.output}"
        shown = "\n".join(expected)
        pattern = re.escape(self._own(shown)).replace(r"\.\.\.", "(?s:.*?)")
        output = "\n".join(process.stdout)
        assert re.search(pattern, output), f"{command}\nprints\n{output}\nand not\n{shown}"

    async def _leave_running(self, block: Block) -> None:
        await self.stop(block.terminal)
        commands = [self._own(command) for command, _ in block.commands()]
        # The last command takes the place of the shell, so that Ctrl+C reaches it alone.
        self._terminals[block.terminal] = await self._shell("\n".join([*commands[:-1], f"exec {commands[-1]}"]))

    async def _shell(self, script: str) -> Process:
        variables = {
            name: value for name, value in os.environ.items() if not name.startswith((ENV_PREFIX, "PYTHONPATH"))
        }
        pipes: dict[str, Any] = {"stdin": DEVNULL, "stdout": PIPE, "stderr": PIPE}
        variables |= dict(self._environment)
        return Process(
            await asyncio.create_subprocess_exec(
                "bash", "-c", script, cwd=self.folder, env=variables, start_new_session=True, **pipes
            )
        )


@contextlib.asynccontextmanager
async def walk(folder: Path, replaced: Mapping[str, str], **environment: str) -> AsyncIterator[Walk]:
    """Walk through a page in ``folder``, with these texts replaced, such as ports that may be in use here.

    ``environment`` stands for what follows from the replaced texts, such as the URL of a gateway on another port.
    """
    reader = Walk(folder, replaced, environment)
    try:
        yield reader
    except BaseException as error:
        error.add_note(reader.shown())
        raise
    finally:
        await reader.end()

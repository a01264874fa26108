"""Applications with the packed client in their node_modules, as npm would install it."""

from __future__ import annotations

import asyncio
import functools
import json
import shutil
import subprocess
import tarfile
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path
from typing import Final

from tests.kit.javascript import node
from tests.kit.processes import ROOT
from tests.servers.javascript import CLIENT

__all__ = ["Project", "make_project"]

MATRIX: Final = ROOT / ".matrix"
#: Peers are the application's business, and nothing runs that a package brings.
INSTALL: Final = ("install", "--no-audit", "--no-fund", "--ignore-scripts", "--legacy-peer-deps", "--loglevel=error")


class Project:
    """The folder of an application."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, text: str) -> Path:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    async def run(self, *command: str) -> tuple[int, str]:
        """Run a command in the folder, and return its exit status and output."""
        process = await asyncio.create_subprocess_exec(*command, cwd=self.folder, stdout=PIPE, stderr=STDOUT)
        output, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, output.decode()

    async def node(self, *arguments: str) -> str:
        """Run Node, and return the output of a run without errors."""
        status, output = await self.run(*node(), *arguments)
        assert status == 0, output
        return output

    def program(self, package: str, path: str) -> str:
        """Return the path of a program of a package."""
        return str(self.folder / "node_modules" / package / path)


async def make_project(name: str, **packages: str) -> Project:
    """Return an application with ``packages``: versions by names, in which ``__`` stands for a slash."""
    folder = MATRIX / name
    wanted = {each.replace("__", "/").replace("_", "-"): version for each, version in packages.items()}
    wanted = {f"@{each}" if "/" in each else each: version for each, version in wanted.items()}
    manifest = json.dumps({"private": True, "dependencies": wanted}, indent=2)
    project = Project(folder)
    file = folder / "package.json"
    if not (folder / ".done").exists() or file.read_text() != manifest:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        file.write_text(manifest)
        status, output = await project.run("npm", *INSTALL)
        assert status == 0, output
        (folder / ".done").touch()
    for each in folder.iterdir():
        if each.name not in ("node_modules", "package.json", "package-lock.json", ".done"):
            shutil.rmtree(each) if each.is_dir() else each.unlink()
    client = folder / "node_modules" / "nuropb-gateway-client"
    shutil.rmtree(client, ignore_errors=True)
    with tarfile.open(_packed()) as packed:
        packed.extractall(client.parent, filter="data")
    (client.parent / "package").rename(client)
    return project


@functools.cache
def _packed() -> Path:
    """Pack the built client, and return the file."""
    MATRIX.mkdir(exist_ok=True)
    command = ("npm", "pack", "--ignore-scripts", "--silent", "--pack-destination", str(MATRIX))
    output = subprocess.run(command, cwd=CLIENT, check=True, capture_output=True, text=True).stdout
    return MATRIX / output.split()[-1]

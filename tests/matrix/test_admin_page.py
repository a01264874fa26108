"""The commands of docs/admin.md against gateways that its own lines start; that of ssh alone is left out."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from tests.kit.clients import connect
from tests.kit.processes import ROOT, SECRET, token_of
from tests.kit.walk import Block, Walk, blocks_of, walk
from tests.servers.processes import unavailable
from tests.servers.provision import find_tool
from tests.servers.rabbitmq import free_port

BLOCKS: Final = [block for block in blocks_of(ROOT / "docs" / "admin.md") if block.language == "console"]
#: The parts of the page's output that are others each time.
EXAMPLES: Final = ("6b2c4ad0d4a24c5fbb8cf2b1b2d3a9f1", "2026-11-30 07:08:11", "8c65b9dddc54dac440cd1cd7af359c12")


def serving(at: str) -> Block:
    """Return the block that starts a gateway with its admin API at this kind of address."""
    (block,) = (each for each in BLOCKS if each.terminal and at in each.title)
    return block


def commands(start: str) -> list[Block]:
    """Return the commands of the page that begin so, each as a block of its own."""
    found = [(block, command) for block in BLOCKS if not block.terminal for command, _ in block.commands()]
    return [replace(block, text=f"$ {command}\n") for block, command in found if command.startswith(start)]


@asynccontextmanager
async def page(folder: Path, replaced: dict[str, str], **environment: str) -> AsyncIterator[Walk]:
    if find_tool("curl") is None:
        unavailable("curl is not installed")
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    changes = {"nuropb-gateway serve": "nuropb-gateway serve --port 0"} | replaced
    async with walk(folder, changes, PATH=programs, NUROPB_GATEWAY_JWT_KEY=SECRET, **environment) as reader:
        yield reader


async def started(reader: Walk, block: Block) -> str:
    """Start a gateway; return the URL for its clients once its admin API is open."""
    await reader.do(block)
    gateway = reader.terminal(block.terminal)
    url = (await gateway.line(r"ws://\S+"))[0]
    await gateway.line("the admin API is at")
    return url


async def test_curl_asks_at_the_unix_socket(tmp_path: Path) -> None:
    replaced = {"/run/nuropb-gateway/admin.sock": str(tmp_path / "admin.sock")}
    async with page(tmp_path, replaced) as reader:
        await started(reader, serving("socket"))
        (curl,) = commands("curl --unix-socket")
        await reader.do(
            replace(
                curl,
                text=f'{curl.text}{{"processes":[{{"instance_id":"...","version":"...","seconds":...,"ready":true...\n',
            )
        )


async def test_the_command_and_curl_ask_at_the_port(tmp_path: Path) -> None:
    port = str(free_port())
    environment = {"NUROPB_GATEWAY_ADMIN_LISTEN": f"127.0.0.1:{port}", "NUROPB_GATEWAY_ADMIN_TOKEN_FILE": "admin.token"}
    replaced = {"9100": port} | dict.fromkeys(EXAMPLES, "...")
    async with page(tmp_path, replaced, **environment) as reader:
        url = await started(reader, serving("port"))
        async with connect(url, token_of("alice")):
            (curl,) = commands("curl -H")
            await reader.do(replace(curl, text=f'{curl.text}{{"connections":[{{..."user_id":"alice"...\n'))
        async with connect(url, token_of("dev")) as client:
            await client.ask("subscribe", topics=["demo.x"])
            (example,) = (block for block in BLOCKS if "admin connections" in block.text)
            await reader.do(example)
            assert (await client.closed()).code == 4503

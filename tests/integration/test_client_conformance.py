"""Both clients, tested by the scripts of ``tests/conformance``."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.kit.conformance import JavaScriptDriver, PythonDriver, Script, play, scripts
from tests.kit.javascript import node
from tests.servers.javascript import CLIENT

SCRIPTS = dict(scripts())


def scripts_for(client: str) -> dict[str, Script]:
    """The scripts that a client has to follow, by name: all but those for other clients."""
    return {name: script for name, script in SCRIPTS.items() if client in script.get("clients", [client])}


@pytest.fixture(scope="module")
async def node_driver() -> AsyncIterator[JavaScriptDriver]:
    async with JavaScriptDriver.start(*node(), str(CLIENT / "tests" / "driver.js")) as driver:
        yield driver


@pytest.mark.parametrize("script", scripts_for("python").values(), ids=scripts_for("python").keys())
async def test_the_python_client_follows_the_script(script: Script) -> None:
    await play(script, PythonDriver())


@pytest.mark.parametrize("script", scripts_for("javascript").values(), ids=scripts_for("javascript").keys())
async def test_the_javascript_client_follows_the_script(script: Script, node_driver: JavaScriptDriver) -> None:
    await play(script, node_driver)

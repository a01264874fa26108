"""Both clients, tested by the scripts of ``tests/conformance``."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.kit.conformance import JavaScriptDriver, PythonDriver, Script, play, scripts
from tests.kit.javascript import node
from tests.servers.javascript import CLIENT

SCRIPTS = dict(scripts())


@pytest.fixture(scope="module")
async def node_driver() -> AsyncIterator[JavaScriptDriver]:
    async with JavaScriptDriver.start(*node(), str(CLIENT / "tests" / "driver.js")) as driver:
        yield driver


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
async def test_the_python_client_follows_the_script(script: Script) -> None:
    await play(script, PythonDriver())


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
async def test_the_javascript_client_follows_the_script(script: Script, node_driver: JavaScriptDriver) -> None:
    await play(script, node_driver)

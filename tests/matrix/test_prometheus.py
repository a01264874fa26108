"""Prometheus with the files of ``deploy/``, before a gateway that works, stops and works again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.kit.clients import connect
from tests.kit.processes import ROOT, SECRET, run_module, run_process, token_of
from tests.servers.processes import unavailable
from tests.servers.provision import find_tool
from tests.servers.proxies import rendered
from tests.servers.rabbitmq import free_port

RULES = "nuropb-gateway.rules.yml"
#: The alarm waits for a minute.
PATIENCE = 120.0


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
async def prometheus(port: int, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    """Prometheus, which asks every second in place of every 15."""
    program = find_tool("prometheus")
    if program is None:
        unavailable("prometheus is not installed")
    directory, own_port = tmp_path_factory.mktemp("prometheus"), free_port()
    source = ROOT / "deploy" / "prometheus"
    changes = {"127.0.0.1:8000": f"127.0.0.1:{port}", "15s": "1s"}
    (directory / "prometheus.yml").write_text(rendered(source / "prometheus.yml", changes))
    (directory / RULES).write_text((source / RULES).read_text())
    command = [
        program,
        f"--config.file={directory}/prometheus.yml",
        f"--storage.tsdb.path={directory}/data",
        f"--web.listen-address=127.0.0.1:{own_port}",
    ]
    async with (
        run_process(*command) as process,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{own_port}/api/v1", trust_env=False) as client,
    ):
        await process.line("Server is ready")
        yield client


async def answer(prometheus: httpx.AsyncClient, path: str, **parameters: str) -> Any:
    response = (await prometheus.get(path, params=parameters)).json()
    assert response["status"] == "success", response
    return response["data"]


async def alarm(prometheus: httpx.AsyncClient, name: str) -> str | None:
    """Return the state of an alarm, or None for one that is silent."""
    alarms = (await answer(prometheus, "/alerts"))["alerts"]
    return next((each["state"] for each in alarms if each["labels"]["alertname"] == name), None)


async def becomes(prometheus: httpx.AsyncClient, name: str, state: str | None) -> None:
    async with asyncio.timeout(PATIENCE):
        while await alarm(prometheus, name) != state:
            await asyncio.sleep(0.5)


async def test_the_rules_and_dashboards_have_values_and_an_alarm_fires_and_is_resolved(
    prometheus: httpx.AsyncClient, port: int
) -> None:
    gateway = ("nuropb_gateway_asgi", "serve", "--port", str(port))
    settings = {"JWT_KEY": SECRET, "EXPOSE": "demo.*"}
    async with run_module(*gateway, settings=settings) as process:
        url = (await process.line(r"ws://\S+"))[0]
        async with connect(url, token_of("alice")) as client:
            called = "rate(nuropb_gateway_requests_total[20s]) > 0"
            async with asyncio.timeout(PATIENCE):
                while not (await answer(prometheus, "/query", query=called))["result"]:
                    assert await client.result("demo.add", {"a": 1, "b": 2}) == 3
                    await asyncio.sleep(0.5)
        for panel, expression in expressions():
            found = (await answer(prometheus, "/query", query=expression))["result"]
            assert found or panel not in ("Processes", "Connections", "Failed calls", "Duration of calls"), panel
        groups = (await answer(prometheus, "/rules"))["groups"]
        assert {
            rule["name"]: rule["lastError"] for group in groups for rule in group["rules"] if rule.get("lastError")
        } == {}
        assert await alarm(prometheus, "NuropbGatewayDown") is None
    await becomes(prometheus, "NuropbGatewayDown", "firing")
    async with run_module(*gateway, settings=settings):
        await becomes(prometheus, "NuropbGatewayDown", None)


def expressions() -> list[tuple[str, str]]:
    """Return the titles and expressions of all panels, for all gateways and services."""
    found: list[tuple[str, str]] = []
    for path in sorted(Path(ROOT / "deploy" / "grafana").glob("*.json")):
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]:
            for target in panel.get("targets", ()):
                text = target["expr"].replace("$__rate_interval", "20s")
                found.append((panel["title"], text.replace("$instance", ".*").replace("$service", ".*")))
    return found

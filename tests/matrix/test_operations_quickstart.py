"""docs/operations-quickstart.md from its first command to its last, without those of Docker and of Grafana."""

from __future__ import annotations

import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.kit.processes import ROOT
from tests.kit.walk import blocks_of, walk
from tests.servers.processes import unavailable
from tests.servers.provision import find_tool
from tests.servers.rabbitmq import RabbitMQNode, free_port

PAGE: Final = ROOT / "docs" / "operations-quickstart.md"
COMPOSE: Final[dict[str, Any]] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))
#: The ports of the page.
PORTS: Final = ("8000", "9090", "9093")


@pytest.fixture
def broker() -> Iterator[RabbitMQNode]:
    """A broker without queues: the service has the same name as that of the examples."""
    with RabbitMQNode() as node:
        yield node


async def test_the_quickstart_leads_to_an_alarm_that_fires_and_is_resolved(
    broker: RabbitMQNode, tmp_path: Path
) -> None:
    if any(find_tool(name) is None for name in ("prometheus", "prometheus-alertmanager", "curl")):
        unavailable("prometheus, its alert manager or curl is not installed")
    ports = {port: str(free_port()) for port in PORTS}
    replaced = {
        "amqp://guest:guest@127.0.0.1:5672/": broker.url(),
        "../nuropb-gateway-asgi": str(ROOT),
        "python3 -m venv": f"{sys.executable} -m venv",
    }
    replaced |= ports
    done: list[str] = []
    async with walk(tmp_path, replaced, NUROPB_GATEWAY_URL=f"ws://127.0.0.1:{ports['8000']}/ws") as reader:
        for block in blocks_of(PAGE):
            if "docker" in block.text:
                continue
            if block.title.startswith("After Ctrl+C"):
                await reader.stop("Terminal 3")
            await reader.do(block)
            done.append(block.title)
    assert any(title.startswith("After Ctrl+C") for title in done)
    check_secrets(tmp_path / "deploy")


def check_secrets(folder: Path) -> None:
    """Check that every secret of compose.yaml is there, that the containers can read it, and others cannot."""
    secrets = {secret["file"] for secret in COMPOSE["secrets"].values()} | {"./secrets/rabbitmq.conf"}
    assert {f"./secrets/{path.name}" for path in (folder / "secrets").iterdir()} == secrets
    assert stat.S_IMODE((folder / "secrets").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folder / "secrets").iterdir()} == {0o644}
    password = (folder / "secrets" / "rabbitmq.conf").read_text().split()[-1]
    assert (folder / "secrets" / "mesh_url").read_text() == f"amqp://nuropb:{password}@rabbitmq:5672/\n"

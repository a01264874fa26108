"""The gateway and the example service of ``deploy/compose.yaml``, as processes with its commands and environment."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any, Final

import yaml

from tests.kit.clients import connect
from tests.kit.processes import ROOT, SECRET, run_process, token_of
from tests.servers.rabbitmq import free_port

SERVICES: Final[dict[str, Any]] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]


async def test_the_gateway_and_the_example_service_of_compose_serve_a_call(amqp_url: str, tmp_path: Path) -> None:
    (tmp_path / "mesh_url").write_text(amqp_url)
    (tmp_path / "jwt_key").write_text(SECRET)

    def own(text: str) -> str:
        return text.replace("/run/secrets", str(tmp_path)).replace("$$", "$").replace("python3", sys.executable)

    environment = {name: own(value) for name, value in SERVICES["gateway"]["environment"].items()}
    port = free_port()
    # The CMD of the image, which compose.yaml leaves as it is.
    gateway = (sys.executable, "-m", "nuropb_gateway_asgi", "serve", "--port", str(port))
    orders = [own(word) for word in SERVICES["orders"]["entrypoint"]]
    token = token_of(
        "alice",
        iss=environment["NUROPB_GATEWAY_JWT_ISSUER"],
        aud=environment["NUROPB_GATEWAY_JWT_AUDIENCE"],
    )
    async with (
        run_process(*orders, cwd=ROOT) as service,
        run_process(*gateway, environment=environment) as process,
    ):
        await service.line("mesh connected$")
        # Each transport has a connection of its own, and the service is behind that of WebSockets here.
        await process.line("revocations are read")
        await process.line("mesh connected$")
        async with connect(f"ws://127.0.0.1:{port}/ws", token) as client:
            created = await client.result("orders.create", {"item": "tea"})
            assert created["item"] == "tea"
        for each in (process, service):
            each.signal(signal.SIGTERM)
            assert await each.wait() == 0, each.output

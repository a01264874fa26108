"""The 404 of paths that a gateway could serve."""

from __future__ import annotations

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from nuropb_gateway_asgi import Settings
from nuropb_gateway_asgi.handlers.absent import explaining_not_found
from tests.kit.gateways import make_gateway

ON_RABBITMQ = {"mesh_url": "amqp://127.0.0.1:1/"}


async def said_at(app: Starlette, path: str) -> tuple[int, str]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        response = await client.get(path)
    return response.status_code, response.text


@pytest.mark.parametrize(
    ("path", "setting"),
    [
        ("/", "NUROPB_GATEWAY_CONSOLE=on"),
        ("/rpc/demo/add", "NUROPB_GATEWAY_HTTP=on"),
        ("/events", "NUROPB_GATEWAY_HTTP=on"),
        ("/openapi.json", "NUROPB_GATEWAY_HTTP=on"),
        ("/mcp", "NUROPB_GATEWAY_MCP=on"),
    ],
)
@pytest.mark.parametrize("mounted", ["", "/gateway"])
async def test_the_404_of_a_path_that_is_off_names_its_setting(path: str, setting: str, mounted: str) -> None:
    app = make_gateway(**ON_RABBITMQ).app
    app = Starlette(routes=[Mount(mounted, app)]) if mounted else app
    status, text = await said_at(app, f"{mounted}{path}")
    assert status == 404
    assert setting in text


async def test_without_prometheus_the_404_of_the_metrics_names_the_extra() -> None:
    handler = explaining_not_found(Settings(), has_tools=True, has_metrics=False)
    status, text = await said_at(Starlette(exception_handlers={404: handler}), "/metrics")
    assert status == 404
    assert 'install the extra "metrics"' in text


@pytest.mark.parametrize("path", ["/nothing", "/rpc", "/console/nothing", "/mcp/nothing"])
async def test_the_404_of_any_other_path_says_no_more(path: str) -> None:
    assert await said_at(make_gateway().app, path) == (404, "Not Found")

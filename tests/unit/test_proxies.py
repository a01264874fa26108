"""The list of the paths that proxies pass on, compared with the gateway's routes."""

from __future__ import annotations

from typing import cast

from starlette.routing import Route

from nuropb_gateway_asgi import Gateway, Settings
from tests.servers.proxies import FOR_CLIENTS, NOT_FOR_CLIENTS


def test_each_route_of_the_gateway_is_for_clients_or_is_not() -> None:
    settings = Settings(
        http="on", mcp="on", console="on", jwt_oidc_issuer="https://login.example.com/", jwt_audience="gateway"
    )
    paths = [cast("Route", route).path for route in Gateway(settings).routes()]
    assert sorted(paths) == sorted([*FOR_CLIENTS, *NOT_FOR_CLIENTS, "/readyz"])

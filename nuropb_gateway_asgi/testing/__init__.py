"""How does a program test its calls and events? With a gateway and mocked services in the test's own process.

::

    def test_an_order_is_made(mesh, client):
        mesh.mock("orders", create={"number": 1})
        assert client.request("orders", "create", {"item": "tea"}) == {"number": 1}
        mesh.assert_called("orders.create", {"item": "tea"}, user_id="alice")

``docs/testing.md`` is its manual. Names are imported on first access, so that pytest starts no slower with the plugin.

* ``plugin``: the fixtures of pytest: ``gateway``, ``mesh``, ``client``;
* ``running``: :func:`running_gateway`, a gateway in a thread of its own, for unittest and everything else;
* ``mesh``: services, mocks and events for a running gateway, and assertions about calls;
* ``clients``: clients for coroutines and for plain functions; ``bridge``: an ASGI application of another event loop.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from ..mocks import Call, in_order
    from .clients import AsyncTestClient, AsyncTestSubscription
    from .mesh import TestMesh
    from .running import TestGateway, running_gateway

__all__ = [
    "AsyncTestClient",
    "AsyncTestSubscription",
    "Call",
    "TestGateway",
    "TestMesh",
    "in_order",
    "running_gateway",
]

_MODULES: Final = {
    "AsyncTestClient": ".clients",
    "AsyncTestSubscription": ".clients",
    "Call": "..mocks",
    "TestGateway": ".running",
    "TestMesh": ".mesh",
    "in_order": "..mocks",
    "running_gateway": ".running",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""The plugin of pytest. It imports nothing of the gateway before a test asks for a fixture.

Fixtures: ``gateway``, ``mesh`` and ``client``; the same as ``nuropb_gateway``, ``nuropb_mesh`` and ``nuropb_client``,
for tests in which another plugin has a fixture of the short name (pytest-django and pytest-flask have ``client``): then
the other plugin keeps it.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

    from ..client import SyncClient
    from . import AsyncTestClient, TestGateway, TestMesh

__all__ = ["nuropb_app", "nuropb_client", "nuropb_gateway", "nuropb_mesh", "nuropb_portal", "nuropb_settings"]


@pytest.fixture
def nuropb_settings() -> dict[str, Any]:
    """Return the settings of the gateway, as keyword arguments of Settings. Override it in a conftest or a module."""
    return {}


@pytest.fixture
def nuropb_app() -> Any:
    """Return the application in which the gateway is mounted; None for a gateway alone. Override it likewise."""
    return None


@pytest.fixture(scope="session")
def nuropb_portal() -> Iterator[BlockingPortal]:
    """Run an event loop in a thread, for the gateways of all tests."""
    from anyio.from_thread import start_blocking_portal

    with start_blocking_portal("asyncio") as portal:
        yield portal


@pytest.fixture
def nuropb_gateway(
    nuropb_settings: dict[str, Any], nuropb_app: Any, nuropb_portal: BlockingPortal
) -> Iterator[TestGateway]:
    """Run a gateway on a free port of this machine, for one test."""
    from .running import running_gateway

    with running_gateway(nuropb_app, portal=nuropb_portal, **nuropb_settings) as gateway:
        yield gateway


@pytest.fixture
def nuropb_mesh(nuropb_gateway: TestGateway) -> TestMesh:
    """Return the services behind the gateway, which are none at first."""
    return nuropb_gateway.mesh


@pytest.fixture
def nuropb_client(nuropb_gateway: TestGateway, request: pytest.FixtureRequest) -> SyncClient | AsyncTestClient:
    """Return a connected client of the user alice: one with coroutines for a test that is a coroutine function."""
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        return nuropb_gateway.async_client()
    return nuropb_gateway.client()


#: A fixture by its short name.
_SHORT: Final = {"gateway": "nuropb_gateway", "mesh": "nuropb_mesh", "client": "nuropb_client"}


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Register the short names, unless another plugin has them."""
    plugins = config.pluginmanager.get_plugins()
    # The fixtures of a conftest override those of plugins where they apply.
    others = [each for each in plugins if not str(getattr(each, "__file__", "")).endswith("conftest.py")]
    names = types.ModuleType("nuropb_gateway_short_names", "The fixtures whose short names no other plugin has.")
    for short, long in _SHORT.items():
        if not any(hasattr(each, short) and _is_fixture(getattr(each, short)) for each in others):
            setattr(names, short, _renamed(short, long))
    config.pluginmanager.register(names, "nuropb-gateway-short-names")


def _renamed(short: str, long: str) -> Any:
    def fixture(request: pytest.FixtureRequest) -> Any:
        return request.getfixturevalue(long)

    fixture.__doc__ = f"Return the fixture {long} under a shorter name."
    return pytest.fixture(name=short)(fixture)


def _is_fixture(value: object) -> bool:
    # Of pytest 8.4 and newer, and of older ones.
    return type(value).__name__ == "FixtureFunctionDefinition" or hasattr(value, "_pytestfixturefunction")

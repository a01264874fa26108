from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from nuropb_gateway_asgi import Settings
from nuropb_gateway_asgi.mesh.rabbitmq import RabbitMQMesh

# A busy machine is slow, and that is no failure.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


# Everything runs on the fast lane, and on the plain one when it is asked for.
if lane := os.environ.get("NUROPB_TEST_LANE"):
    (Settings.__init__.__kwdefaults__ or {})["mesh_lane"] = lane
    (RabbitMQMesh.__init__.__kwdefaults__ or {})["lane"] = lane


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The loop that uvicorn and aio-pika have."""
    return "asyncio"

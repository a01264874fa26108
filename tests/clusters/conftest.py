"""A cluster of three nodes, for the tests of a module; every test leaves all of them running."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.cluster import RabbitMQCluster
from tests.servers.processes import unavailable
from tests.servers.provision import installed


@pytest.fixture(scope="session")
def cluster() -> Iterator[RabbitMQCluster]:
    if not installed():
        unavailable("rabbitmq-server is not installed")
    with RabbitMQCluster() as cluster:
        yield cluster

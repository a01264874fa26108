"""A cluster of three nodes. A test may leave some of them dead, or closed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.cluster import RabbitMQCluster
from tests.servers.processes import unavailable
from tests.servers.provision import installed


@pytest.fixture(scope="session")
def whole_cluster() -> Iterator[RabbitMQCluster]:
    if not installed():
        unavailable("rabbitmq-server is not installed")
    with RabbitMQCluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(whole_cluster: RabbitMQCluster) -> RabbitMQCluster:
    """The cluster of the session, with all of its nodes."""
    for node in whole_cluster.nodes:
        if not node.running:
            node.start()
        elif node.app_stopped:
            node.start_app()
    whole_cluster.wait()
    return whole_cluster

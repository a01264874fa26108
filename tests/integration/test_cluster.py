"""A cluster that loses a node: the shortest of the tests of tests/clusters, which take minutes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kit.clustered import SECONDS, eventually, stage, warnings_of
from tests.servers.cluster import RabbitMQCluster
from tests.servers.processes import unavailable
from tests.servers.provision import installed


@pytest.fixture(scope="module")
def cluster() -> Iterator[RabbitMQCluster]:
    if not installed():
        unavailable("rabbitmq-server is not installed")
    with RabbitMQCluster() as cluster:
        yield cluster


async def test_clients_are_served_without_the_node_that_had_the_queues(cluster: RabbitMQCluster) -> None:
    async with stage(cluster, "classic") as set_:
        await set_.caller.subscribe("news.#")
        former = set_.mesh.reply_queue
        held = await set_.caller.start("hold", timeout=60.0)
        await eventually(lambda: set_.service.holding)
        await set_.lose_home()
        await set_.answered()
        await set_.hears("news.today")
        assert await set_.caller.ended(held, within=SECONDS) == {"timeout": 1}
        assert set_.mesh.reply_queue != former
        # The stream of revocations is declared before its replica on this node is there.
        await eventually(lambda: len(set_.mesh.warnings) == 1)
        status, (warning,) = await warnings_of(set_.running)
        assert status == 200
        assert warning.startswith(f"mesh: the queue nuropb-{set_.gateway_name}-sq is missing (")
        assert not set_.home.running
        assert set_.caller.closed is None

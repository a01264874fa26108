"""A throwaway cluster of three RabbitMQ nodes, on the loopback of this machine."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Self

from tests.servers.rabbitmq import RabbitMQNode

__all__ = ["RabbitMQCluster"]


class RabbitMQCluster:
    """Three nodes, for a ``with`` block. They take about 20 s to boot. Everything here blocks the thread."""

    def __init__(self) -> None:
        cluster = secrets.token_hex(4)
        names = [f"rabbit-{cluster}-{number}@localhost" for number in range(3)]
        settings = [
            "cluster_formation.peer_discovery_backend = classic_config",
            *(f"cluster_formation.classic_config.nodes.{number} = {name}" for number, name in enumerate(names, 1)),
        ]
        first = RabbitMQNode(settings=settings, name=names[0])
        self.nodes: Final = (first, *(RabbitMQNode(settings=settings, name=name, like=first) for name in names[1:]))

    def __enter__(self) -> Self:
        try:
            self.nodes[0].prepare()  # with the port mapper of all
            with ThreadPoolExecutor() as threads:
                list(threads.map(RabbitMQNode.start, self.nodes))
            self.nodes[0].ctl("await_online_nodes", str(len(self.nodes)))
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End all nodes for good and remove every trace of them."""
        with contextlib.ExitStack() as stack:
            for node in self.nodes:
                stack.callback(node.stop)  # the first one, whose port mapper the others use, ends last

    def add_vhost(self, name: str, queue_type: str = "classic") -> str:
        """Make a vhost whose queues have that type, unless they say otherwise; return its URL with all nodes.

        The default user may use it.
        """
        node = self.nodes[0]
        node.ctl("add_vhost", name, "--default-queue-type", queue_type)
        node.ctl("set_permissions", "--vhost", name, "guest", ".*", ".*", ".*")
        return self.url(name)

    def url(self, vhost: str, nodes: Sequence[RabbitMQNode] = ()) -> str:
        """The AMQP URL of a vhost, with the addresses of these nodes, by default of all."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in nodes or self.nodes)
        return f"amqp://guest:guest@{hosts}/{vhost}"

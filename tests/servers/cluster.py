"""A throwaway cluster of three RabbitMQ nodes, on the loopback of this machine."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Self

from tests.servers.rabbitmq import RabbitMQNode

__all__ = ["RabbitMQCluster"]

#: A node that stands still counts as dead after about this many seconds, in place of the default minute.
TICK_TIME: Final = 8


class RabbitMQCluster:
    """Three nodes, for a ``with`` block. They take about 20 s to boot. Everything here blocks the thread."""

    def __init__(self) -> None:
        cluster = secrets.token_hex(4)
        names = [f"rabbit-{cluster}-{number}@localhost" for number in range(3)]
        settings = [
            "cluster_formation.peer_discovery_backend = classic_config",
            "cluster_partition_handling = pause_minority",
            *(f"cluster_formation.classic_config.nodes.{number} = {name}" for number, name in enumerate(names, 1)),
        ]
        arguments = f"-kernel net_ticktime {TICK_TIME}"
        first = RabbitMQNode(settings=settings, name=names[0], arguments=arguments)
        others = (RabbitMQNode(settings=settings, name=name, arguments=arguments, like=first) for name in names[1:])
        self.nodes: Final = (first, *others)

    def __enter__(self) -> Self:
        try:
            self.nodes[0].prepare()  # with the port mapper of all
            with ThreadPoolExecutor() as threads:
                list(threads.map(RabbitMQNode.start, self.nodes))
            self.wait()
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

    def wait(self) -> None:
        """Wait until all nodes run and see each other: one that stood still may restart by itself."""
        for node in self.nodes:
            node.ctl("await_online_nodes", str(len(self.nodes)))

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

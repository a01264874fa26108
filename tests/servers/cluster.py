"""A throwaway cluster of three RabbitMQ nodes, on the loopback of this machine."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Self

from tests.servers.rabbitmq import RabbitMQError, RabbitMQNode

__all__ = ["RabbitMQCluster"]

#: A node that stands still counts as dead after about this many seconds, in place of the default minute.
TICK_TIME: Final = 8
#: Seconds for streams to be complete again.
COMPLETE: Final = 120.0
#: Seconds until a node has written that it belongs to the coordinator of streams. One that is killed before that never
#: gets its place back, on 3.10 and on 4.3, and without another node there are no streams.
WRITTEN: Final = 5.0
#: The first stream starts the coordinator.
MAKE_STREAM: Final = """
    rabbit_amqqueue:declare(
        rabbit_misc:r(<<"/">>, queue, <<"first">>), true, false, [{<<"x-queue-type">>, longstr, <<"stream">>}], none,
        <<"guest">>
    ).
"""
#: Whether each running node has the coordinator of streams, and its copy of each stream.
HAVE_STREAMS: Final = """
    Streams = length([Q || Q <- rabbit_amqqueue:list(), amqqueue:get_type(Q) =:= rabbit_stream_queue]),
    lists:all(
        fun(Node) ->
            is_pid(rpc:call(Node, erlang, whereis, [rabbit_stream_coordinator])) andalso
            length([P || {_, P, _, _} <- rpc:call(Node, supervisor, which_children, [osiris_server_sup]), is_pid(P)])
                >= Streams
        end,
        [node() | nodes()]
    ).
"""


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
            self.nodes[0].ctl("eval", MAKE_STREAM)
            self.wait()
            time.sleep(WRITTEN)
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
        """Wait until all nodes run and see each other, and have their copies of streams.

        A node that stood still may restart by itself. The loss of another node before the copies are there would be
        that of two.
        """
        for node in self.nodes:
            node.ctl("await_online_nodes", str(len(self.nodes)))
        until = time.monotonic() + COMPLETE
        while self.nodes[0].ctl("eval", HAVE_STREAMS).strip() != "true":
            if time.monotonic() > until:
                raise RabbitMQError(f"the streams are not complete after {COMPLETE:.0f} s")
            time.sleep(0.2)

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

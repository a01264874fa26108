"""A check of a broker, for ``nuropb-gateway check``: connection, permissions, and messages that arrive."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity, ChannelPreconditionFailed, PublishError
from pamqp import commands

from ...identifiers import new_id
from ...settings import host_urls
from ...wire import codec
from ...wire.history import KeptTopic
from ...wire.publish import expiration
from . import _aiormq
from ._addresses import Addresses
from ._connection import Connection, connect
from ._errors import CONNECTION_ERRORS, explain
from ._exchanges import SERVICE_QUEUE, declare_exchanges
from ._history_queue import HOME_NODE, HistoryQueue
from ._logs import quiet_aiormq
from ._peers import Peers
from ._remedies import BrokerFault, remedy_for

__all__ = ["probe"]

#: Seconds for the whole check.
TIMEOUT: Final = 10.0


async def probe(url: str, service_name: str, topics: Sequence[str] = (), kept_topics: Sequence[KeptTopic] = ()) -> str:
    """Do once everything that a gateway of this name does on a broker, and leave nothing behind.

    ``topics`` are those that the gateway subscribes to by itself, ``kept_topics`` those with history. Returns the
    broker's product and version, and the parts of the gateway that would do without a permission. Raises
    BrokerFault, in words for an operator, if a step fails; with several hosts, if it fails at one of them.
    """
    _aiormq.check()
    urls = host_urls(url)
    if len(urls) == 1:
        return await _probe_host(url, service_name, topics, kept_topics)
    versions: dict[str, str] = {}
    failures: list[str] = []
    remedies: list[str] = []
    for each in urls:
        host = urlsplit(each).netloc.rpartition("@")[2]
        try:
            versions[host] = await _probe_host(each, service_name, topics, kept_topics)
        except BrokerFault as error:
            failures.append(f"{host}: {error}")
            remedies += [error.remedy] if error.remedy is not None and error.remedy not in remedies else []
    if failures:
        working = f"; all is well at {', '.join(versions)}" if versions else ""
        raise BrokerFault(f"{'; '.join(failures)}{working}", "; ".join(remedies) or None)
    return f"{', '.join(dict.fromkeys(versions.values()))} at {', '.join(versions)}"


async def _probe_host(url: str, service_name: str, topics: Sequence[str], kept_topics: Sequence[KeptTopic]) -> str:
    quiet_aiormq()
    try:
        async with asyncio.timeout(TIMEOUT):
            name = f"{service_name} check"
            connection = await Addresses(url).connect("check", lambda address: connect(address, name, "plain"))
            try:
                await declare_exchanges(connection)
                await _try_service_queue(connection, service_name)
                queue = await _exchange_messages(connection, service_name)
                refused = await _find_refusals(connection, service_name, queue, topics)
                refused += [
                    each for topic in kept_topics if (each := await _try_history(connection, service_name, topic))
                ]
                return "; but ".join((_describe(connection), *refused))
            finally:
                await connection.close()
    except CONNECTION_ERRORS as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        fault = explain(error)
        raise BrokerFault(fault, remedy_for(fault, url)) from error


async def _try_service_queue(connection: Connection, service_name: str) -> None:
    """Declare and bind the service's queue; delete it if it was not there."""
    queue = f"nuropb-{service_name}-sq"
    there = await _is_there(connection, queue)
    channel = await connection.open_channel()
    await channel.queue_declare(queue, durable=True, arguments=SERVICE_QUEUE)
    try:
        await channel.queue_bind(queue, codec.RPC_EXCHANGE, service_name)
    finally:
        if not there:
            async with connection.channel() as other:
                await other.queue_delete(queue, if_unused=True, if_empty=True)


async def _is_there(connection: Connection, queue: str) -> bool:
    try:
        async with connection.channel() as channel:
            await channel.queue_declare(queue, passive=True)
    except ChannelNotFoundEntity as error:
        if HOME_NODE in str(error):  # it exists, on a node that is down
            raise
        return False
    return True


async def _find_refusals(connection: Connection, service_name: str, queue: str, topics: Sequence[str]) -> list[str]:
    """Try what a gateway can do without; return the effects of the broker's refusals."""
    peers = Peers(service_name, "", lambda body: None, lambda body: None, lambda: None, queue_arguments={})
    await peers.probe(connection)
    refused = list(peers.warnings.values())
    for topic in topics:
        try:
            async with connection.channel() as channel:
                await channel.queue_bind(queue, codec.EVENTS_EXCHANGE, topic)
        except ChannelAccessRefused as error:
            refused.append(f"events with a target do not come of the topic {topic}: {explain(error)}")
    return refused


async def _try_history(connection: Connection, service_name: str, topic: KeptTopic) -> str | None:
    """Declare, bind and consume what is named like a history's stream; return what the gateway would do without.

    A stream that is there is compared with the settings. In the place of a missing one, a queue tries the permissions,
    which are those of the name: a stream that a gateway has just made must not be deleted.
    """
    queue = HistoryQueue(service_name, topic)
    try:
        if await _is_there(connection, queue.name):
            await queue.declare(connection)
            return queue.warning
        async with connection.channel() as channel:
            await channel.queue_declare(queue.name, exclusive=True, auto_delete=True)
            await channel.queue_bind(queue.name, codec.EVENTS_EXCHANGE, topic.pattern)
            await channel.basic_get(queue.name, no_ack=True)
            await channel.queue_delete(queue.name)
    except (ChannelAccessRefused, ChannelPreconditionFailed) as error:
        return f"events of {topic.pattern} have no history, as the stream {queue.name} cannot be used: {explain(error)}"
    return None


async def _exchange_messages(connection: Connection, service_name: str) -> str:
    """Receive a message on a queue that is named like the gateway's own, and have a call returned.

    Returns the queue, which ends with the connection.
    """
    channel = await connection.open_channel(confirms=True)
    queue = f"nuropb-{service_name}-{new_id()}-rq"
    await channel.queue_declare(queue, exclusive=True, auto_delete=True)
    await channel.queue_bind(queue, codec.RPC_EXCHANGE, queue)
    try:
        async with asyncio.timeout(TIMEOUT / 2):
            for exchange in (codec.RPC_EXCHANGE, ""):
                await channel.basic_publish(b"", exchange=exchange, routing_key=queue, properties=_properties())
            with contextlib.suppress(PublishError):  # no service has that name, so the broker returns the call
                await channel.basic_publish(
                    b"", exchange=codec.RPC_EXCHANGE, routing_key=new_id(), properties=_properties(), mandatory=True
                )
    except TimeoutError as error:
        raise ConnectionError("the broker takes no messages (a memory or disk alarm?)") from error
    for _ in range(2):
        if isinstance((await channel.basic_get(queue, no_ack=True)).delivery, commands.Basic.GetEmpty):
            raise ConnectionError("the broker confirmed a message, but did not put it into its queue")
    return queue


def _properties() -> commands.Basic.Properties:
    return commands.Basic.Properties(expiration=expiration(TIMEOUT))


def _describe(connection: Connection) -> str:
    properties = connection.raw.server_properties
    return " ".join(str(properties.get(name, "")) for name in ("product", "version")).strip()

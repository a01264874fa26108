"""A check of a broker, for ``nuropb-gateway check``: connection, permissions, and messages that arrive."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final
from urllib.parse import urlsplit

from aiormq.exceptions import ChannelNotFoundEntity, PublishError
from pamqp import commands

from ...identifiers import new_id
from ...settings import host_urls
from ...wire import codec
from ...wire.publish import expiration
from . import _aiormq
from ._addresses import Addresses
from ._connection import Connection, connect
from ._errors import CONNECTION_ERRORS, explain
from ._exchanges import SERVICE_QUEUE, declare_exchanges
from ._logs import quiet_aiormq

__all__ = ["probe"]

#: Seconds for the whole check.
TIMEOUT: Final = 10.0


async def probe(url: str, service_name: str) -> str:
    """Do once everything that a gateway of this name does on a broker, and leave nothing behind.

    Returns the broker's product and version. Raises ConnectionError, in words for an operator, if a step fails; with
    several hosts, if it fails at one of them.
    """
    _aiormq.check()
    urls = host_urls(url)
    if len(urls) == 1:
        return await _probe_host(url, service_name)
    versions: dict[str, str] = {}
    failures: list[str] = []
    for each in urls:
        host = urlsplit(each).netloc.rpartition("@")[2]
        try:
            versions[host] = await _probe_host(each, service_name)
        except ConnectionError as error:
            failures.append(f"{host}: {error}")
    if failures:
        working = f"; all is well at {', '.join(versions)}" if versions else ""
        raise ConnectionError(f"{'; '.join(failures)}{working}")
    return f"{', '.join(dict.fromkeys(versions.values()))} at {', '.join(versions)}"


async def _probe_host(url: str, service_name: str) -> str:
    quiet_aiormq()
    try:
        async with asyncio.timeout(TIMEOUT):
            name = f"{service_name} check"
            connection = await Addresses(url).connect("check", lambda address: connect(address, name, "plain"))
            try:
                await declare_exchanges(connection)
                await _exchange_messages(connection, service_name)
                await _check_service_queue(connection, service_name)
                return _describe(connection)
            finally:
                await connection.close()
    except CONNECTION_ERRORS as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        raise ConnectionError(explain(error)) from error


async def _exchange_messages(connection: Connection, service_name: str) -> None:
    """Receive an event and a reply on a queue that is named like the gateway's own, and have a call returned."""
    channel = await connection.open_channel(confirms=True)
    queue = f"nuropb-{service_name}-{new_id()}-rq"
    await channel.queue_declare(queue, exclusive=True, auto_delete=True)
    await channel.queue_bind(queue, codec.EVENTS_EXCHANGE, queue)
    try:
        async with asyncio.timeout(TIMEOUT / 2):
            for exchange in (codec.EVENTS_EXCHANGE, ""):
                await channel.basic_publish(b"", exchange=exchange, routing_key=queue, properties=_properties())
            with contextlib.suppress(PublishError):  # no service has that name, so the broker returns the call
                await channel.basic_publish(
                    b"", exchange=codec.RPC_EXCHANGE, routing_key=queue, properties=_properties(), mandatory=True
                )
    except TimeoutError as error:
        raise ConnectionError("the broker takes no messages (a memory or disk alarm?)") from error
    for _ in range(2):
        if isinstance((await channel.basic_get(queue, no_ack=True)).delivery, commands.Basic.GetEmpty):
            raise ConnectionError("the broker confirmed a message, but did not put it into its queue")


async def _check_service_queue(connection: Connection, service_name: str) -> None:
    """Check that the service's queue, if there is one, is as the gateway declares it."""
    try:
        async with connection.channel() as channel:
            await channel.queue_declare(f"nuropb-{service_name}-sq", passive=True)
    except ChannelNotFoundEntity as error:
        if "home node" in str(error):  # it exists, on a node that is down
            raise
        return
    async with connection.channel() as channel:
        await channel.queue_declare(f"nuropb-{service_name}-sq", durable=True, arguments=SERVICE_QUEUE)


def _properties() -> commands.Basic.Properties:
    return commands.Basic.Properties(expiration=expiration(TIMEOUT))


def _describe(connection: Connection) -> str:
    properties = connection.raw.server_properties
    return " ".join(str(properties.get(name, "")) for name in ("product", "version")).strip()

"""Whether a gateway would find what it needs on a broker."""

from __future__ import annotations

import asyncio
from typing import Final

import aio_pika

from ...identifiers import new_id
from ...wire import codec
from ._connection import CONNECTION_ERRORS, Connection, connect, declare_exchanges, explain, quiet_libraries

__all__ = ["probe"]

#: Seconds for everything.
TIMEOUT: Final = 10.0


async def probe(url: str, service_name: str) -> str:
    """Do once what a gateway of this name does all the time, and leave nothing behind.

    Returns which broker it is. Raises ConnectionError with what is wrong, in words for an operator.
    """
    quiet_libraries()
    try:
        async with asyncio.timeout(TIMEOUT):
            connection = await connect(url, f"{service_name} check")
            try:
                await declare_exchanges(connection)
                await _exchange_messages(connection, service_name)
                return _describe(connection)
            finally:
                await connection.close()
    except CONNECTION_ERRORS as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        raise ConnectionError(explain(error)) from error


async def _exchange_messages(connection: Connection, service_name: str) -> None:
    """A queue with a name as the gateway's own have, an event and an answer that come to it, a call that does not."""
    channel = await connection.channel()
    queue = await channel.declare_queue(f"nuropb-{service_name}-{new_id()}-rq", exclusive=True, auto_delete=True)
    events = await channel.get_exchange(codec.EVENTS_EXCHANGE, ensure=False)
    await queue.bind(events, routing_key=queue.name)
    message = aio_pika.Message(b"", expiration=TIMEOUT)
    try:
        async with asyncio.timeout(TIMEOUT / 2):
            await events.publish(message, routing_key=queue.name)
            await channel.default_exchange.publish(message, routing_key=queue.name)
            calls = await channel.get_exchange(codec.RPC_EXCHANGE, ensure=False)
            await calls.publish(message, routing_key=queue.name)  # to nobody: it is returned
    except TimeoutError as error:
        raise ConnectionError("the broker takes no messages (a memory or disk alarm?)") from error
    for _ in range(2):
        await queue.get(no_ack=True)


def _describe(connection: Connection) -> str:
    assert connection.transport is not None  # noqa: S101 - it is connected
    properties = connection.transport.connection.server_properties
    return " ".join(str(properties.get(name, "")) for name in ("product", "version")).strip()

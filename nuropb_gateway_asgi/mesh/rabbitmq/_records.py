"""Records on their way into their stream, by a channel that publishes nothing else.

A record that is lost without a word is a revoked token that is accepted. Before 4.0, RabbitMQ numbers the messages that
a stream gets again after a change of its leader by their channel, and those that it got first by themselves. On a
channel that publishes elsewhere, too, the first number is the higher one: the stream takes later messages for
repetitions, and drops them, although they are confirmed. On a channel of their own the two numbers are the same.

Records are rare, so each waits for its confirm in aiormq, on both lanes.
"""

from __future__ import annotations

import asyncio

from aiormq.abc import AbstractChannel

from ...exceptions import MeshUnavailable
from ...identifiers import new_id
from ...wire.publish import encode_publish
from ._errors import CONNECTION_ERRORS
from ._plain import NO_FRAME_MAX, read_publish
from ._sizes import SizeLimit

__all__ = ["write_record"]


async def write_record(channel: AbstractChannel, stream: str, record: bytes, size_limit: SizeLimit) -> None:
    """Publish a record, and wait for the broker's confirm. Raises MeshUnavailable or MessageTooLarge without one."""
    size_limit.check(record)
    frames = encode_publish(
        channel=1,
        exchange="",
        routing_key=stream,
        kind="event",
        correlation_id=new_id(),
        trace_id=None,
        body=record,
        frame_max=NO_FRAME_MAX,
        mandatory=True,
    )
    publish, header, body = read_publish(frames)
    try:
        await channel.basic_publish(
            body,
            exchange=publish.exchange,
            routing_key=publish.routing_key,
            properties=header.properties,
            mandatory=publish.mandatory,
        )
    except CONNECTION_ERRORS as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        if size_limit.refuses(record, error):
            raise size_limit.error() from error
        raise MeshUnavailable("the broker did not confirm the message") from error

"""NuroPb's exchanges on the broker, and the arguments of a service's queue."""

from __future__ import annotations

from typing import Any, Final

from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity, ChannelPreconditionFailed

from ...wire import codec
from ._connection import Connection

__all__ = ["SERVICE_QUEUE", "declare_exchanges"]

EXCHANGES: Final = (
    (codec.RPC_EXCHANGE, "direct"),
    (codec.EVENTS_EXCHANGE, "topic"),
    (codec.DEAD_LETTER_EXCHANGE, "fanout"),
)
#: The arguments of a service's queue, the same for all that declare it.
SERVICE_QUEUE: Final[dict[str, Any]] = {"x-dead-letter-exchange": codec.DEAD_LETTER_EXCHANGE}


async def declare_exchanges(connection: Connection) -> None:
    """Declare NuroPb's exchanges, or check that they exist if this user may not declare them.

    Raises ConnectionError with the name of the missing exchange.
    """
    for name, kind in EXCHANGES:
        try:
            async with connection.channel() as channel:
                await channel.exchange_declare(name, exchange_type=kind, durable=True)
        except ChannelAccessRefused:
            try:
                async with connection.channel() as channel:
                    await channel.exchange_declare(name, exchange_type=kind, passive=True)
            except ChannelNotFoundEntity as error:
                raise ConnectionError(f"exchange {name} is missing, and this user may not declare it") from error
        except ChannelPreconditionFailed as error:
            raise ConnectionError(f"exchange {name} exists, but is not a durable {kind} exchange") from error

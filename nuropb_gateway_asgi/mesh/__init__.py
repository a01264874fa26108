"""Which mesh carries the messages? RabbitMQ, or an embedded one; and services hosted on RabbitMQ (``serve``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .serving import PublishEvent, hosting, serve, with_context

__all__ = ["PublishEvent", "hosting", "serve", "with_context"]


def __getattr__(name: str) -> Any:
    # On demand: whoever wants the embedded mesh alone needs no AMQP.
    if name in __all__:
        from . import serving

        return getattr(serving, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

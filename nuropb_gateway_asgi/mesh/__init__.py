"""Which mesh carries the messages? RabbitMQ, or one embedded in the process.

``base``      the interface of a mesh, for authors of another one
``rabbitmq``  the mesh on RabbitMQ
``embedded``  the mesh within one process, behind ``embedded://`` URLs
``demo``      the service behind ``embedded://demo``
``serving``   services hosted on RabbitMQ, for as long as they like (``serve``, ``hosting``)
``errors``    NuroPb's exceptions, for services to raise
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .serving import PublishEvent, hosting, serve, with_context

__all__ = ["PublishEvent", "hosting", "serve", "with_context"]


def __getattr__(name: str) -> Any:
    # On demand: the embedded mesh alone needs no AMQP library.
    if name in __all__:
        from . import serving

        return getattr(serving, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""The names of aio-pika, aiormq and pamqp that the mesh uses, and the fallback for each name that is missing.

``REQUIRED`` names belong to the interface that aiormq exports, documents, or declares in ``aiormq.abc``. The ``plain``
lane stands on them alone. Without one of them a mesh cannot be made, and the error says so in one line.

``REPLACEABLE`` names serve the sockets that the mesh opens for aiormq on both lanes, the ``fast`` lane, and a precise
account of unsent messages on the ``plain`` lane. Without one of them the mesh goes on in aiormq's own way, and logs one
warning before its first connection.

tests/unit/test_aiormq.py derives both tables from the source of the mesh and fails where they differ.
tests/integration/test_aiormq_changes.py runs the mesh on copies of aiormq in which one of the replaceable names is
called something else.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import inspect
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

import aiormq.exceptions

from ...exceptions import SettingsError

if TYPE_CHECKING:
    from aiormq.abc import AbstractChannel, AbstractConnection

__all__ = [
    "FAST_LANE",
    "LIBRARY_LOGGERS",
    "OWN_SOCKETS",
    "REFUSED_VHOST_TEXT",
    "REPLACEABLE",
    "REQUIRED",
    "Replaceable",
    "check",
    "frame_max",
    "warn_of_missing_names",
    "written",
]

logger = logging.getLogger(__name__)

SUPPORTED: Final = "aiormq>=7.2,<8"

#: By the module or class that has them.
REQUIRED: Final[dict[str, tuple[str, ...]]] = {
    "aio_pika": ("Connection",),
    "aio_pika.Connection": ("close", "connect", "transport"),
    "aio_pika.abc.UnderlayConnection": ("connection",),
    "aiormq": ("exceptions",),
    "aiormq.Connection": ("channel", "closing", "ready", "server_properties"),
    "aiormq.Channel": (
        *("basic_ack", "basic_cancel", "basic_consume", "basic_get", "basic_nack", "basic_publish", "basic_qos"),
        *(
            "basic_reject",
            "close",
            "closing",
            "exchange_declare",
            "exchange_delete",
            "is_closed",
            "on_consumer_cancel_callbacks",
        ),
        *("queue_bind", "queue_declare", "queue_delete", "queue_unbind"),
    ),
    "aiormq.abc": ("AbstractChannel", "AbstractConnection", "DeliveredMessage"),
    "aiormq.abc.DeliveredMessage": ("body", "delivery", "header"),
    "aiormq.exceptions": (
        *("AMQPChannelError", "AMQPConnectionError", "AMQPException", "AuthenticationError", "ChannelAccessRefused"),
        *("ChannelInvalidStateError", "ChannelLockedResource", "ChannelNotFoundEntity", "ChannelPreconditionFailed"),
        *("ConnectionClosed", "ConnectionInternalError", "ConnectionResourceError"),
        *("DeliveryError", "InvalidFrameError", "ProbableAuthenticationError", "PublishError"),
    ),
    "pamqp": ("commands", "frame"),
    "pamqp.body": ("ContentBody",),
    "pamqp.commands": ("Basic",),
    "pamqp.commands.Basic": ("Ack", "Cancel", "Deliver", "GetEmpty", "Properties", "Publish"),
    "pamqp.exceptions": ("PAMQPException",),
    "pamqp.frame": ("marshal", "unmarshal"),
    "pamqp.header": ("ContentHeader",),
}

Use: TypeAlias = Literal["attribute", "parameter", "argument"]


class Replaceable(NamedTuple):
    """A name of aiormq with a fallback.

    ``use``: an attribute that the mesh reads, calls or implements; a parameter that it passes; an argument that aiormq
    passes.
    """

    owner: str
    name: str
    use: Use
    #: What happens without it, as the warning puts it.
    fallback: str


_SOCKETS: Final = "the plain lane is used, on sockets of aiormq, which cannot be dropped at once when they are dead"
_PLAIN: Final = "the plain lane is used"

REPLACEABLE: Final = (
    # The socket under a connection.
    Replaceable("aio_pika.Connection", "kwargs", "attribute", _SOCKETS),
    Replaceable("aiormq.Connection", "transport_factory", "parameter", _SOCKETS),
    Replaceable("aiormq.TransportFactory", "create", "attribute", _SOCKETS),
    Replaceable("aiormq.Connection.connect", "ssl_context_provider", "argument", _SOCKETS),
    Replaceable("aiormq.SSLContextProvider", "get_context", "attribute", _SOCKETS),
    # The fast lane, which needs the socket as well.
    Replaceable("aiormq.abc.AbstractConnection", "connection_tune", "attribute", _PLAIN),
    Replaceable("aiormq.abc.AbstractChannel", "number", "attribute", _PLAIN),
    # The plain lane.
    Replaceable("aiormq.Channel", "lock", "attribute", "on the plain lane, messages count as sent before they are"),
)

#: The loggers whose lines about this package's connections become debug lines. Under other names the lines would
#: reach the operator unchanged.
LIBRARY_LOGGERS: Final = ("aiormq.connection", "aiormq.channel")
#: How aiormq reports that the broker closed the connection when the vhost was asked for. With another text the
#: operator would read aiormq's own.
REFUSED_VHOST_TEXT: Final = "got <Connection.Close "


def _find(owner: str) -> Any:
    """Get a module, or a class or function of one. Raises ImportError."""
    parent, _, name = owner.rpartition(".")
    # An import of what is no module would search all of sys.path, for each name of each mesh.
    with contextlib.suppress(AttributeError):
        if parent:
            return getattr(_find(parent), name)
    return importlib.import_module(owner)


def _is_module(owner: str) -> bool:
    return owner.rpartition(".")[2].islower()


def _has(owner: str, name: str, use: Use = "attribute") -> bool:
    try:
        found = _find(owner)
    except ImportError:
        return False
    if use == "parameter":
        return name in inspect.signature(found).parameters
    if use == "argument":
        return name in _constants(inspect.unwrap(found).__code__.co_consts)
    return hasattr(found, name) or any(name in inspect.get_annotations(each) for each in getattr(found, "__mro__", ()))


def _constants(constants: tuple[Any, ...]) -> Iterator[Any]:
    """The constants of a function; the names of arguments are a tuple among them, or not, by the version of Python."""
    for constant in constants:
        yield from _constants(constant) if isinstance(constant, tuple) else (constant,)


def _version() -> str:
    try:
        return f"aiormq {importlib.metadata.version('aiormq')}"
    except importlib.metadata.PackageNotFoundError:
        return "aiormq"


MISSING: Final = tuple(each for each in REPLACEABLE if not _has(each.owner, each.name, each.use))
#: Whether the mesh opens the sockets of its connections itself, and whether it can see and write their frames.
OWN_SOCKETS: Final = not any(each.fallback == _SOCKETS for each in MISSING)
FAST_LANE: Final = OWN_SOCKETS and not any(each.fallback == _PLAIN for each in MISSING)


def _required(*, of_modules: bool) -> str | None:
    """Describe the missing names of modules or of classes in one line."""
    names = [(owner, name) for owner, names in REQUIRED.items() for name in names if not _has(owner, name)]
    missing = [f"{owner}.{name}" for owner, name in names if _is_module(owner) is of_modules]
    return f"the installed {_version()} has no {', '.join(missing)}; install {SUPPORTED}" if missing else None


def check() -> None:
    """Raise SettingsError if a required name is missing."""
    problem = _required(of_modules=True) or _required(of_modules=False)
    if problem is not None:
        raise SettingsError(problem)


@functools.cache
def warn_of_missing_names() -> None:
    """Log, once in a process, the replaceable names that are missing, and what happens without them."""
    if MISSING:
        names = ", ".join(f"{each.owner}.{each.name}" for each in MISSING)
        fallbacks = "; ".join(dict.fromkeys(each.fallback for each in MISSING))
        logger.warning("mesh: the installed %s has no %s: %s; install %s", _version(), names, fallbacks, SUPPORTED)


# --- the replaceable attributes ---------------------------------------------------------------------------------


def frame_max(connection: AbstractConnection) -> int:
    """Return the size in bytes that no frame may exceed. For the fast lane only."""
    return connection.connection_tune.frame_max


async def written(channel: AbstractChannel) -> None:
    """Wait until the messages that are being published on ``channel`` have been written to the socket.

    aiormq holds the channel's lock while it writes a message, and hands it on in the order in which it was asked for.
    """
    lock = getattr(channel, "lock", None)
    if lock is not None:
        with contextlib.suppress(
            aiormq.exceptions.AMQPException, aiormq.exceptions.ChannelInvalidStateError
        ):  # the channel is closed
            async with lock:
                pass


# Before the other modules of the mesh import these names one by one, and fail without a word on the remedy.
if (_problem := _required(of_modules=True)) is not None:
    raise ImportError(_problem)

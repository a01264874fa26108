"""Exceptions of the gateway; the type tells whose fault it is.

::

    GatewayError
    ├── SettingsError              the operator's: a setting is missing or invalid
    │   └── PolicyError            the operator's: the policy file has a mistake
    ├── NotStartedError            the host application's: the gateway's lifespan is not entered
    ├── ProtocolError              the client's: a message is not a frame of the protocol
    ├── HandshakeRefused           the client's: the connection is not allowed
    │   ├── AuthenticationFailed   the client's: the token is missing or invalid
    │   │   └── TokenExpired       the client's: the token was valid, and has expired
    │   └── ConnectionLimitReached the client's: the user or the process has too many connections
    ├── AuthenticationUnavailable  the gateway's: it cannot check a token now
    │   └── UnknownKey             its provider may have published the token's key since the last fetch
    ├── MeshUnavailable            the gateway's: it cannot hand a message to the mesh now
    ├── MessageTooLarge            the sender's: a message is above the size that the mesh takes
    └── CallError                  a service's: a call of the host application ended with an error

Exceptions of other libraries are translated in one place each (aio-pika in ``mesh.rabbitmq``, cryptography in
``authentication.keys``, httpx in ``authentication.fetching``, msgspec in ``protocol`` and ``wire.codec``) and kept as
the cause.
"""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

__all__ = [
    "AuthenticationFailed",
    "AuthenticationUnavailable",
    "CallError",
    "ConnectionLimitReached",
    "GatewayError",
    "HandshakeRefused",
    "MeshUnavailable",
    "MessageTooLarge",
    "NotStartedError",
    "PolicyError",
    "ProtocolError",
    "SettingsError",
    "TokenExpired",
    "UnknownKey",
]


class GatewayError(Exception):
    """The base of every exception that this package raises."""


class SettingsError(GatewayError, ValueError):
    """A setting is missing or invalid; the message names it, the fault and the expected value."""


class PolicyError(SettingsError):
    """The policy file has a mistake; the message names the file, the line, the fault and the expected value."""


class NotStartedError(GatewayError, RuntimeError):
    """The gateway was used outside its lifespan."""


class ProtocolError(GatewayError):
    """A message of a client is not a frame of the protocol.

    ``description`` goes to the client: it names the field and never quotes its content. ``id`` and ``trace_id`` are
    those of the broken frame if they could be read and are valid, else None.
    """

    def __init__(self, description: str, *, id: str | None = None, trace_id: str | None = None) -> None:  # noqa: A002
        super().__init__(description)
        self.description = description
        self.id = id
        self.trace_id = trace_id


class HandshakeRefused(GatewayError):
    """A client may not connect. The message is for the log and never contains the token."""


class AuthenticationFailed(HandshakeRefused):
    """The token is missing or invalid."""


class TokenExpired(AuthenticationFailed):
    """A genuine token has expired: its client may come back with another one.

    Authenticators raise it, those of host applications too.
    """


class ConnectionLimitReached(HandshakeRefused):
    """A user (``per_user``) or the process has too many connections."""

    def __init__(self, message: str, *, per_user: bool) -> None:
        super().__init__(message)
        self.per_user = per_user


class AuthenticationUnavailable(GatewayError):
    """A token cannot be checked now. It may be valid, so its client is told to try again later.

    Authenticators raise it, those of host applications too. The message is for the log and never contains the
    token.
    """


class UnknownKey(AuthenticationUnavailable):
    """A token names a key that its provider may have published since the last fetch, and that may not be fetched yet.

    A client can make up such a token, so it counts as one more handshake of its address.
    """


class MeshUnavailable(GatewayError):
    """The mesh did not take the message, for it is disconnected or blocked. Nothing was sent."""


class MessageTooLarge(GatewayError, ValueError):
    """A message is above the size that the mesh takes. It was not sent; the text names the limit."""


class CallError(GatewayError):
    """A call of the host application ended with an error.

    ``code`` is the protocol's error code, ``error`` the NuroPb class name. ``retryable`` tells whether the call can be
    repeated without the risk that it runs twice.
    """

    def __init__(self, code: str, error: str, description: str, *, retryable: bool) -> None:
        super().__init__(f"{code}: {description}")
        self.code = code
        self.error = error
        self.description = description
        self.retryable = retryable


def format_traceback(
    error: BaseException | None, *, quotable: tuple[type[BaseException], ...] = (), without: str = ""
) -> str:
    """Format a traceback like Python, but without messages: an exception may quote a client.

    The messages of the exceptions ``quotable`` stay. ``without`` is a file whose frames at the start are left out.
    """
    parts: list[str] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        frames = "".join(traceback.format_tb(_after(error.__traceback__, without)))
        name = type(error).__qualname__
        name = f"{name}: {error}" if isinstance(error, quotable) and str(error) else name
        parts.append(f"Traceback (most recent call last):\n{frames}{name}")
        if isinstance(error, BaseExceptionGroup):
            for each in error.exceptions:
                inner = format_traceback(each, quotable=quotable, without=without)
                parts[-1] += "\n  of " + inner.replace("\n", "\n  ")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n\nThen this exception was raised:\n\n".join(reversed(parts))


def _after(frames: TracebackType | None, file: str) -> TracebackType | None:
    """Return ``frames`` from the first one that is not in ``file``; all of them if there is none."""
    rest = frames
    while rest is not None and rest.tb_frame.f_code.co_filename == file:
        rest = rest.tb_next
    return frames if rest is None else rest

"""What can go wrong, as types.

::

    GatewayError
    ├── SettingsError          the operator's: a setting is missing or wrong, the start is refused
    │   └── PolicyError                there is a mistake in the policy file
    ├── NotStartedError        the host application's: the gateway's lifespan was never entered
    ├── ProtocolError          the client's: what it sent is not a frame of the protocol
    ├── HandshakeRefused       the client's: it may not connect
    │   ├── AuthenticationFailed       no valid token
    │   └── ConnectionLimitReached     the process or the user has too many connections
    ├── AuthenticationUnavailable  ours: whether a token is valid cannot be told now
    ├── MeshUnavailable        ours: a message cannot be handed to the mesh now
    └── CallError              a call of the host application ended with an error

Exceptions of other libraries are translated at one boundary each (aio-pika in ``mesh.rabbitmq``, cryptography in
``keys``, httpx in ``_documents``, msgspec in ``protocol`` and ``mesh.wire``) and kept as the cause.
"""

from __future__ import annotations

__all__ = [
    "AuthenticationFailed",
    "AuthenticationUnavailable",
    "CallError",
    "ConnectionLimitReached",
    "GatewayError",
    "HandshakeRefused",
    "MeshUnavailable",
    "NotStartedError",
    "PolicyError",
    "ProtocolError",
    "SettingsError",
]


class GatewayError(Exception):
    """The base of every exception that this package raises."""


class SettingsError(GatewayError, ValueError):
    """A setting is missing or wrong; the message names it, says what is wrong and what is allowed."""


class PolicyError(SettingsError):
    """There is a mistake in the policy file; the message names file and line, what is wrong and what is allowed."""


class NotStartedError(GatewayError, RuntimeError):
    """The gateway was used before its lifespan was entered, or after it was left."""


class ProtocolError(GatewayError):
    """What the client sent is not a frame of the protocol.

    ``description`` goes to the client: it names the field and never quotes its content. ``id`` and ``trace_id``
    are the ones of the broken frame when they could be read and are valid themselves, else None.
    """

    def __init__(self, description: str, *, id: str | None = None, trace_id: str | None = None) -> None:  # noqa: A002
        super().__init__(description)
        self.description = description
        self.id = id
        self.trace_id = trace_id


class HandshakeRefused(GatewayError):
    """The connection is not allowed. The message is for the log and never contains the token."""


class AuthenticationFailed(HandshakeRefused):
    """There is no token, or it does not identify anybody."""


class ConnectionLimitReached(HandshakeRefused):
    """There are too many connections, of this user (``per_user``) or in this process."""

    def __init__(self, message: str, *, per_user: bool) -> None:
        super().__init__(message)
        self.per_user = per_user


class AuthenticationUnavailable(GatewayError):
    """Whether a token is valid cannot be told now: it may be good, so its client is told to try again later.

    For authenticators to raise, a host application's own included. The message is for the log and never contains the
    token.
    """


class MeshUnavailable(GatewayError):
    """The mesh did not take the message: no connection, or it is blocked. Nothing was sent."""


class CallError(GatewayError):
    """A call that the host application made ended with an error.

    ``code`` is the protocol's error code, ``error`` the NuroPb class name, ``retryable`` whether the same call may
    be made again without risk of running twice.
    """

    def __init__(self, code: str, error: str, description: str, *, retryable: bool) -> None:
        super().__init__(f"{code}: {description}")
        self.code = code
        self.error = error
        self.description = description
        self.retryable = retryable

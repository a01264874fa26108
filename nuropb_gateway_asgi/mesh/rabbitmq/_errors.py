"""Errors of a connection to the broker, and their wording for an operator."""

from __future__ import annotations

import asyncio
import re
from typing import Any, Final

from aiormq.exceptions import (
    AuthenticationError,
    ConnectionInternalError,
    ConnectionResourceError,
    InvalidFrameError,
    ProbableAuthenticationError,
)

from ._aiormq import REFUSED_VHOST_TEXT
from ._tls import explain_certificate

__all__ = ["CONNECTION_ERRORS", "BrokerRefused", "ending", "explain", "is_error_of_broker"]

#: Every way in which an attempt to connect, or a connection, can end. aiormq cancels the tasks that wait for an answer
#: of the broker when a connection is lost (CancelledError), decodes tables recursively (RecursionError), and raises a
#: bare RuntimeError or Exception for a connection that is lost at a bad moment.
CONNECTION_ERRORS: Final = (Exception, asyncio.CancelledError)


#: RabbitMQ's words for its limits: of connections and queues of a vhost, connections and channels of a user,
#: connections of a node, and channels of a connection. Each has the number, in parentheses before RabbitMQ 4.3.
_LIMIT: Final = re.compile(r"limit\b[^()]*\(\d+\)|limit of \d+|channel_max \(\d+\)")
#: Its words for a vhost that there is not, or that this user may not use.
_VHOST: Final = re.compile(r"vhost .* not found|access to vhost .* refused for user")


class BrokerRefused(ConnectionError):
    """The broker closed a connection that was being made; the message is the broker's own."""


def explain(error: BaseException) -> str:
    """Describe an error to an operator. aiormq puts addresses into its messages, but no passwords."""
    if isinstance(error, BaseExceptionGroup):
        return explain(error.exceptions[0])
    if isinstance(error, AuthenticationError | ProbableAuthenticationError):
        return f"the broker refuses the credentials or the vhost ({error})"
    if _LIMIT.search(str(error)):
        return f"the broker refuses more: one of its limits is reached ({error}); raise the limit, or free some"
    if isinstance(error, BrokerRefused):
        if _VHOST.search(str(error)):
            return f"the broker refuses the vhost: it does not exist, or this user may not use it ({error})"
        return f"the broker refuses the connection ({error})"
    if isinstance(error, InvalidFrameError) and REFUSED_VHOST_TEXT in str(error):
        # aiormq expects another frame at this point and drops the broker's own words.
        return "the broker refuses the vhost: it does not exist, or this user may not use it"
    if (certificate := explain_certificate(error)) is not None:
        return certificate
    if is_error_of_broker(error):
        return f"the broker closed the connection for an error of its own ({error})"
    if isinstance(error, TimeoutError):
        return "no answer from the broker in time"
    if isinstance(error, asyncio.CancelledError):
        return "the connection was lost"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def ending(closing: asyncio.Future[Any]) -> BaseException | None:
    """Return the exception by which a connection or channel has ended, or None; ``closing`` is its end."""
    return closing.exception() if closing.done() and not closing.cancelled() else None


def is_error_of_broker(error: BaseException | None) -> bool:
    """Tell whether the broker has closed a connection for an error of its own (541), or for a lack (506)."""
    return isinstance(error, ConnectionInternalError | ConnectionResourceError)

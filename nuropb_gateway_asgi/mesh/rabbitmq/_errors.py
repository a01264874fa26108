"""Errors of a connection to the broker, and their wording for an operator."""

from __future__ import annotations

import asyncio
from typing import Final

from aiormq.exceptions import AuthenticationError, InvalidFrameError, ProbableAuthenticationError

from ._aiormq import REFUSED_VHOST_TEXT

__all__ = ["CONNECTION_ERRORS", "explain"]

#: Every way in which an attempt to connect, or a connection, can end. aiormq cancels the tasks that wait for an answer
#: of the broker when a connection is lost (CancelledError), decodes tables recursively (RecursionError), and raises a
#: bare RuntimeError or Exception for a connection that is lost at a bad moment.
CONNECTION_ERRORS: Final = (Exception, asyncio.CancelledError)


def explain(error: BaseException) -> str:
    """Describe an error to an operator. aiormq puts addresses into its messages, but no passwords."""
    if isinstance(error, BaseExceptionGroup):
        return explain(error.exceptions[0])
    if isinstance(error, AuthenticationError | ProbableAuthenticationError):
        return f"the broker refuses the credentials or the vhost ({error})"
    if isinstance(error, InvalidFrameError) and REFUSED_VHOST_TEXT in str(error):
        # aiormq expects another frame at this point and drops the broker's own words.
        return "the broker refuses the vhost: it does not exist, or this user may not use it"
    if isinstance(error, TimeoutError):
        return "no answer from the broker in time"
    if isinstance(error, asyncio.CancelledError):
        return "the connection was lost"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__

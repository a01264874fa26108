"""What the commands that talk to a gateway have in common: where it is, with what token, and how they end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import click

from ..settings import ENV_PREFIX
from ._output import say
from ._target import Target, parse_url

if TYPE_CHECKING:
    from ..client import Client, ConnectionClosed, ConnectionLost, GatewayError

__all__ = [
    "CONNECT_TIMEOUT",
    "DEFAULT_URL",
    "ENVIRONMENT",
    "EXIT_CODES",
    "SECONDS",
    "TOKEN_VARIABLE",
    "connect_timeout",
    "describe_error",
    "exit_code",
    "find_token",
    "gateway_options",
    "run",
    "said",
    "session",
    "source_options",
]

C = TypeVar("C", bound=Callable[..., Any])

#: Seconds for a connection to come about.
CONNECT_TIMEOUT: Final = 15.0
#: As many for one that is made for a call, however little its answer is given.
LEAST_CONNECT_TIMEOUT: Final = 5.0
#: The type of an option that is a time.
SECONDS: Final = click.FloatRange(min=0, min_open=True)
DEFAULT_URL: Final = "ws://127.0.0.1:8000/ws"
TOKEN_VARIABLE: Final = f"{ENV_PREFIX}TOKEN"
ENVIRONMENT: Final = (
    f"The gateway is that of {ENV_PREFIX}URL, the token that of {TOKEN_VARIABLE}, unless options say so."
)
EXIT_CODES: Final = """\b
Exit codes:
  0    all went well
  1    it failed: service_error, deprecated, cancelled, internal
  2    the command line is wrong
  3    there is no connection, and nothing was called
  4    the call is wrong: bad_request, invalid_params, method_not_found, payload_too_large
  5    not allowed: unauthenticated, permission_denied, or the token was refused
  6    not delivered, try again: service_unavailable, mesh_unavailable, too_many_requests
  7    it may have run: timeout, or the connection was lost
  130  interrupted"""

#: By error code; all others are 1.
_EXIT_CODES: Final = {
    "bad_request": 4,
    "invalid_params": 4,
    "method_not_found": 4,
    "payload_too_large": 4,
    "duplicate_id": 4,
    "unauthenticated": 5,
    "permission_denied": 5,
    "unsubscribed": 5,
    "service_unavailable": 6,
    "mesh_unavailable": 6,
    "too_many_requests": 6,
    "timeout": 7,
    "connection_lost": 7,
    "connection_closed": 3,
}
#: Statuses and close codes by which a gateway says that a token or its user is not welcome.
_NOT_WELCOME: Final = frozenset({401, 403, 4005, 4502, 4503, 4507, 4510, 4511, 4513})


def source_options(command: C) -> C:
    """The options by which a gateway and a token are named, as they are given: ``url``, ``token``, ``token_file``."""
    for option in (
        click.option("--token-file", metavar="PATH", help="A file that holds the token; - for standard input."),
        click.option("--token", metavar="TOKEN", help="The token; others on this machine can see it."),
        click.option(
            "--url",
            metavar="URL",
            envvar=f"{ENV_PREFIX}URL",
            default=DEFAULT_URL,
            show_default=True,
            help="The gateway's WebSocket.",
        ),
    ):
        command = option(command)
    return command


def gateway_options(command: C) -> C:
    """The same options, understood: ``command`` gets ``target`` and ``token``."""

    @functools.wraps(command)
    def understood(*args: Any, url: str, token: str | None, token_file: str | None, **options: Any) -> Any:
        return command(*args, target=parse_url(url), token=find_token(token, token_file), **options)

    return source_options(cast("C", understood))


def find_token(token: str | None, file: str | None) -> str | None:
    """The token that is given, in a file, or in the environment; None if there is none.

    Raises ValueError for what can be none, and does not quote it.
    """
    if token is not None and file is not None:
        raise click.UsageError("--token and --token-file exclude each other")
    if file is not None:
        token = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    elif token is None:
        token = os.environ.get(TOKEN_VARIABLE, "")
    token = token.strip()
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("the token has characters in it that no token has: is it complete, and the only one?")
    return token or None


# --- running ------------------------------------------------------------------------------------------------------


def run(command: Coroutine[Any, Any, int]) -> int:
    """Run ``command``; what goes wrong with the gateway is told in a line, and becomes the exit code."""
    from ..client import ConnectionClosed, GatewayError

    try:
        return asyncio.run(command)
    except GatewayError as error:
        more = "; 'nuropb-gateway doctor' looks closer" if isinstance(error, ConnectionClosed) else ""
        say(f"{describe_error(error)}{more}")
        return exit_code(error)


def connect_timeout(timeout: float | None) -> float:
    """How long a connection may take, for a call that may take ``timeout``, both in seconds."""
    return CONNECT_TIMEOUT if timeout is None else max(timeout, LEAST_CONNECT_TIMEOUT)


@contextlib.asynccontextmanager
async def session(
    target: Target,
    token: str | None,
    *,
    timeout: float = CONNECT_TIMEOUT,  # noqa: ASYNC109 - it is the client that is told
    reconnect: bool = False,
    tell: Callable[[str], object] = say,
) -> AsyncIterator[Client]:
    """A connection to a gateway, which has ``timeout`` seconds to come about. ``tell`` is told of warnings.

    Raises for the first failure, as somebody waits for it, also where the client would ``reconnect``.
    """
    from ..client import connect

    async with connect(
        target.url, token=token, open_timeout=0, reconnect=reconnect, connect_timeout=timeout
    ) as gateway:
        gateway.on("warning", lambda warning: tell(describe_error(warning)))
        await _opened(gateway)
        yield gateway


async def _opened(gateway: Client) -> None:
    failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_state(state: Any) -> None:
        if state.name == "reconnecting" and not failed.done():
            failed.set_result(None)

    ignore = gateway.on("state", on_state)
    opening = asyncio.ensure_future(gateway.opened())
    try:
        await asyncio.wait((opening, failed), return_when=asyncio.FIRST_COMPLETED)
        if not opening.done() and gateway.state.error is not None:
            raise gateway.state.error
        await opening
    finally:
        ignore()
        opening.cancel()
        failed.cancel()


# --- what went wrong ----------------------------------------------------------------------------------------------


def exit_code(error: GatewayError) -> int:
    """What a command ends with after ``error``."""
    from ..client import CallFailed, ConnectionClosed, ConnectionLost

    if isinstance(error, ConnectionClosed | ConnectionLost) and {error.status, error.close_code} & _NOT_WELCOME:
        return 5
    if isinstance(error, CallFailed) and error.retryable:
        return 6
    return _EXIT_CODES.get(getattr(error, "code", ""), 1)


def describe_error(error: BaseException) -> str:
    """What went wrong, in a line; that of a call with its code, and its trace id for the logs."""
    from ..client import CallFailed, ConnectionClosed, ConnectionLost

    if isinstance(error, CallFailed):
        wait = "" if error.retry_after is None else f"; try again in {error.retry_after:g} s"
        named = error.trace_id is None or error.trace_id in error.description
        trace = "" if named else f" (trace id {error.trace_id})"
        return f"{error.code}: {error.description}{wait}{trace}"
    if isinstance(error, ConnectionClosed | ConnectionLost):
        return _describe_ending(error)
    because = "" if error.__cause__ is None else f": {describe_error(error.__cause__)}"
    return f"{error}{because}"


def _describe_ending(error: ConnectionClosed | ConnectionLost) -> str:
    from ..client import GatewayError

    reason = error.reason or "the connection has ended"
    cause, why = error.__cause__, ""
    if error.status is not None:
        why = said(cause)
    elif isinstance(cause, GatewayError) or (cause is not None and error.close_code == 1006):
        why = str(cause) or type(cause).__name__
    number = "" if error.close_code == 1006 or error.status is not None else f" (close code {error.close_code})"
    return f"{reason}{number}{f': {why}' if why else ''}"


def said(error: BaseException | None) -> str:
    """What a gateway wrote into the answer by which it refused a handshake, if that is what ``error`` is about."""
    import msgspec

    body = getattr(getattr(error, "response", None), "body", None)
    try:
        answer = msgspec.json.decode(body or b"")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    description = answer.get("description") if isinstance(answer, dict) else None
    return description if isinstance(description, str) else ""

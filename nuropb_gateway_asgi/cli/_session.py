"""The connection of a command to a gateway, and the exit code that its errors give."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from ._errors import describe_error, exit_code
from ._options import TOKEN_VARIABLE
from ._output import say
from ._target import Target

if TYPE_CHECKING:
    from ..client import Client

__all__ = ["CONNECT_TIMEOUT", "connect_timeout", "run", "session"]

#: Seconds to connect.
CONNECT_TIMEOUT: Final = 15.0
NO_TOKEN: Final = (
    f"no token was given: set {TOKEN_VARIABLE}, or use --token-file; 'nuropb-gateway serve' prints one on the embedded "
    "mesh, and 'nuropb-gateway token --user NAME' makes one with the gateway's key"
)
#: Seconds to connect at the least, however short the timeout of the call is that follows.
LEAST_CONNECT_TIMEOUT: Final = 5.0


def run(command: Coroutine[Any, Any, int], *, after_timeout: str = "") -> int:
    """Run ``command`` and return its exit code. A gateway's error is printed in one line.

    ``after_timeout`` is the next step after a call that was sent, and has no answer in time.
    """
    from ..client import CallTimeout, ConnectionClosed, GatewayError

    try:
        return asyncio.run(command)
    except GatewayError as error:
        hint = "'nuropb-gateway doctor' shows why" if isinstance(error, ConnectionClosed) else ""
        if isinstance(error, CallTimeout) and not error.retryable:
            hint = after_timeout
        say(f"{describe_error(error)}{f'; {hint}' if hint else ''}")
        return exit_code(error)


def connect_timeout(timeout: float | None) -> float:
    """Return the seconds that connecting may take before a call with this ``timeout``."""
    return CONNECT_TIMEOUT if timeout is None else max(timeout, LEAST_CONNECT_TIMEOUT)


@contextlib.asynccontextmanager
async def session(
    target: Target,
    token: str | None,
    *,
    timeout: float = CONNECT_TIMEOUT,  # noqa: ASYNC109 - it is an option of the client
    reconnect: bool = False,
    tell: Callable[[str], object] = say,
) -> AsyncIterator[Client]:
    """Connect to a gateway within ``timeout`` seconds. Warnings go to ``tell``.

    Raises for the first failure, even if the client would ``reconnect``: a user is waiting. Without a token it raises
    at once, as the gateway would wait for one.
    """
    from ..client import Unauthenticated, connect

    if token is None:
        raise Unauthenticated("unauthenticated", NO_TOKEN)
    async with connect(
        target.url, token=token, open_timeout=0, reconnect=reconnect, connect_timeout=timeout
    ) as gateway:
        gateway.on("warning", lambda warning: tell(describe_error(warning)))
        await _opened(gateway)
        yield gateway


async def _opened(gateway: Client) -> None:
    """Wait until the connection is open. Raises the error of the first attempt that fails."""
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

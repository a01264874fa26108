"""The WebSocket between a client and the gateway: frames pass unchanged, and a recorder sees them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import anyio
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from ...protocol import SUBPROTOCOL
from ...static.assets import read_asset

if TYPE_CHECKING:
    from ...mocks.recording import Recorder

__all__ = ["relaying"]

#: Headers of a handshake that the gateway needs to know its client.
_PASSED: Final = ("Authorization", "Cookie")
#: Close codes of refused handshakes, as browsers get them from a gateway.
_CODES: Final = {400: 4505, 401: 4510, 403: 4513, 429: 4504}
#: On level DEBUG the library logs the headers of handshakes, which contain the token.
_logger = logging.getLogger("nuropb_gateway_asgi.cli.record.websockets")
_logger.setLevel(logging.INFO)


@contextlib.asynccontextmanager
async def relaying(url: str, host: str, port: int, recorder: Callable[[], Recorder]) -> AsyncIterator[str]:
    """Relay connections to the gateway at ``url`` for as long as the context lasts; yield the URL for clients.

    ``recorder`` makes the recorder of a connection. ``/client.js`` is served, too, as a gateway serves it.
    """
    path = urlsplit(url).path or "/"

    async def handle(client: ServerConnection) -> None:
        try:
            gateway = await _connect(url, client)
        except InvalidStatus as error:
            await client.close(_CODES.get(error.response.status_code, 1013), "the gateway refused the handshake")
        except (OSError, WebSocketException):
            await client.close(1013, "the gateway cannot be reached")
        else:
            async with gateway:
                await _relay(client, gateway, recorder())

    async with serve(
        handle,
        host,
        port,
        process_request=_serve_file,
        select_subprotocol=lambda connection, offered: Subprotocol(SUBPROTOCOL) if SUBPROTOCOL in offered else None,
        compression=None,
        ping_interval=None,
        max_size=None,
        logger=_logger,
    ) as server:
        address = next(iter(server.sockets)).getsockname()
        yield f"ws://{f'[{address[0]}]' if ':' in address[0] else address[0]}:{address[1]}{path}"


async def _serve_file(connection: ServerConnection, request: Request) -> Response | None:
    name = request.path.partition("?")[0].rsplit("/", 1)[-1]
    if name not in ("client.js", "client-worker.js"):
        return None
    asset = read_asset(f"static/{name}")
    response = connection.respond(HTTPStatus.OK, "")
    response.body = asset.body
    del response.headers["Content-Type"], response.headers["Content-Length"]
    response.headers["Content-Type"] = "text/javascript"
    response.headers["Content-Length"] = str(len(asset.body))
    response.headers["Access-Control-Allow-Origin"] = "*"
    return response


async def _connect(url: str, client: ServerConnection) -> ClientConnection:
    headers: Any = {} if client.request is None else client.request.headers
    offered = [each.strip() for value in headers.get_all("Sec-WebSocket-Protocol") for each in value.split(",")]
    passed = {name: headers[name] for name in _PASSED if name in headers}
    return await _Connect(
        url,
        origin=headers.get("Origin"),
        additional_headers=passed,
        subprotocols=[Subprotocol(each) for each in offered] or None,
        compression=None,
        ping_interval=None,
        max_size=None,
        proxy=None,
        logger=_logger,
    )


class _Connect(connect):
    """A handshake that follows no redirects: the token is for the gateway alone."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        """Return the refusal."""
        return exc


async def _relay(client: ServerConnection, gateway: ClientConnection, recorder: Recorder) -> None:
    async with anyio.create_task_group() as tasks:

        async def upwards() -> None:
            with contextlib.suppress(ConnectionClosed):
                async for message in client:
                    recorder.on_client(message)
                    await gateway.send(message)
            await gateway.close(*_ending(client))
            tasks.cancel_scope.cancel()

        tasks.start_soon(upwards)
        with contextlib.suppress(ConnectionClosed):
            async for message in gateway:
                recorder.on_gateway(message)
                await client.send(message)
        with anyio.CancelScope(shield=True):
            await client.close(*_ending(gateway))
        tasks.cancel_scope.cancel()


def _ending(connection: ClientConnection | ServerConnection) -> tuple[int, str]:
    """Return the close code and reason to pass on; the codes of broken connections cannot be sent."""
    code = connection.close_code
    if code is None or not (code == 1000 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
        return 1001, ""
    return code, connection.close_reason or ""

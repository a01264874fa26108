"""The command line: ``serve`` runs the gateway, ``call`` makes one call as a client, ``explain`` says what may be."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any

from ._version import __version__
from .exceptions import SettingsError
from .settings import ENV_PREFIX, Settings

__all__ = ["main"]

#: Bytes; with uvicorn's default, a handshake header longer than 8 KiB (a large token) is never answered.
MAX_HEADER_LINE = 16384
#: Seconds. The kernel gives up on a peer that acknowledges nothing for so long. uvicorn itself would wait for ever for
#: the last bytes to a client that does not read, and so would its shutdown.
TCP_USER_TIMEOUT = 30
TOKEN_VARIABLE = f"{ENV_PREFIX}TOKEN"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the result is the exit code."""
    parser = argparse.ArgumentParser(prog="nuropb-gateway", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command")
    serve = commands.add_parser("serve", help="run the gateway (the default)")
    call = commands.add_parser(
        "call",
        help="call a method as a client",
        epilog=f"The token is read from the environment: {ENV_PREFIX}TOKEN. Exit code 1: the call failed.",
    )
    for each in (parser, serve):
        each.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1)")
        each.add_argument("--port", type=int, default=8000, help="port to listen at (8000; 0 for a free one)")
    call.add_argument("url", help="where the gateway is, e.g. ws://127.0.0.1:8000/ws")
    call.add_argument("method", help="service.method, e.g. demo.add")
    call.add_argument("params", nargs="?", default="{}", help='a JSON object, e.g. \'{"a": 2, "b": 3}\'')
    call.add_argument("--timeout", type=float, default=None, help="seconds to wait for the answer")
    explain = commands.add_parser(
        "explain",
        help="say why a token may call a method or subscribe to a topic, or why not",
        epilog=f"Without an option the token is read from {TOKEN_VARIABLE}. Exit code 1: no. Nothing is called.",
    )
    explain.add_argument("method", nargs="?", help="service.method, e.g. orders.create")
    explain.add_argument("--topic", help="a topic pattern instead, e.g. 'orders.#'")
    explain.add_argument("--token", help="the token; others on this machine can see it")
    explain.add_argument("--token-file", help="a file that holds the token")
    explain.add_argument("--json", action="store_true", help="print JSON")
    explain.add_argument("--timeout", type=float, default=5.0, help="seconds to wait for the mesh (5)")
    options = parser.parse_args(arguments)
    try:
        if options.command == "call":
            return asyncio.run(_call(options))
        if options.command == "explain":
            return _explain(options)
        return _serve(options.host, options.port)
    except (SettingsError, OSError, ValueError, OverflowError) as error:  # the last: a port above 65535
        print(f"nuropb-gateway: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _explain(options: argparse.Namespace) -> int:
    from .explain_command import explain, read_token

    token = options.token or (read_token(options.token_file) if options.token_file else os.environ.get(TOKEN_VARIABLE))
    return explain(
        token or "", method=options.method, topic=options.topic, as_json=options.json, timeout=options.timeout
    )


def _serve(host: str, port: int) -> int:
    # Read when websockets is imported, so this comes before uvicorn.
    os.environ.setdefault("WEBSOCKETS_MAX_LINE_LENGTH", str(MAX_HEADER_LINE))
    import uvicorn

    from .gateway import create_app

    settings = Settings.from_env()
    app = create_app(settings, announce=False)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        ws="websockets-sansio",
        # Somewhat above the gateway's own limit, so that a message which is a little too big gets an explanation.
        ws_max_size=4 * settings.max_message_size,
        # 60 KiB for each connection, and an oracle for secrets beside what an attacker may send (CRIME).
        ws_per_message_deflate=False,
        # A shutdown never waits longer for clients than this, after the gateway's own drain.
        timeout_graceful_shutdown=2,
        # At its debug level uvicorn logs the headers of handshakes, and the tokens in them.
        log_level="info" if settings.log_level == "debug" else settings.log_level,
        server_header=False,
    )
    listener = config.bind_socket()
    # The user timeout is inherited by the connections that this socket accepts.
    listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, "TCP_USER_TIMEOUT", 18), TCP_USER_TIMEOUT * 1000)
    url = f"ws://{_address(listener)}{settings.path}"

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                _announce(url, app.state.gateway.development_token)

    # uvicorn raises the signal that ended it once more, after a graceful shutdown: that is no failure.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    server = Server(config)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises the signal again after a graceful shutdown
        server.run(sockets=[listener])
    return 0 if server.started else 3


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _announce(url: str, token: str | None) -> None:
    print(f"\nThe gateway is at {url}", flush=True)
    if token is None:
        return
    program = os.path.relpath(sys.executable)
    program = program if not program.startswith("..") else sys.executable
    print(
        f"Its mesh is embedded, with a service called demo. A token for this run (user dev, one day):\n\n{token}\n\n"
        f"Try it from another terminal:\n\n"
        f"export {ENV_PREFIX}TOKEN={token}\n"
        f'{program} -m nuropb_gateway_asgi call {url} demo.add \'{{"a": 2, "b": 3}}\'\n',
        flush=True,
    )


async def _call(options: argparse.Namespace) -> int:
    from websockets.asyncio.client import connect
    from websockets.exceptions import WebSocketException

    service, dot, method = options.method.rpartition(".")
    if not dot:
        raise ValueError("the method has to be given as service.method")
    payload: dict[str, Any] = {"id": "1", "service": service, "method": method, "params": json.loads(options.params)}
    if options.timeout is not None:
        payload["timeout"] = options.timeout
    token = os.environ.get(TOKEN_VARIABLE, "")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        async with connect(options.url, additional_headers=headers, max_size=None) as websocket:
            await websocket.send(json.dumps({"type": "request", "payload": payload}))
            async for message in websocket:
                frame = json.loads(message)
                if frame["type"] == "response":
                    answer = frame["payload"]
                    print(json.dumps(answer["result"] if answer["error"] is None else answer["error"], indent=2))
                    return 0 if answer["error"] is None else 1
                if frame["type"] == "error":
                    print(json.dumps(frame, indent=2))
                    return 1
    except WebSocketException as error:
        raise ValueError(f"{options.url}: {error}") from error
    return 1


if __name__ == "__main__":
    sys.exit(main())

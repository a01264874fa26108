"""``call``: one call, as a client makes it."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import click

from ..settings import ENV_PREFIX

__all__ = ["call"]

#: A frame that answers the gateway's ping; without it the gateway takes the client for dead after 35 s.
PONG = json.dumps({"type": "pong"})

EPILOG = f"""The token is read from the environment: {ENV_PREFIX}TOKEN.

\b
Examples:
  nuropb-gateway call ws://127.0.0.1:8000/ws demo.add '{{"a": 2, "b": 3}}'
  nuropb-gateway call wss://gateway.example.com/ws orders.get '{{"number": 1}}' --timeout 5

\b
Exit codes:
  0  the result is on standard output
  1  the call failed; the error is on standard output
  2  there was no call: a wrong argument, no connection, or no answer
"""


@click.command(epilog=EPILOG)
@click.argument("url")
@click.argument("method")
@click.argument("params", default="{}")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds to wait for the answer.")
def call(url: str, method: str, params: str, timeout: float | None) -> int:
    """Call METHOD (service.method) of the gateway at URL, with PARAMS (a JSON object)."""
    service, dot, name = method.rpartition(".")
    if not dot:
        raise click.UsageError("METHOD has to be given as service.method")
    try:
        payload: dict[str, Any] = {"id": "1", "service": service, "method": name, "params": json.loads(params)}
    except ValueError as error:
        raise click.UsageError(f"PARAMS: it is not JSON ({error})") from error
    if timeout is not None:
        payload["timeout"] = timeout
    return asyncio.run(_call(url, payload))


async def _call(url: str, payload: dict[str, Any]) -> int:
    from websockets.asyncio.client import connect
    from websockets.exceptions import InvalidStatus, WebSocketException

    token = os.environ.get(f"{ENV_PREFIX}TOKEN", "")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        async with connect(url, additional_headers=headers, max_size=None) as websocket:
            await websocket.send(json.dumps({"type": "request", "payload": payload}))
            while True:
                frame = json.loads(await websocket.recv())
                if frame["type"] == "ping":
                    await websocket.send(PONG)
                elif frame["type"] == "response":
                    answer = frame["payload"]
                    click.echo(json.dumps(answer["result"] if answer["error"] is None else answer["error"], indent=2))
                    return 0 if answer["error"] is None else 1
                elif frame["type"] == "error":
                    click.echo(json.dumps(frame, indent=2))
                    return 1
    except InvalidStatus as error:
        said = bytes(error.response.body or b"").decode(errors="replace").strip()
        raise ValueError(f"{url}: {error}" + (f": {said}" if said.isprintable() and said else "")) from error
    except WebSocketException as error:
        raise ValueError(f"{url}: {error}") from error

"""Probes: the connections and HTTP requests by which ``doctor`` examines a server."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import http.client
import io
import json
import re
import ssl
import time
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from .._target import Target

__all__ = ["Answer", "Proxy", "get", "open_connection", "proxy_for"]

#: Bytes of an HTTP answer that are read.
MAX_ANSWER: Final = 65536
#: The headers of a WebSocket's handshake. The key is no secret; a server only shows by it that it has understood.
_UPGRADE: Final = (
    "Origin: {origin}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: bnVyb3BiLWdhdGV3YXkuLg==\r\nSec-WebSocket-Protocol: nuropb.v1\r\n"
)


@dataclass(frozen=True)
class Proxy:
    """The proxy that the environment names for a gateway."""

    host: str
    port: int

    @property
    def address(self) -> str:
        """Host and port. The URL of a proxy may also contain a password, which is not shown."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Answer:
    """An HTTP answer. ``skew`` is by how many seconds the server's clock is ahead; None without a date."""

    status: int
    json: object
    skew: float | None


def proxy_for(target: Target) -> Proxy | None:
    """Return the proxy that the client would use for ``target``, by the rules of websockets."""
    if urllib.request.proxy_bypass(f"{target.host}:{target.port}"):
        return None
    proxies = urllib.request.getproxies()
    for scheme in ("wss", "socks", "https") if target.secure else ("ws", "socks", "https", "http"):
        if scheme in proxies:
            with contextlib.suppress(ValueError):
                parts = urlsplit(proxies[scheme])
                return Proxy(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
    return None


@contextlib.asynccontextmanager
async def open_connection(
    host: str, port: int, *, secure: bool = False, limit: int = MAX_ANSWER
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect to a port, with TLS if ``secure``. The connection is aborted at the end."""
    options: dict[str, Any] = {"ssl": ssl.create_default_context(), "server_hostname": host} if secure else {}
    reader, writer = await asyncio.open_connection(host, port, limit=limit, **options)
    try:
        yield reader, writer
    finally:
        # A graceful close would wait for the server, and nothing more is expected from it.
        writer.transport.abort()


async def get(
    target: Target,
    path: str,
    timeout: float,  # noqa: ASYNC109
    *,
    upgrade_from: str | None = None,
) -> Answer | None:
    """Request ``path`` over HTTP/1.0. Return None if the server does not answer in HTTP within ``timeout`` seconds.

    With ``upgrade_from``, the origin of a page, it asks for a WebSocket as a browser does; it reads the head of the
    answer alone if there is no body.
    """
    version, more_headers = ("1.0", "") if upgrade_from is None else ("1.1", _UPGRADE.format(origin=upgrade_from))
    request = (
        f"GET {path} HTTP/{version}\r\nHost: {target.address}\r\n"
        f"User-Agent: nuropb-gateway-doctor\r\n{more_headers}\r\n"
    )
    began = time.time()
    try:
        async with (
            asyncio.timeout(timeout),
            open_connection(target.host, target.port, secure=target.secure) as (reader, writer),
        ):
            writer.write(request.encode())
            data = b""
            while len(data) < MAX_ANSWER and (more := await reader.read(MAX_ANSWER)):
                data += more
                if upgrade_from is not None and _is_whole(data):
                    break
    except OSError:
        return None
    return _parse_answer(data, (began + time.time()) / 2)


def _is_whole(data: bytes) -> bool:
    """Whether ``data`` is a whole answer of a connection that stays open: a 101, or a head and its body."""
    head, end, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *([0-9]{1,6})", head)
    return bool(end) and (length is None or len(body) >= int(length[1]))


def _parse_answer(data: bytes, now: float) -> Answer | None:
    """Parse the answer in ``data``, received at about ``now``. Return None if it is not HTTP."""
    head, _, body = data.partition(b"\r\n\r\n")
    first, _, rest = head.partition(b"\r\n")
    words = first.split(maxsplit=2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        return None
    try:
        date = http.client.parse_headers(io.BytesIO(rest + b"\r\n\r\n")).get("Date", "")
        # A date is in whole seconds: on average it is half a second old when it is written.
        skew: float | None = email.utils.parsedate_to_datetime(date).timestamp() + 0.5 - now
    except (ValueError, http.client.HTTPException):
        skew = None
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        content = None
    return Answer(int(words[1]), content, skew)

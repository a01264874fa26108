"""Agents: clients of the official SDK, and requests that no honest client sends."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any, Final, Literal, TypeAlias

import httpx2
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client

from .gateways import DEADLINE, Site

__all__ = ["MODES", "STATELESS", "Mode", "agent", "envelope", "headers", "post"]

Mode: TypeAlias = Literal["auto", "legacy", "2026-07-28"]
MODES: Final[tuple[Mode, ...]] = ("auto", "legacy", "2026-07-28")
#: The version without a handshake.
STATELESS: Final = "2026-07-28"


@contextlib.asynccontextmanager
async def agent(site: Site, token: str, mode: Mode = "auto", **options: Any) -> AsyncIterator[Any]:
    """Connect the SDK's client, with options of its own.

    Its type is left open: a test knows which kinds of content a tool gives.
    """
    async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=DEADLINE) as http:
        transport = streamable_http_client(site.http("/mcp"), http_client=http)
        async with Client(transport, mode=mode, **options) as client:
            yield client


def envelope(method: str, /, **params: Any) -> dict[str, Any]:
    """Return a request of the stateless protocol."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": STATELESS,
        "io.modelcontextprotocol/clientCapabilities": {},
        **params.pop("meta", {}),
    }
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": {"_meta": meta, **params}}


def headers(method: str = "tools/call", name: str | None = None, token: str | None = "alice") -> dict[str, str]:
    """Return the headers of such a request."""
    sent = {
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": STATELESS,
        "Mcp-Method": method,
    }
    if name is not None:
        sent["Mcp-Name"] = name
    return sent | ({} if token is None else {"Authorization": f"Bearer {token}"})


async def post(site: Site, body: object, sent: dict[str, str]) -> httpx2.Response:
    """Send a request; ``body`` is bytes, or anything that becomes JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with httpx2.AsyncClient(timeout=DEADLINE) as client:
        return await client.post(site.http("/mcp"), content=content, headers=sent)

"""Commands that run the JavaScript client. Where they are not installed, tests are skipped, and fail in CI."""

from __future__ import annotations

from tests.servers.javascript import CLIENT, NODE, find_chromium, find_node
from tests.servers.processes import unavailable

__all__ = ["chromium", "node"]


def node() -> list[str]:
    """Return the command of Node, with WebSockets enabled."""
    found = find_node()
    if found is None:
        unavailable(f"Node {NODE} or newer, with npm, is not installed")
    if not (CLIENT / "dist" / "client.js").exists():
        unavailable("the JavaScript client is not built: make client")
    program, version = found
    return [program, *([] if version >= (22, 0) else ["--experimental-websocket", "--no-warnings"])]


def chromium() -> str:
    """Return the path of Chromium."""
    found = find_chromium()
    if found is None:
        unavailable("Chromium is not installed")
    return found

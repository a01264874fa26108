"""Contenders: how each is started and addressed, and its parts of the benchmark."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = [
    "BASE",
    "CONTENDERS",
    "FLOOR",
    "LIMIT",
    "LIMIT_MESH",
    "MOLECULER",
    "NUROPB_GW",
    "ROOT",
    "STOMP",
    "WORKERS",
    "Contender",
]

ROOT: Final = Path(__file__).resolve().parent.parent
MOLECULER_DIRECTORY: Final = ROOT / "benchmarks" / "moleculer"
NUROPB_GW_VENV: Final = ROOT / ".venv-bench-nuropb-gw"

_SERVERS: Final = ("-m", "benchmarks.servers")
LIMIT_PROGRAM: Final = ROOT / "benchmarks" / "limit" / ".built"

_WEBSOCKETS: Final = frozenset({"load", "memory", "connect", "fan-out", "growth"})
_EVERYTHING: Final = _WEBSOCKETS | {"http", "streams", "start"}


@dataclass(frozen=True)
class Contender:
    """A server to measure."""

    name: str
    title: str
    #: A name in dialects.py; that of its WebSockets, if it has any.
    dialect: str
    #: Start command, without the port; empty for a contender within the broker.
    command: tuple[str, ...]
    parts: frozenset[str]
    #: The contender is left out if this file, made by make bench, is missing; ``otherwise`` is the reason.
    needs: Path | None = None
    otherwise: str = ""
    #: Upper bound of its connections.
    most_connections: int | None = None
    #: The quick form leaves it out.
    only_full: bool = False
    #: Calls the service by Moleculer's protocol.
    is_moleculer: bool = False
    #: Method that sends to all connections; without a dot, a method of the server's own service.
    broadcaster: str = "bench.publish"


def _gateway(name: str, title: str, *more: str, parts: frozenset[str], only_full: bool = False) -> Contender:
    command = (sys.executable, *_SERVERS, *more, "--port")
    return Contender(name, title, "gateway", command, parts, only_full=only_full)


#: The base of all ratios.
BASE: Final = _gateway("gateway", "this gateway, uvloop", "gateway", parts=_EVERYTHING)
NUROPB_GW: Final = Contender(
    "nuropb_gw",
    "nuropb_gw 0.1.4 (Tornado)",
    "nuropb_gw",
    (str(NUROPB_GW_VENV / "bin" / "python"), *_SERVERS, "nuropb_gw", "--port"),
    _WEBSOCKETS | {"start"},
    needs=NUROPB_GW_VENV / ".done",
    otherwise="it needs Python 3.11",
    broadcaster="broadcast",
)
MOLECULER: Final = Contender(
    "moleculer-io",
    "moleculer-io (Node.js)",
    "socket.io",
    (shutil.which("node") or "node", str(MOLECULER_DIRECTORY / "gateway.mjs")),
    (_WEBSOCKETS | {"start"}) - {"growth"},
    needs=MOLECULER_DIRECTORY / "node_modules" / ".done",
    otherwise="it needs Node.js and npm",
    is_moleculer=True,
)
#: Each connection is a process and a queue of the broker, which all contenders share: many would slow down all.
STOMP: Final = Contender(
    "web-stomp", "RabbitMQ Web STOMP", "stomp", (), frozenset({"load", "fan-out"}), most_connections=1000
)
#: The lowest cost on uvicorn and Starlette.
FLOOR: Final = Contender(
    "echo",
    "floor: bare echo, uvloop",
    "echo",
    (sys.executable, *_SERVERS, "echo", "--port"),
    _EVERYTHING - {"streams"},
)
#: The fewest system calls and bytes: what no program on this machine can go below.
LIMIT: Final = Contender(
    "limit",
    "limit: C without a mesh",
    "gateway",
    (str(LIMIT_PROGRAM), "echo"),
    _EVERYTHING,
    needs=LIMIT_PROGRAM,
    otherwise="it needs a C compiler",
)
LIMIT_MESH: Final = Contender(
    "limit-mesh",
    "limit: C over RabbitMQ",
    "gateway",
    (str(LIMIT_PROGRAM), "mesh"),
    frozenset({"load", "fan-out", "growth", "http", "streams"}),
    needs=LIMIT_PROGRAM,
    otherwise="it needs a C compiler",
)
#: Other ways to calls and events over HTTP.
MOLECULER_WEB: Final = Contender(
    "moleculer-web",
    "moleculer-web (Node.js)",
    "calls",
    (shutil.which("node") or "node", str(MOLECULER_DIRECTORY / "web.mjs")),
    frozenset({"http"}),
    needs=MOLECULER_DIRECTORY / "node_modules" / ".done",
    otherwise="it needs Node.js and npm",
    is_moleculer=True,
)
FASTAPI: Final = Contender(
    "fastapi",
    "FastAPI and aio-pika, uvloop",
    "calls",
    (sys.executable, *_SERVERS, "fastapi", "--port"),
    frozenset({"http"}),
)
SSE_STARLETTE: Final = Contender(
    "sse-starlette",
    "sse-starlette, uvloop",
    "events",
    (sys.executable, *_SERVERS, "sse-starlette", "--port"),
    frozenset({"streams"}),
)
WORKERS: Final = tuple(
    _gateway(
        f"workers-{count}",
        f"{count} worker{'s' if count > 1 else ''}",
        *("gateway", "--workers", str(count)),
        parts=frozenset({"workers"}),
    )
    for count in (1, 2)
)

CONTENDERS: Final = (
    BASE,
    _gateway(
        "gateway-asyncio",
        "this gateway, asyncio",
        "gateway-asyncio",
        parts=frozenset({"load"}),
        only_full=True,
    ),
    _gateway(
        "gateway-uvicorn",
        "this gateway, by uvicorn itself",
        "gateway-uvicorn",
        parts=frozenset({"load", "fan-out"}),
        only_full=True,
    ),
    NUROPB_GW,
    MOLECULER,
    MOLECULER_WEB,
    FASTAPI,
    SSE_STARLETTE,
    STOMP,
    FLOOR,
    LIMIT,
    LIMIT_MESH,
    *WORKERS,
)

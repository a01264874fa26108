"""Who is compared, how each is started and talked to, and which parts of the benchmark it takes part in."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["BASE", "CONTENDERS", "FLOOR", "MOLECULER", "NUROPB_GW", "ROOT", "STOMP", "WORKERS", "Contender"]

ROOT: Final = Path(__file__).resolve().parent.parent
MOLECULER_DIRECTORY: Final = ROOT / "benchmarks" / "moleculer"
NUROPB_GW_VENV: Final = ROOT / ".venv-bench-nuropb-gw"

_SERVERS: Final = ("-m", "benchmarks.servers")
_EVERYTHING: Final = frozenset({"load", "memory", "connect", "fan-out", "growth"})


@dataclass(frozen=True)
class Contender:
    name: str
    title: str
    #: See dialects.py.
    dialect: str
    #: The command that starts it, to which the port is added; without one it is in the broker.
    command: tuple[str, ...]
    parts: frozenset[str]
    #: It is left out where this file is missing, which make bench makes if it can; and why it could not.
    needs: Path | None = None
    otherwise: str = ""
    #: It is not tried with more connections than this.
    most_connections: int | None = None
    #: The quick form does without it.
    only_full: bool = False
    #: It calls the service in Moleculer's protocol.
    is_moleculer: bool = False
    #: The method that sends to all connections; without a dot it is one of the server's own service.
    broadcaster: str = "bench.publish"


def _gateway(name: str, title: str, *more: str, parts: frozenset[str], only_full: bool = False) -> Contender:
    command = (sys.executable, *_SERVERS, *more, "--port")
    return Contender(name, title, "gateway", command, parts, only_full=only_full)


#: What the others are compared with.
BASE: Final = _gateway("gateway", "this gateway, uvloop", "gateway", parts=_EVERYTHING)
NUROPB_GW: Final = Contender(
    "nuropb_gw",
    "nuropb_gw 0.1.4 (Tornado)",
    "nuropb_gw",
    (str(NUROPB_GW_VENV / "bin" / "python"), *_SERVERS, "nuropb_gw", "--port"),
    _EVERYTHING,
    needs=NUROPB_GW_VENV / ".done",
    otherwise="it needs Python 3.11",
    broadcaster="broadcast",
)
MOLECULER: Final = Contender(
    "moleculer-io",
    "moleculer-io (Node.js)",
    "socket.io",
    (shutil.which("node") or "node", str(MOLECULER_DIRECTORY / "gateway.mjs")),
    _EVERYTHING - {"growth"},
    needs=MOLECULER_DIRECTORY / "node_modules" / ".done",
    otherwise="it needs Node.js and npm",
    is_moleculer=True,
)
#: A connection is a process and a queue of the broker, which all contenders share: many of them would be felt by all.
STOMP: Final = Contender(
    "web-stomp", "RabbitMQ Web STOMP", "stomp", (), frozenset({"load", "fan-out"}), most_connections=1000
)
#: Nothing on the same server can be cheaper.
FLOOR: Final = Contender(
    "echo",
    "floor: bare echo, uvloop",
    "echo",
    (sys.executable, *_SERVERS, "echo", "--port"),
    _EVERYTHING,
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
    NUROPB_GW,
    MOLECULER,
    STOMP,
    FLOOR,
    *WORKERS,
)

"""The state of a process for a debug bundle: versions, settings, sizes, tasks, recent warnings. No secrets."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import platform
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from .._version import __version__
from ..connection_kind import ConnectionKind

if TYPE_CHECKING:
    from .local import Parts

__all__ = ["report_of"]

#: Tasks that are listed, and frames of each, from the innermost.
MAX_TASKS: Final = 300
MAX_FRAMES: Final = 10
_PACKAGES: Final = (
    "aio-pika",
    "aiormq",
    "anyio",
    "cryptography",
    "h11",
    "httpx",
    "mcp",
    "msgspec",
    "opentelemetry-api",
    "prometheus-client",
    "python-jose",
    "starlette",
    "uvicorn",
    "uvloop",
    "websockets",
)


def report_of(parts: Parts, status: dict[str, Any], warnings: Sequence[str]) -> dict[str, Any]:
    """Return the report of this process, as JSON values."""
    return {
        "status": status,
        "versions": _versions(),
        "process": {
            "pid": os.getpid(),
            "platform": platform.platform(),
            "processors": os.cpu_count(),
            "event_loop": type(asyncio.get_running_loop()).__module__,
        },
        "settings": {name.upper(): value for name, value in parts.settings.shown().items()},
        "tables": {name: _tables(kind) for name, kind in parts.kinds.items()},
        "tasks": _tasks(),
        "recent_warnings": list(warnings),
    }


def _versions() -> dict[str, str]:
    found = {"nuropb-gateway-asgi": __version__, "python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _tables(kind: ConnectionKind) -> dict[str, int]:
    handlers, manager = kind.handler_manager, kind.service_mesh_manager
    shared = handlers.shared_limits
    return {
        "connections": len(handlers),
        "sessions": len(handlers.handlers),
        "tokens": len(handlers.tokens),
        "queued_bytes": kind.outbox_size,
        "calls_in_flight": manager.in_flight,
        "deadlines": manager.calls.table.deadlines,
        "given_up_calls": len(manager.calls.table.orphans),
        "waiting_calls": manager.calls.places.waiting,
        "sessions_with_calls": len(manager.client_calls),
        "kept_sessions": len(manager.resumption.store),
        "subscribed_sessions": manager.events.sessions,
        "subscriptions": manager.events.subscriptions,
        "bound_topics": manager.events.bound,
        "remembered_calls": manager.calls.table.remembered,
        "remembered_sessions": manager.resumption.store.remembered,
        "troubled_services": len(manager.calls.breakers.troubled),
        "error_budgets": len(shared.budgets),
        "admitted": len(shared.admission),
        "peer_processes": len(manager.fleet.members),
        "questions_to_peers": len(manager.fleet.questions),
        "unreadable_peer_messages": manager.fleet.unreadable,
    }


def _tasks() -> dict[str, Any]:
    tasks = sorted(asyncio.all_tasks(), key=asyncio.Task.get_name)
    listed = [{"name": task.get_name(), "at": _frames(task)} for task in tasks[:MAX_TASKS]]
    return {"count": len(tasks), "listed": listed}


def _frames(task: asyncio.Task[Any]) -> list[str]:
    """Return the places where a task waits, from the outermost to the innermost: file, line and function alone."""
    places: list[str] = []
    waits: Any = task.get_coro()
    while waits is not None and len(places) < MAX_FRAMES:
        frame = getattr(waits, "cr_frame", None) or getattr(waits, "gi_frame", None) or getattr(waits, "ag_frame", None)
        if frame is None:
            break
        code = frame.f_code
        places.append(f"{_short(code.co_filename)}:{frame.f_lineno} {code.co_name}")
        waits = getattr(waits, "cr_await", None) or getattr(waits, "gi_yieldfrom", None)
    return places


def _short(file: str) -> str:
    return "/".join(file.replace("\\", "/").split("/")[-3:])

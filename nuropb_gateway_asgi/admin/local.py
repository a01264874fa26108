"""The part of one process in the answers of the admin API."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from msgspec import Raw

from .._version import __version__
from ..authentication.key_sets import KeySet
from ..authorization.policy_file import PolicyFile
from ..connection_kind import WEBSOCKET, ConnectionKind
from ..handler_manager import Handler, expiry
from ..journal import Journal
from ..observability.logs import level_of_log, set_level_of_log
from ..observability.metrics import Metrics
from ..settings import Settings
from .questions import (
    SUBJECT,
    Circuit,
    Circuits,
    Connections,
    ListCircuits,
    ListConnections,
    Question,
    Reload,
    Report,
    Reset,
    SetLevel,
    User,
)
from .recent import RecentLines
from .report import report_of

__all__ = ["LocalAdmin", "Parts"]

logger = logging.getLogger(__name__)

#: Topics and calls that are listed of one connection; their numbers are complete.
MAX_TOPICS: Final = 50
MAX_CALLS: Final = 50
#: Bytes of the connections in the answer of one process; the mesh has a limit for messages.
MAX_ANSWER: Final = 1 << 20

_encode = msgspec.json.encode
_decode = msgspec.json.Decoder(Question).decode


@dataclass(frozen=True)
class Parts:
    """The parts of the gateway that an operator acts on. ``reload`` does what SIGHUP does."""

    settings: Settings
    kinds: Mapping[str, ConnectionKind]
    policy_file: PolicyFile | None
    key_sets: Mapping[str, KeySet]
    metrics: Metrics | None
    journal: Journal
    not_ready: Callable[[], list[str]]
    warnings: Callable[[], list[str]]
    reload: Callable[[], None]


class LocalAdmin:
    """Answers the questions of this process's admin API, and of those of the other processes."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._began = time.time()
        self.recent = RecentLines()

    @property
    def instance_id(self) -> str:
        """The instance id of the process."""
        return self._parts.settings.instance_id

    def bind(self) -> None:
        """Answer the questions of other processes. The other connection kinds of this process have nothing to add."""
        for name, kind in self._parts.kinds.items():
            answerer = self._answer_peer if name == WEBSOCKET else _answer_nothing
            kind.service_mesh_manager.fleet.bind_answerer(SUBJECT, answerer)

    def _answer_peer(self, question: Raw, reply: Callable[[bytes], None]) -> None:
        asked = _decode(question)
        if isinstance(asked, Reset | SetLevel | Reload):
            logger.info("an operator asked another process for: %s", type(asked).__name__.lower())
        reply(self.answer(question))

    def answer(self, question: bytes | Raw) -> bytes:
        """Do what ``question`` (JSON) asks, and return the answer (JSON). Raises msgspec.MsgspecError."""
        asked = _decode(question)
        if isinstance(asked, ListConnections):
            return _encode(self._connections(asked))
        if isinstance(asked, ListCircuits):
            return _encode(self._circuits())
        if isinstance(asked, Reset):
            return _encode(self._reset(asked))
        if isinstance(asked, Report):
            return _encode(report_of(self._parts, self.status(), self.recent.lines))
        if isinstance(asked, SetLevel):
            set_level_of_log(asked.level)
            logger.warning("the level of the log is %s now, by an operator", asked.level)
        elif isinstance(asked, Reload):
            status = self.status()
            self._parts.reload()
            return _encode(status)
        return _encode(self.status())

    def status(self) -> dict[str, Any]:
        """Return the state of the process in a few words and figures."""
        parts, policy = self._parts, self._parts.policy_file
        reasons = parts.not_ready()
        return {
            "instance_id": self.instance_id,
            "version": __version__,
            "seconds": round(time.time() - self._began, 1),
            "ready": not reasons,
            "reasons": reasons,
            "warnings": parts.warnings(),
            "connections": {name: len(kind.handler_manager) for name, kind in parts.kinds.items()},
            "in_flight": sum(kind.service_mesh_manager.in_flight for kind in parts.kinds.values()),
            "log_level": level_of_log(),
            "policy": None
            if policy is None
            else {
                "rules": len(policy.policy.rules),
                "problem": policy.problem,
                "reloads": policy.reloads.total(),
            },
            "keys": {issuer: key_set.size for issuer, key_set in parts.key_sets.items()},
        }

    def _connections(self, asked: ListConnections) -> Connections:
        found = [(kind, handler) for kind in self._parts.kinds.values() for handler in _handlers(kind, asked)]
        found.sort(key=lambda each: each[1].connected_at)
        listed: list[dict[str, Any]] = []
        size = 0
        for kind, handler in found[: asked.limit]:
            entry = self._connection(kind, handler)
            size += len(_encode(entry))
            if size > MAX_ANSWER:
                break
            listed.append(entry)
        return Connections(len(found), listed)

    def _connection(self, kind: ConnectionKind, handler: Handler) -> dict[str, Any]:
        identity, now = handler.identity, time.monotonic()
        assert identity is not None  # noqa: S101 - it is registered
        manager = kind.service_mesh_manager
        topics, calls = manager.events.topics_of(handler), manager.client_calls.calls_of(handler)
        return {
            "session_id": handler.session_id,
            "user_id": identity.user_id,
            "username": identity.username,
            "address": handler.address,
            "transport": kind.name,
            "instance_id": self.instance_id,
            "connected": not kind.handler_manager.is_parked(handler),
            "connected_at": int(handler.connected_at),
            "expires_at": expiry(identity),
            "queued_bytes": handler.outbox_size,
            "topic_count": len(topics),
            "topics": topics[:MAX_TOPICS],
            "in_flight": len(calls),
            "calls": [
                {
                    "service": call.message.service,
                    "method": call.message.method,
                    "trace_id": call.message.trace_id,
                    "seconds": round(now - call.message.deadline + call.message.timeout, 3),
                }
                for call in calls[:MAX_CALLS]
            ],
        }

    def _circuits(self) -> Circuits:
        circuits = [
            Circuit(service, kind.name, self.instance_id, is_open, timeouts)
            for kind in self._parts.kinds.values()
            for service, is_open, timeouts in kind.service_mesh_manager.calls.breakers.states()
        ]
        states = self._budgets.states(time.monotonic())
        budgets = [User(each, self.instance_id, errors, refusals, left) for each, errors, refusals, left in states]
        return Circuits(circuits, budgets)

    def _reset(self, asked: Reset) -> int:
        count = 0
        if asked.user_id is None:
            for kind in self._parts.kinds.values():
                count += kind.service_mesh_manager.calls.breakers.reset(asked.service)
        if asked.service is None:
            count += self._budgets.reset(asked.user_id)
        return count

    @property
    def _budgets(self) -> Any:
        # All kinds share them.
        return self._parts.kinds[WEBSOCKET].handler_manager.shared_limits.budgets


def _answer_nothing(question: Raw, reply: Callable[[bytes], None]) -> None:
    reply(b"null")


def _handlers(kind: ConnectionKind, asked: ListConnections) -> Iterable[Handler]:
    manager = kind.handler_manager
    if asked.session_id is not None:
        handler = manager.get_handler(asked.session_id)
        return [] if handler is None else [handler]
    return manager.handlers if asked.user_id is None else manager.get_user_handlers([asked.user_id])

"""The actions of an operator, each in one place: parameters, operation, result.

The operations act on all processes of the gateway. ``missing`` in a result names the processes that did not answer
within a second: they are gone, have no connection to the mesh, or have no admin API.
"""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Meta, Struct

from ..connection_kind import WEBSOCKET
from ..exceptions import CallError
from ..protocol import CloseCode
from .local import LocalAdmin, Parts
from .questions import (
    SUBJECT,
    Circuits,
    Connections,
    Level,
    ListCircuits,
    ListConnections,
    Question,
    Reload,
    Report,
    Reset,
    SetLevel,
    Status,
)

__all__ = ["ACTIONS", "PREFIX", "Action", "Api", "Bundle", "Invalid"]

#: The path of every action starts so.
PREFIX: Final = "/v1/"
#: Connections that one answer lists by default, and at most, of all processes together.
DEFAULT_LIMIT: Final = 100
MAX_LIMIT: Final = 1000
#: Seconds for a policy file to be read again, and between two looks.
RELOAD_TIMEOUT: Final = 3.0
RELOAD_INTERVAL: Final = 0.1

T = TypeVar("T")

_encode = msgspec.json.encode


class Invalid(ValueError):
    """Parameters that fit no action, or an action that is impossible now."""


class Bundle(NamedTuple):
    """A debug bundle: the bytes of a tar.gz, and a name for its file."""

    content: bytes
    name: str


# --- parameters -------------------------------------------------------------------------------------------------------

_Name = Annotated[str, Meta(min_length=1, max_length=1024)]


class Nothing(Struct, forbid_unknown_fields=True):
    """No parameters."""


class ConnectionsOf(Struct, forbid_unknown_fields=True):
    """The connections to list: all, those of a user, or one session."""

    user_id: _Name | None = None
    session_id: _Name | None = None
    limit: Annotated[int, Meta(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT


class Disconnect(Struct, forbid_unknown_fields=True):
    """The connections to close: those of users, or one session."""

    user_ids: list[_Name] | None = None
    session_id: _Name | None = None
    code: Annotated[int, Meta(ge=4000, le=4999)] = int(CloseCode.DISCONNECTED)
    reason: Annotated[str, Meta(max_length=120)] = "disconnected"


class Tokens(Struct, forbid_unknown_fields=True):
    """The tokens to accept again."""

    user_id: _Name | None = None
    session_id: _Name | None = None
    token_id: _Name | None = None
    issued_before: float | None = None


class Revocation(Tokens, forbid_unknown_fields=True):
    """The tokens to refuse, and until when; times are unix seconds."""

    until: float | None = None


class Event(Struct, forbid_unknown_fields=True):
    """An event for all subscribers of its topic, or for the users in ``target``."""

    topic: _Name
    event: Any = None
    target: list[_Name] | None = None


class ResetOf(Struct, forbid_unknown_fields=True):
    """The circuits and budgets to reset: all, those of a service, or those of a user."""

    service: _Name | None = None
    user_id: _Name | None = None


class LogLevel(Struct, forbid_unknown_fields=True):
    """The new level of the log."""

    level: Level


# --- operations -------------------------------------------------------------------------------------------------------


class Api:
    """The operations behind the actions. Each raises Invalid or CallError, and returns a JSON value or a Bundle."""

    def __init__(self, parts: Parts, local: LocalAdmin) -> None:
        self._parts = parts
        self._local = local

    async def status(self, _: Nothing) -> dict[str, Any]:
        """Return the state of each process."""
        answers, missing = await self._ask(Status(), dict[str, Any])
        return {"processes": answers, "missing": missing}

    async def connections(self, asked: ConnectionsOf) -> dict[str, Any]:
        """List connections with their subscriptions and calls in flight, the oldest first."""
        question = ListConnections(asked.limit, asked.user_id, asked.session_id)
        answers, missing = await self._ask(question, Connections)
        found = [each for answer in answers for each in answer.connections]
        found.sort(key=lambda each: int(each.get("connected_at") or 0))
        found = found[: asked.limit]
        return {"connections": found, "total": sum(answer.total for answer in answers), "missing": missing}

    async def disconnect(self, asked: Disconnect) -> dict[str, Any]:
        """Close the connections of users, or one session."""
        manager = self._manager
        if (asked.user_ids is None) == (asked.session_id is None):
            raise Invalid("expected either user_ids or session_id")
        if asked.session_id is not None:
            reached = await manager.disconnect_session(asked.session_id, asked.code, asked.reason)
        else:
            reached = await manager.disconnect_users(asked.user_ids or (), asked.code, asked.reason)
        return {"count": reached.count, "missing": reached.missing}

    async def revoke(self, asked: Revocation) -> dict[str, Any]:
        """Refuse tokens from now on, and close the connections that they opened."""
        await self._manager.revoke(**msgspec.structs.asdict(asked))
        return {"revoked": True}

    async def unrevoke(self, asked: Tokens) -> dict[str, Any]:
        """Take a revocation back."""
        await self._manager.unrevoke(**msgspec.structs.asdict(asked))
        return {"revoked": False}

    async def publish(self, asked: Event) -> dict[str, Any]:
        """Publish an event to the mesh."""
        await self._manager.publish_event(asked.topic, asked.event, target=asked.target)
        return {"published": True}

    async def circuits(self, _: Nothing) -> dict[str, Any]:
        """List the circuits of services and the error budgets of users."""
        answers, missing = await self._ask(ListCircuits(), Circuits)
        return {
            "circuits": [each for answer in answers for each in answer.circuits],
            "budgets": [each for answer in answers for each in answer.budgets],
            "missing": missing,
        }

    async def reset(self, asked: ResetOf) -> dict[str, Any]:
        """Close circuits, and forget the failed calls of users."""
        if asked.service is not None and asked.user_id is not None:
            raise Invalid("expected service or user_id, or neither of them for all")
        answers, missing = await self._ask(Reset(asked.service, asked.user_id), int)
        return {"count": sum(answers), "missing": missing}

    async def reload(self, _: Nothing) -> dict[str, Any]:
        """Read the policy again, fetch the keys and open the audit log again, in all processes; wait for the policy."""
        before, missing = await self._ask(Reload(), dict[str, Any])
        reloads = {each["instance_id"]: each["policy"]["reloads"] for each in before if each.get("policy")}
        end = time.monotonic() + RELOAD_TIMEOUT
        while True:
            answers, silent = await self._ask(Status(), dict[str, Any])
            policies = {each["instance_id"]: each["policy"] for each in answers if each.get("policy")}
            waiting = [each for each, count in reloads.items() if policies.get(each, {}).get("reloads", 0) <= count]
            if not waiting or time.monotonic() > end:
                break
            await asyncio.sleep(RELOAD_INTERVAL)
        processes = [{name: each.get(name) for name in ("instance_id", "policy", "keys")} for each in answers]
        return {"processes": processes, "missing": sorted({*missing, *silent, *waiting})}

    async def log_level(self, _: Nothing) -> dict[str, Any]:
        """Return the level of each process's log."""
        answers, missing = await self._ask(Status(), dict[str, Any])
        return {"levels": {each["instance_id"]: each["log_level"] for each in answers}, "missing": missing}

    async def set_log_level(self, asked: LogLevel) -> dict[str, Any]:
        """Set the level of the log in all processes, until they end."""
        answers, missing = await self._ask(SetLevel(asked.level), dict[str, Any])
        return {"levels": {each["instance_id"]: each["log_level"] for each in answers}, "missing": missing}

    async def debug_bundle(self, _: Nothing) -> Bundle:
        """Collect the reports of all processes, and the metrics, in a tar.gz without secrets."""
        answers, missing = await self._ask(Report(), dict[str, Any])
        files = {f"processes/{_file_name(each)}.json": _indented(each) for each in answers}
        files["circuits.json"] = _indented(msgspec.to_builtins(await self.circuits(Nothing())))
        files["missing.json"] = _indented(missing)
        if (metrics := self._parts.metrics) is not None:
            metrics.collect()
            files["metrics.txt"] = metrics.render()[0]
        made = time.gmtime()
        folder = f"nuropb-gateway-{time.strftime('%Y%m%dT%H%M%SZ', made)}"
        return Bundle(await asyncio.to_thread(_packed, folder, files), f"{folder}.tar.gz")

    @property
    def _manager(self) -> Any:
        return self._parts.kinds[WEBSOCKET].service_mesh_manager

    async def _ask(self, question: Question, type_: type[T]) -> tuple[list[T], list[str]]:
        """Ask this process and all others; return their answers, this one's first, and the silent processes."""
        decoder = msgspec.json.Decoder(type_)
        nothing = msgspec.json.Decoder(type_ | None)
        asked = _encode(question)
        own = decoder.decode(self._local.answer(asked))
        answers, missing = await self._manager.fleet.ask(asked, nothing.decode, subject=SUBJECT)
        # The other connection kinds of a process answer with null.
        return [own, *(each for each in answers if each is not None)], missing


def _file_name(report: dict[str, Any]) -> str:
    name = str(report.get("status", {}).get("instance_id", ""))
    return "".join(each if each.isalnum() or each in "-_" else "_" for each in name)[:100] or "unnamed"


def _indented(value: Any) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True).encode()


def _packed(folder: str, files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size, entry.mtime, entry.mode = len(content), int(time.time()), 0o600
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


# --- the table --------------------------------------------------------------------------------------------------------


class Action(NamedTuple):
    """An action: its name, its HTTP method and path, the type of its parameters, and its operation."""

    name: str
    method: Literal["GET", "POST"]
    path: str
    parameters: type[Struct]
    operation: Callable[[Api, Any], Awaitable[Any]]
    #: How it is noted in the audit log: each time, as it changes something or takes data away; as a read of data of
    #: users, which is noted once in a while; or not at all.
    audited: Literal["each time", "as a read", "never"] = "each time"


ACTIONS: Final = (
    Action("status", "GET", "status", Nothing, Api.status, "never"),
    Action("connections", "GET", "connections", ConnectionsOf, Api.connections, "as a read"),
    Action("disconnect", "POST", "disconnect", Disconnect, Api.disconnect),
    Action("revoke", "POST", "revoke", Revocation, Api.revoke),
    Action("unrevoke", "POST", "unrevoke", Tokens, Api.unrevoke),
    Action("publish", "POST", "publish", Event, Api.publish),
    Action("circuits", "GET", "circuits", Nothing, Api.circuits, "as a read"),
    Action("reset", "POST", "reset", ResetOf, Api.reset),
    Action("reload", "POST", "reload", Nothing, Api.reload),
    Action("log-level", "GET", "log-level", Nothing, Api.log_level, "never"),
    Action("set-log-level", "POST", "log-level", LogLevel, Api.set_log_level),
    Action("debug-bundle", "GET", "debug-bundle", Nothing, Api.debug_bundle),
)

#: Errors of operations that are the operator's: an invalid argument, or a mesh that is away.
OPERATION_ERRORS: Final = (ValueError, TypeError, CallError)

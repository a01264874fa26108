"""Faults on demand for an embedded mesh: of calls while they are switched on, and of connections and events at once.

Each fault has a seed of its own, from which it draws the calls and connections that it meets: the same seed and the
same calls give the same run.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, Literal, Protocol

import anyio
import msgspec

from ..authentication import Identity
from ..connection_kind import ConnectionKind
from ..exceptions import SettingsError
from ..mesh.embedded import EmbeddedMesh
from ..mesh.embedded_host import Interceptor
from ..protocol import CloseCode
from ..topics import check_topic
from ..wire.interface import CallMessage
from ..wire.services import Outcome

__all__ = ["FAULTS", "ConnectionFaults", "Fault", "Faults", "connection_faults"]

#: Events of a burst, and seconds of a fault, at most.
MAX_COUNT: Final = 100_000
MAX_SECONDS: Final = 3600.0
#: From the goodbye of a drain to the end of the connections.
RESTART_SECONDS: Final = 2.0
#: The look-up before a first call: a fault of calls leaves it alone, or no call would ever meet the fault.
_LOOK_UP: Final = "nuropb_describe"


class Fault(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A fault: its name, its text for people, and its values. Faults that are ``at_once`` are never on."""

    name: str
    text: str = ""
    at_once: bool = False
    on: bool = False
    #: Of the calls or connections, from 0 to 1.
    share: float = 1.0
    seconds: float = 2.0
    #: Of calls of this service; empty for all.
    service: str = ""
    topic: str = ""
    count: int = 100
    seed: int = 0
    #: The members above that this fault uses.
    uses: tuple[str, ...] = ()
    #: How often it has met something since it was switched on.
    met: int = 0


FAULTS: Final = (
    Fault(name="slow", text="Replies are late", uses=("share", "seconds", "service", "seed")),
    Fault(name="lost", text="Replies are lost: calls time out", uses=("share", "service", "seed")),
    Fault(name="doubled", text="Replies come twice", uses=("share", "service", "seed")),
    Fault(name="away", text="Services are away", uses=("share", "service", "seed")),
    Fault(name="broker_away", text="The broker is away for some seconds", uses=("seconds",), at_once=True),
    Fault(
        name="slow_consumer", text="Connections end as those of slow consumers", uses=("share", "seed"), at_once=True
    ),
    Fault(name="token_expired", text="Tokens of connections expire now", uses=("share", "seed"), at_once=True),
    Fault(name="drain", text="The gateway says goodbye, as before a restart", uses=(), at_once=True),
    Fault(name="cut", text="Connections are cut", uses=("share", "seed"), at_once=True),
    Fault(name="burst", text="Many events of a topic", uses=("topic", "count"), at_once=True),
    Fault(name="gap", text="Clients are told that events were lost", uses=(), at_once=True),
)


class Restartable(Protocol):
    """The parts of a gateway that faults of connections need."""

    connection_kinds: dict[str, ConnectionKind]

    def restart_connections(self, seconds: float) -> None:
        """Say goodbye to all clients, close their connections after ``seconds``, and admit clients again."""


class ConnectionFaults:
    """The faults of connections: of those that the function ``handlers`` returns, as far as they can be cut.

    ``say_goodbye`` tells all clients to come back later, and closes their connections.
    """

    def __init__(self, handlers: Callable[[], Iterable[Any]], say_goodbye: Callable[[], object]) -> None:
        self._handlers = handlers
        self._say_goodbye = say_goodbye

    def meet(self, name: str, chosen: Callable[[], bool]) -> int:
        """Let the fault ``name`` meet the ``chosen`` connections; return their number."""
        if name == "drain":
            self._say_goodbye()
        # In the order of their users, so that a seed chooses the same ones in each run.
        handlers = sorted(self._handlers(), key=_order)
        met = [each for each in handlers if name == "drain" or chosen()]
        for each in met:
            _meet(name, each)
        return len(met)


def connection_faults(gateway: Restartable) -> ConnectionFaults:
    """Return the faults of the connections of a gateway."""

    def handlers() -> Iterable[Any]:
        for kind in gateway.connection_kinds.values():
            yield from (each for each in kind.handler_manager.handlers if hasattr(each, "cut"))

    return ConnectionFaults(handlers, lambda: gateway.restart_connections(RESTART_SECONDS))


def _order(handler: Any) -> tuple[str, float]:
    identity: Identity | None = handler.identity
    return ("" if identity is None else identity.user_id, handler.connected_at)


def _meet(name: str, handler: Any) -> None:
    if name == "cut":
        handler.cut()
    elif name == "slow_consumer":
        handler.close(CloseCode.SLOW_CONSUMER, "slow consumer")
    elif name == "token_expired" and handler.identity is not None:
        # The gateway's own sweep finds the connection within a second.
        handler.identity = msgspec.structs.replace(handler.identity, expires_at=time.time() - handler.identity.leeway)


class Faults:
    """The faults of one embedded mesh; an interceptor, which passes calls on to another one, if there is one."""

    def __init__(self, then: Interceptor | None = None) -> None:
        self._then = then
        self.mesh: EmbeddedMesh | None = None
        self.connections: ConnectionFaults | None = None
        self._faults = {each.name: msgspec.structs.replace(each) for each in FAULTS}
        self._draws = {name: random.Random(0) for name in self._faults}  # noqa: S311 - a seed repeats a run
        self._restore: asyncio.TimerHandle | None = None

    @property
    def all(self) -> list[Fault]:
        """All faults, with their present values."""
        return list(self._faults.values())

    def set(self, name: str, *, on: bool = True, **values: Any) -> Fault:
        """Switch a fault on or off, or let one that is at once happen. ``values`` are members of :class:`Fault`.

        Raises SettingsError for an unknown name and for values that the fault cannot have.
        """
        if name not in self._faults:
            raise SettingsError(f"no such fault; expected one of {', '.join(self._faults)}")
        changed = _checked(self._faults[name], values)
        changed.on = on and not changed.at_once
        changed.met = 0
        self._draws[name] = random.Random(changed.seed)  # noqa: S311 - a seed repeats a run
        self._faults[name] = changed
        if changed.at_once and on:
            changed.met = self._happen(changed)
        return changed

    def _happen(self, fault: Fault) -> int:
        mesh, connections = self.mesh, self.connections
        if mesh is None or connections is None:
            raise RuntimeError("the faults have no mesh, or no connections")
        if fault.name == "broker_away":
            mesh.host.switch(on=False)
            if self._restore is not None:
                self._restore.cancel()
            self._restore = asyncio.get_running_loop().call_later(fault.seconds, lambda: mesh.host.switch(on=True))
            return 1
        if fault.name == "burst":
            for number in range(1, fault.count + 1):
                mesh.emit(fault.topic, {"burst": number})
            return fault.count
        if fault.name == "gap":
            for receiver in mesh.host.receivers:
                receiver.on_gap("overflow")
            return len(mesh.host.receivers)
        return connections.meet(fault.name, lambda: self._draws[fault.name].random() < fault.share)

    def _meets(self, name: Literal["slow", "lost", "doubled", "away"], message: CallMessage) -> bool:
        fault = self._faults[name]
        if not fault.on or message.method == _LOOK_UP or fault.service not in ("", message.service):
            return False
        if self._draws[name].random() >= fault.share:
            return False
        fault.met += 1
        return True

    # --- interceptor ------------------------------------------------------------------------------------------

    def admits(self, message: CallMessage, *, is_known: bool) -> bool:
        """Return whether the service is there."""
        if is_known and self._meets("away", message):
            return False
        return self._then is None or self._then.admits(message, is_known=is_known)

    async def answer(self, message: CallMessage, call: Callable[[], Awaitable[Outcome]]) -> tuple[Outcome, int]:
        """Answer by the service, late, never or twice."""
        # Drawn before the call, so that its time does not change the order of the draws.
        slow, lost, doubled = (
            self._meets("slow", message),
            self._meets("lost", message),
            self._meets("doubled", message),
        )
        outcome, replies = (await call(), 1) if self._then is None else await self._then.answer(message, call)
        if slow:
            await anyio.sleep(self._faults["slow"].seconds)
        return outcome, 0 if lost else replies + doubled


def _checked(fault: Fault, values: dict[str, Any]) -> Fault:
    """Return the fault with other values. Raises SettingsError."""
    for name in values:
        if name not in fault.uses:
            uses = ", ".join(fault.uses) or "no value"
            raise SettingsError(f"a value that the fault {fault.name} does not have; expected {uses}")
    try:
        changed = msgspec.convert({**msgspec.structs.asdict(fault), **values}, Fault)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{fault.name}: {error}") from None
    if not 0 <= changed.share <= 1:
        raise SettingsError("share: out of range; expected 0 to 1")
    if not 0 <= changed.seconds <= MAX_SECONDS:
        raise SettingsError(f"seconds: out of range; expected 0 to {MAX_SECONDS:g}")
    if not 1 <= changed.count <= MAX_COUNT:
        raise SettingsError(f"count: out of range; expected 1 to {MAX_COUNT}")
    if "topic" in fault.uses and (reason := check_topic(changed.topic)) is not None:
        raise SettingsError(f"topic: {reason}")
    return changed

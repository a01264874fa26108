"""The services of an embedded mesh, which can be added, replaced, disturbed and cut off while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, Protocol

from ..tasks import TaskOwner
from ..topics import TopicTree
from ..wire.interface import CallMessage, MeshReceiver
from ..wire.services import Outcome, PublishEvent, Runnable
from .embedded_history import KeptEvents

__all__ = ["EmbeddedHost", "Interceptor", "Running"]


class Interceptor(Protocol):
    """The part between an embedded mesh and its services. Its methods run on the event loop of the mesh."""

    def admits(self, message: CallMessage, *, is_known: bool) -> bool:
        """Return whether the call reaches its service; if not, it is returned as if there were no such service.

        ``is_known`` says whether there is a service of this name; if there is none, the answer has no effect.
        """
        ...

    async def answer(self, message: CallMessage, call: Callable[[], Awaitable[Outcome]]) -> tuple[Outcome, int]:
        """Return the outcome of a call, mostly that of ``call()``, and the number of replies: 0 if it is lost."""
        ...


class Running(NamedTuple):
    """A mesh that runs: the receiver of its events, and the topics that it subscribes to."""

    receiver: MeshReceiver
    subscriptions: TopicTree[str]


class EmbeddedHost:
    """The services of the embedded meshes of all transports, and the state that these meshes share."""

    def __init__(self, services: dict[str, object], own_name: str, interceptor: Interceptor | None) -> None:
        #: All services by name, with the gateway's own controller under ``own_name``.
        self.all = services
        self.own_name = own_name
        #: The part between the meshes and the services, for tests and for faults on demand.
        self.interceptor = interceptor
        #: The running meshes of all transports, by their addresses.
        self.running: dict[str, Running] = {}
        #: The kept events, by pattern.
        self.kept: dict[str, KeptEvents] = {}
        #: Whether the mesh was switched off.
        self.away = False
        self._owner: TaskOwner | None = None
        self._publish: PublishEvent | None = None
        #: The tasks of services that have one, by the services' names.
        self._tasks: dict[str, asyncio.Task[Any]] = {}

    @property
    def services(self) -> dict[str, object]:
        """The services by name, without the gateway's own."""
        return {name: each for name, each in self.all.items() if name != self.own_name}

    @property
    def receivers(self) -> list[MeshReceiver]:
        """The receivers of all transports that run."""
        return [each.receiver for each in self.running.values()]

    def add(self, name: str, service: object) -> None:
        """Add a service, also while the mesh runs, or put it in the place of the one with this name."""
        self.remove(name)
        self.all[name] = service
        self._run(name)

    def remove(self, name: str) -> None:
        """Remove a service, if there is one with this name. Its calls that run are finished."""
        if name == self.own_name:
            raise ValueError("the name is that of the gateway itself; expected another one")
        self.all.pop(name, None)
        if (task := self._tasks.pop(name, None)) is not None:
            task.cancel()

    def switch(self, *, on: bool) -> None:
        """Make the mesh unreachable, as by an outage of a broker, or reachable again. Replies on their way are lost."""
        if on is not self.away:
            return
        self.away = not on
        for receiver in self.receivers:
            receiver.on_connection_change(connected=on)
            if not on:
                receiver.on_replies_lost()

    def start(self, owner: TaskOwner, publish: PublishEvent) -> None:
        """Run the services that have tasks of their own, which belong to ``owner``."""
        self._owner, self._publish = owner, publish
        for name in tuple(self.all):
            self._run(name)

    def stop(self) -> None:
        """Start no more tasks. The owner ends those that run."""
        self._owner = None

    def _run(self, name: str) -> None:
        if self._owner is not None and isinstance(service := self.all[name], Runnable):
            self._owner.start_soon(self._run_service, name, service, name=f"embedded {name}")

    async def _run_service(self, name: str, service: Runnable) -> None:
        task, publish = asyncio.current_task(), self._publish
        if task is None or publish is None or self.all.get(name) is not service:  # removed before its task began
            return
        self._tasks[name] = task
        try:
            await service._run_(publish)
        finally:
            if self._tasks.get(name) is task:
                del self._tasks[name]

"""Clients with sessions that call and listen all the time, and keep an account of what happened to them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

import anyio
from websockets.exceptions import WebSocketException

from nuropb_gateway_asgi.client import (
    Client,
    ConnectionLost,
    Gap,
    GatewayError,
    GatewayEvent,
    Recovered,
    State,
    connect,
)

from .clients import connect as connect_frames
from .processes import token_of

__all__ = ["SoakClient", "Soakers", "Visitor"]

#: Seconds for which a client's token is valid: longer than any soak.
LIFETIME: Final = 86400.0
#: One of so many clients subscribes to a topic with history as well. Every other one of these has no session and makes
#: no calls: it depends on the history whenever its connection is cut.
WITH_HISTORY: Final = 4


class Serials:
    """An account of numbered events, each of which has to come once, in order."""

    def __init__(self) -> None:
        self._last: int | None = None
        self.delivered = 0
        #: Events that came twice or too late, and events that are missing between two others.
        self.doubled = 0
        self.lost = 0
        #: The numbers around missing events, and the unix time at which this was found.
        self.holes: list[tuple[int, int, float]] = []

    def take(self, event: GatewayEvent) -> None:
        """Take an event."""
        number = event.event
        self.delivered += 1
        if self._last is not None:
            self.doubled += number <= self._last
            self.lost += max(number - self._last - 1, 0)
            if number > self._last + 1:
                self.holes.append((self._last, number, time.time()))
        self._last = number

    def restart(self) -> None:
        """Take note that the client was told that events may be missing."""
        self._last = None


class SoakClient:
    """A client that calls and listens until its time is over."""

    def __init__(self, number: int, soakers: Soakers) -> None:
        self.name = f"user-{number}"
        #: Outcomes of calls: "ok", "mixed up" (another call's answer), "lost", or a class of error.
        self.outcomes: Counter[str] = Counter()
        #: Openings of connections after the first one: "resumed", or the reason for which the session was lost.
        self.openings: Counter[str] = Counter()
        #: Calls that were answered.
        self.answered: list[str] = []
        #: The client's warnings: answers to calls that it does not know, or has answered already.
        self.warnings: list[GatewayError] = []
        self.events = Serials()
        #: The events of the topic with history, and the subscriptions to it that went on in the past, by ``recovered``.
        self.kept = Serials()
        self.recovered: Counter[bool] = Counter()
        self._has_history = number % WITH_HISTORY == 0
        self._has_session = number % (2 * WITH_HISTORY) != 0
        #: Times when a session was lost and the subscription was not told.
        self.untold = 0
        self._expects_gap = False
        self._soakers = soakers
        self._calls = 0

    async def run(self, ends: asyncio.Event) -> None:
        """Connect, call and listen until ``ends`` is set; then let calls in flight end."""
        soakers = self._soakers
        async with connect(
            soakers.url,
            token=token_of(self.name, lifetime=LIFETIME),
            proxy=None,
            open_timeout=60,
            resume=self._has_session,
        ) as client:
            client.on("state", self._on_state)
            client.on("warning", self.warnings.append)
            client.on("gap", self._on_gap)
            if self._has_history:
                # The first subscription begins with the next event, later ones behind the last event that came.
                kept = client.subscribe("kept.#", self.kept.take)
                kept.on("recovered", self._on_recovered)
                kept.on("gap", lambda gap: self.kept.restart())
            async with client.subscribe("news.#", self.events.take), anyio.create_task_group() as calls:
                while not ends.is_set():
                    await soakers.active.wait()
                    if self._has_session:
                        calls.start_soon(self._call, client)
                    await asyncio.sleep(soakers.interval * random.uniform(0.5, 1.5))

    async def _call(self, client: Client) -> None:
        self._calls += 1
        self._soakers.busy += 1
        id_ = f"{self.name}.{self._calls}"
        try:
            answer = await client.request(self._soakers.service, "echo", {"id": id_}, timeout=30)
        except ConnectionLost:
            self.outcomes["lost"] += 1
        except GatewayError as error:
            self.outcomes[type(error).__name__] += 1
        else:
            self.outcomes["ok" if answer == id_ else "mixed up"] += 1
            self.answered.append(id_)
        finally:
            self._soakers.busy -= 1

    def _on_state(self, state: State) -> None:
        if state.name != "open":
            return
        if not self._has_session:
            self.openings["without a session"] += 1
            self.events.restart()
            return
        if state.resumed:
            self.openings["resumed"] += 1
            return
        # The first opening has no session before it, nor has one after a connection that broke at its very beginning.
        self.openings["new" if state.resumed is None else state.reason or "no reason"] += 1
        self.untold += self._expects_gap
        self._expects_gap = True

    def _on_gap(self, gap: Gap) -> None:
        if "news.#" in gap.topics:
            self.events.restart()
            self._expects_gap = False

    def _on_recovered(self, found: Recovered) -> None:
        self.recovered[found.recovered] += 1
        if not found.recovered:
            self.kept.restart()


class Visitor:
    """A client that comes and goes all the time, with a few calls and subscriptions on each visit.

    If it ``lingers``, it has a session, and breaks every other connection without a goodbye: the gateway then keeps the
    session until its time is over.
    """

    def __init__(self, number: int, soakers: Soakers, *, lingers: bool) -> None:
        self._soakers = soakers
        self._lingers = lingers
        self._topic = f"visits.{number}"
        self._numbers = itertools.count()
        # One token for all visits: the gateway remembers tokens that it has checked, thousands of them.
        self._token = token_of(f"visitor-{number}", lifetime=LIFETIME)

    async def run(self) -> None:
        """Come and go until cancelled."""
        soakers = self._soakers
        while True:
            await soakers.active.wait()
            soakers.busy += 1
            try:
                # The balancer cuts visitors as well, and a process that drains turns them away.
                with contextlib.suppress(OSError, EOFError, WebSocketException):
                    await self._visit()
            finally:
                soakers.busy -= 1
            await asyncio.sleep(random.uniform(0, 2))

    async def _visit(self) -> None:
        soakers = self._soakers
        async with connect_frames(soakers.url, self._token) as client:
            if self._lingers:
                await client.ask("resume")
            await client.ask("subscribe", topics=["news.#", self._topic])
            await client.call(f"{soakers.service}.echo", {"id": f"{self._topic}.{next(self._numbers)}"})
            soakers.visits += 1
            if self._lingers and soakers.visits % 2:
                client.abort()


class Soakers:
    """All clients, and what happened to them together."""

    def __init__(self, url: str, service: str, count: int, interval: float) -> None:
        self.url = url
        self.service = service
        #: Seconds between two calls of a client.
        self.interval = interval
        #: Set unless all clients pause.
        self.active = asyncio.Event()
        self.active.set()
        #: Calls and visits that have not ended.
        self.busy = 0
        #: Visits that have ended.
        self.visits = 0
        self.clients = [SoakClient(number, self) for number in range(count)]

    async def pause(self) -> None:
        """Have all clients pause, and wait until their calls and visits have ended, which have deadlines."""
        self.active.clear()
        while self.busy:
            await asyncio.sleep(0.05)

    def total(self, what: Callable[[SoakClient], int]) -> int:
        """Return the sum of a number of all clients."""
        return sum(map(what, self.clients))

    def account(self, executions: Counter[str]) -> dict[str, int]:
        """Return the counts, by their names; ``executions`` has the executions of each call."""
        outcomes = sum((each.outcomes for each in self.clients), Counter[str]())
        openings = sum((each.openings for each in self.clients), Counter[str]())
        answered = {id_ for each in self.clients for id_ in each.answered}
        return {
            "visits": self.visits,
            "calls answered": outcomes.pop("ok", 0),
            **{f"calls: {outcome}": count for outcome, count in sorted(outcomes.items())},
            "calls answered twice": self.total(lambda each: len(each.warnings)),
            "calls executed twice": sum(count > 1 for count in executions.values()),
            "calls answered and not executed": sum(id_ not in executions for id_ in answered),
            "events delivered": self.total(lambda each: each.events.delivered),
            "events lost": self.total(lambda each: each.events.lost),
            "events doubled or out of order": self.total(lambda each: each.events.doubled),
            "events with history delivered": self.total(lambda each: each.kept.delivered),
            "events with history lost": self.total(lambda each: each.kept.lost),
            "events with history doubled or out of order": self.total(lambda each: each.kept.doubled),
            "subscriptions recovered": self.total(lambda each: each.recovered[True]),
            "subscriptions not recovered": self.total(lambda each: each.recovered[False]),
            "connections without a session": openings.pop("without a session", 0),
            "sessions begun": openings.pop("new", 0),
            "sessions resumed": openings.pop("resumed", 0),
            **{f"sessions not resumed: {reason}": count for reason, count in sorted(openings.items())},
            "sessions lost without a gap told": self.total(lambda each: each.untold),
        }

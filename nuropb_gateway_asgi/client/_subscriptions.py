"""The subscriptions of a client, put in force again on every connection."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from ._backoff import Backoff
from ._call import Call, Kind
from ._events import Dropped, Gap, GatewayEvent, Recovered, UnsubscribedNotice, read_position
from ._subscription import Subscription
from .errors import BadRequest, CallFailed, ConnectionClosed, ConnectionLost, GatewayError, Unsubscribed, obeyed

__all__ = ["Subscriptions"]

#: Attempts to go on in the past after which a subscription goes on without it.
PAST_ATTEMPTS: Final = 5


class Host(Protocol):
    """The parts of a connection that its subscriptions use."""

    backoff: Backoff

    def ask(self, kind: Kind, topics: Sequence[str], since: Mapping[str, object] | None = None) -> Call:
        """Send a frame about ``topics`` to the gateway; ``since`` has those that begin in the past."""

    def tell(self, name: str, value: object) -> None:
        """Call the client's listeners of ``name``."""


class Subscriptions:
    """All subscriptions of a client. The gateway sends an event once, and each matching subscription gets it."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._all: dict[Subscription, None] = {}
        self._timers: set[asyncio.TimerHandle] = set()
        #: A new object for each connection, so that late answers are recognised; None while disconnected.
        self._link: object | None = None

    def add(self, subscription: Subscription) -> None:
        """Subscribe on this connection and on all later ones."""
        self._all[subscription] = None
        if self._link is not None:
            self._enforce([subscription])

    def end(self, subscription: Subscription, error: GatewayError | None = None) -> None:
        """End ``subscription`` and unsubscribe its topics; ``error`` is None if the application asked for that."""
        if subscription not in self._all:
            return
        self._remove(subscription, error)
        others = _patterns(self._all)
        topics = [topic for topic in subscription.topics if topic not in others]
        if self._link is not None and topics:
            self._unsubscribe(topics)

    def _unsubscribe(self, topics: Sequence[str]) -> None:
        self._host.ask("unsubscribe", topics).future.add_done_callback(self._on_unsubscribed)

    def _remove(self, subscription: Subscription, error: GatewayError | None) -> None:
        del self._all[subscription]
        if not subscription.end(error) and error is not None:
            self._host.tell("warning", error)

    def connected(self) -> None:
        """Subscribe all topics on a new connection."""
        self._link = object()
        self._enforce(list(self._all))

    def resumed(self, topics: Collection[str]) -> None:
        """Continue in a session in which ``topics`` are in force. Subscribe what is missing, unsubscribe the rest."""
        self._link = object()
        missing = []
        for each in self._all:
            if topics and set(each.topics) <= set(topics):
                each.enter_force()
            else:
                missing.append(each)
        self._enforce(missing)
        wanted = _patterns(self._all)
        unwanted = [topic for topic in topics if topic not in wanted]
        if unwanted:
            self._unsubscribe(unwanted)

    @property
    def topics(self) -> list[str]:
        """The patterns that are in force."""
        return _patterns(each for each in self._all if each.in_force)

    def disconnected(self) -> None:
        """Note the end of the connection: stop pending attempts to subscribe."""
        self._link = None
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def close(self, error: ConnectionClosed | None) -> None:
        """End all subscriptions; ``error`` is None if the application closed the client."""
        self.disconnected()
        subscriptions, self._all = self._all, {}
        for subscription in subscriptions:
            subscription.end(error)

    def dispatch(self, event: GatewayEvent) -> None:
        """Deliver an event to every subscription that matches its topic."""
        for subscription in tuple(self._all):
            if subscription.wants(event.topic):
                subscription.deliver(event)

    def notice(self, topic: str, event: object) -> bool:
        """Handle the gateway's notices about subscriptions. Returns False for all other topics."""
        if topic not in ("gap", "dropped", "unsubscribed"):
            return False
        payload = event if isinstance(event, dict) else {}
        given = payload.get("topics")
        topics = [str(each) for each in given] if isinstance(given, list) else None
        concerned = [each for each in self._all if topics is None or not set(topics).isdisjoint(each.topics)]
        reason = str(payload.get("reason", ""))
        if topic == "gap":
            self._gap(Gap(reason, _patterns(self._all) if topics is None else topics), concerned)
        elif topic == "dropped":
            self._dropped(payload.get("count"), payload.get("topic"), concerned)
        elif topics is not None:
            self._host.tell("unsubscribed", UnsubscribedNotice(topics, reason))
            for each in concerned:
                self.end(each, Unsubscribed(each.topics, reason))
        return True

    def _gap(self, gap: Gap, concerned: Iterable[Subscription]) -> None:
        self._host.tell("gap", gap)
        for each in concerned:
            each.tell("gap", gap)

    def _dropped(self, count: object, topic: object, concerned: Iterable[Subscription]) -> None:
        about = topic if isinstance(topic, str) else None
        dropped = Dropped(count if isinstance(count, int) else 1, about)
        self._host.tell("dropped", dropped)
        for each in concerned:
            if about is None or each.wants(about) or about in each.topics:
                each.tell("dropped", dropped)

    # --- requests to the gateway ------------------------------------------------------------------------------

    def _enforce(self, subscriptions: Sequence[Subscription], attempt: int = 0) -> None:
        """Subscribe in one frame. After a refusal, each subscription gets a frame of its own."""
        wanted = [each for each in subscriptions if each in self._all]
        if not wanted:
            return
        link = self._link
        since = _starts(wanted)

        def on_answer(future: asyncio.Future[Any]) -> None:
            error = future.exception()
            for each in wanted:
                each.awaited = None
            wanted[:] = [each for each in wanted if each in self._all]  # without those that have ended meanwhile
            if self._link is not link or isinstance(error, ConnectionLost) or not wanted:
                return  # the next connection subscribes again
            if error is None:
                self._in_force(wanted, _history_of(future.result()))
            elif isinstance(error, CallFailed) and self._give_up_past(wanted, error, attempt):
                self._enforce(wanted)
            elif isinstance(error, CallFailed) and error.retryable:
                self._later(max(obeyed(error.retry_after), self._host.backoff.delay(attempt)), wanted, attempt + 1)
            elif len(wanted) > 1:
                # The gateway refuses a frame as a whole, for one topic. The other subscriptions must not suffer for it.
                for each in wanted:
                    self._enforce([each])
            else:
                assert isinstance(error, GatewayError)  # noqa: S101 - calls end with no other error
                self._remove(wanted[0], error)

        future = self._host.ask("subscribe", _patterns(wanted), since).future
        for each in wanted:
            each.awaited = future if since.keys() & set(each.topics) else None
        future.add_done_callback(on_answer)

    def _give_up_past(self, subscriptions: Iterable[Subscription], error: CallFailed, attempt: int) -> bool:
        """Forget the positions of subscriptions if the gateway has no history any more. Returns whether there were any.

        A start that the application asked for is not given up.
        """
        if not isinstance(error, BadRequest) and attempt < PAST_ATTEMPTS:
            return False
        had = [each for each in subscriptions if each.in_force and each.positions]
        for each in had:
            each.positions.clear()
            each.since = None
        return bool(had)

    def _in_force(self, subscriptions: Iterable[Subscription], history: Mapping[str, Mapping[str, Any]]) -> None:
        again = []
        for each in subscriptions:
            found = {topic: history[topic] for topic in each.topics if topic in history}
            recovered = all(part["recovered"] for part in found.values())
            was_in_force = each.enter_force()
            for topic, part in found.items():
                position = read_position(part)
                if position is not None and not part["count"]:  # else the position is that of the events to come
                    each.note_answer(topic, position)
            if found:
                notice = Recovered(list(found), recovered, sum(part["count"] for part in found.values()))
                each.tell("recovered", notice)
            if was_in_force and not (recovered and len(found) == len(each.topics)):
                again.append(each)
        if again:
            self._gap(Gap("reconnected", _patterns(again)), again)

    def _later(self, delay: float, subscriptions: Sequence[Subscription], attempt: int) -> None:
        def enforce() -> None:
            self._timers.discard(timer)
            self._enforce(subscriptions, attempt)

        timer = self._loop.call_later(delay, enforce)
        self._timers.add(timer)

    def _on_unsubscribed(self, future: asyncio.Future[Any]) -> None:
        error = future.exception()
        if error is not None and not isinstance(error, ConnectionLost | ConnectionClosed):
            self._host.tell("warning", error)


def _patterns(subscriptions: Iterable[Subscription]) -> list[str]:
    return list(dict.fromkeys(pattern for each in subscriptions for pattern in each.topics))


def _starts(subscriptions: Iterable[Subscription]) -> dict[str, Mapping[str, object]]:
    """Return the places in the past at which topics begin."""
    starts: dict[str, Mapping[str, object]] = {}
    for each in subscriptions:
        for topic in each.topics:
            start = each.start_of(topic)
            if start is not None and _is_earlier(start, starts.get(topic)):
                starts[topic] = start
    return starts


def _is_earlier(start: Mapping[str, object], other: Mapping[str, object] | None) -> bool:
    if other is None:
        return True
    one, two = start.get("offset"), other.get("offset")
    # What an application asks for counts before the position of another subscription.
    return two is not None and (one is None or (isinstance(one, int) and isinstance(two, int) and one < two))


def _history_of(result: object) -> dict[str, Mapping[str, Any]]:
    """Return the sound parts of the member ``history`` of an answer."""
    given = result.get("history") if isinstance(result, dict) else None
    found: dict[str, Mapping[str, Any]] = {}
    for topic, part in given.items() if isinstance(given, dict) else ():
        if isinstance(part, dict):
            count = part.get("count")
            found[topic] = {
                **part,
                "recovered": part.get("recovered") is True,
                "count": count if isinstance(count, int) else 0,
            }
    return found

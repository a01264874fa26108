"""Events of the mesh, and whom they are for."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable
from typing import Any, Final

import msgspec

from ..authentication import Identity
from ..authorization import Policy
from ..authorization.rules import Delivery
from ..controller import ServiceMeshManagerController
from ..exceptions import SettingsError
from ..handler_manager import Handler, HandlerManager
from ..protocol import (
    MAX_SUBSCRIPTIONS,
    ErrorCode,
    Failure,
    Subscribe,
    Unsubscribe,
    encode_event,
    encode_failure,
    encode_json,
    encode_response,
    encode_topics,
)
from ..settings import ENV_PREFIX, Settings
from ..topics import TopicTree, check_pattern
from ..wire.interface import EventMessage, Mesh
from ..wire.services import deliver_event
from .interest import Interest

__all__ = ["EventRouter", "EventStatistics"]

logger = logging.getLogger(__name__)

#: Events that wait for the controller; more are dropped and counted.
MAX_CONTROLLER_EVENTS: Final = 1000
#: Seconds that the first connection of a process waits for the binding by which targeted events come.
BINDING_TIMEOUT: Final = 1.0


class EventStatistics(msgspec.Struct):
    """Counters since the start."""

    events: int = 0
    oversized_events: int = 0
    dropped_controller_events: int = 0
    #: Ended because the policy, or a newer token, allows them no longer.
    denied_subscriptions: int = 0


class EventRouter:
    """Brings each event to the connections that it is for, and has the mesh send no others than are wanted here.

    An event with a target is for the connections of these users, whatever they subscribed to. The broker cannot tell
    such events from others, so a process that has connections asks for all topics that they may have (the setting
    ``TARGETED_TOPICS``), and one without connections for none.
    """

    def __init__(
        self,
        settings: Settings,
        handler_manager: HandlerManager,
        mesh: Mesh,
        policy: Policy,
        controller: ServiceMeshManagerController,
        statistics: EventStatistics,
        clock: Callable[[], float],
    ) -> None:
        for topic in settings.targeted_topics:
            reason = check_pattern(topic)
            if reason is not None:
                raise SettingsError(
                    f"{ENV_PREFIX}TARGETED_TOPICS: {topic!r} is not a topic pattern: {reason}; allowed are words "
                    "separated by dots, * for one word, # for any number of words"
                )
        self._settings = settings
        self._handler_manager = handler_manager
        self._policy = policy
        self._controller = controller
        self._interest = Interest(mesh, clock)
        self._subscriptions: TopicTree[Handler] = TopicTree()
        #: The subscriptions whose events may be lost on the way to a slow client.
        self._lossy: TopicTree[tuple[Handler, Delivery]] = TopicTree()
        #: The topic patterns of each session, in the order of subscription, and what becomes of their events.
        self._topics: dict[str, dict[str, Delivery]] = {}
        self._controller_topics: TopicTree[None] = TopicTree()
        self._controller_events: asyncio.Queue[EventMessage] = asyncio.Queue(MAX_CONTROLLER_EVENTS)
        #: Set once targeted events come; None while nobody asked for them.
        self._targeted: asyncio.Event | None = None
        self._statistics = statistics

    # --- life -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Ask for the controller's events, from now on."""
        # The queue belongs to the event loop in which it is first waited for.
        self._controller_events = asyncio.Queue(MAX_CONTROLLER_EVENTS)
        for topic in self._controller.event_topic_subscriptions:
            self._controller_topics.add(topic, None)
            self._interest.add(topic, _nothing)

    def stop(self) -> None:
        """Ask for nothing any more. What connections are subscribed to is forgotten as they go."""
        self._targeted = None
        self._interest.clear()

    def sweep(self, now: float) -> None:
        """Let go of what nobody wants any more; ``now`` is a time of the clock."""
        self._interest.sweep(now)

    async def feed_controller(self) -> None:
        """Give the controller its events, one by one, until cancelled."""
        while True:
            event = await self._controller_events.get()
            try:
                payload = msgspec.json.decode(event.event)
                context = msgspec.json.decode(event.context)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                self._statistics.dropped_controller_events += 1
                continue
            context = context if isinstance(context, dict) else {}
            await deliver_event(self._controller, event.topic, payload, event.target, context)

    # --- connections ------------------------------------------------------------------------------------------

    async def prepare(self) -> None:
        """Have targeted events come, if they do not yet, before a connection is told that it is there.

        Takes BINDING_TIMEOUT seconds at the most, and only for the first connection any time at all.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BINDING_TIMEOUT):
                # Again after a wait, in which the last connection may have gone.
                while not (bound := self._targeted or self._ask_for_targeted()).is_set():
                    await bound.wait()

    def _ask_for_targeted(self) -> asyncio.Event:
        self._targeted = bound = asyncio.Event()
        waiting = set(self._settings.targeted_topics)

        def on_bound(topic: str) -> None:
            waiting.discard(topic)
            if not waiting:
                bound.set()

        for topic in self._settings.targeted_topics:
            self._interest.add(topic, functools.partial(on_bound, topic))
        if not waiting:
            bound.set()
        return bound

    def subscribe(self, handler: Handler, frame: Subscribe) -> None:
        """Answer a ``subscribe``, once events of all its topics come."""
        subscribed = self._topics.setdefault(handler.session_id, {})
        topics = dict.fromkeys(frame.topics)
        new = [topic for topic in topics if topic not in subscribed]
        if len(subscribed) + len(new) > MAX_SUBSCRIPTIONS:
            description = f"payload.topics: a connection may have {MAX_SUBSCRIPTIONS} subscriptions"
            handler.send_frame(encode_failure(frame.id, frame.trace_id, Failure(ErrorCode.BAD_REQUEST, description)))
            return
        # Answered when events of every one of them arrive, so that nothing published after the answer is missed. That
        # may be so of none yet, even where it was asked for before.
        waiting = set(topics)

        def answer() -> None:
            handler.send_frame(encode_response(frame.id, frame.trace_id, encode_topics(list(subscribed))))

        def on_subscribed(topic: str) -> None:
            waiting.discard(topic)
            if not waiting:
                answer()

        for topic in new:
            self._add(handler, topic)
        for topic in topics:
            ask = self._interest.add if topic in new else self._interest.when_bound
            ask(topic, functools.partial(on_subscribed, topic))
        if not topics:
            answer()

    def _add(self, handler: Handler, topic: str) -> None:
        identity = handler.identity
        delivery = "close" if identity is None else self._policy.delivery(identity, topic)
        self._topics[handler.session_id][topic] = delivery
        if delivery == "close":
            self._subscriptions.add(topic, handler)
        else:
            self._lossy.add(topic, (handler, delivery))

    def unsubscribe(self, handler: Handler, frame: Unsubscribe) -> None:
        """Answer an ``unsubscribe``."""
        subscribed = self._topics.setdefault(handler.session_id, {})
        for topic in frame.topics:
            self._drop(handler, topic)
        handler.send_frame(encode_response(frame.id, frame.trace_id, encode_topics(list(subscribed))))

    def forget(self, handler: Handler) -> None:
        """The connection has gone."""
        for topic in tuple(self._topics.get(handler.session_id, ())):
            self._drop(handler, topic)
        self._topics.pop(handler.session_id, None)
        if self._targeted is not None and not len(self._handler_manager):
            self._targeted = None
            for topic in self._settings.targeted_topics:
                self._interest.remove(topic)

    def end_denied(self, handler: Handler) -> None:
        """End what the policy does not allow this connection any longer, and tell the client."""
        identity = handler.identity
        if identity is None:
            return
        topics = tuple(self._topics.get(handler.session_id, ()))
        denied = [topic for topic in topics if not self._still_allows(identity, topic)]
        for topic in denied:
            self._drop(handler, topic)
        if denied:
            self._statistics.denied_subscriptions += len(denied)
            logger.debug("session %s: %d subscriptions ended by the policy", handler.session_id, len(denied))
            handler.send_frame(encode_event("unsubscribed", encode_json({"topics": denied, "reason": "policy"})))

    def _still_allows(self, identity: Identity, topic: str) -> bool:
        try:
            return self._policy.may_subscribe(identity, topic)
        except Exception:  # the host's; the subscriptions of others must not be kept by it
            logger.exception("the policy failed for a subscription, which ends")
            return False

    def _drop(self, handler: Handler, topic: str) -> None:
        delivery = self._topics[handler.session_id].pop(topic, None)
        if delivery is None:
            return
        if delivery == "close":
            self._subscriptions.remove(topic, handler)
        else:
            self._lossy.remove(topic, (handler, delivery))
        self._interest.remove(topic)

    # --- from the mesh ----------------------------------------------------------------------------------------

    def on_event(self, event: EventMessage) -> None:
        """Bring an event to whom it is for: the connections of its targets, or those that subscribed."""
        self._statistics.events += 1
        if len(memoryview(event.event)) > self._settings.outbox_size:
            # It would be copied for every subscriber, and a slow one be hung up on for it.
            self._statistics.oversized_events += 1
            logger.debug("an event of more than OUTBOX_SIZE was dropped")
            return
        if event.target is None:
            self._hand_out(event)
        elif handlers := self._handler_manager.get_user_handlers(event.target):
            text = encode_event(event.topic, event.event, event.trace_id)
            for handler in handlers:
                handler.send_frame(text)
        if self._controller_topics.match(event.topic):
            try:
                self._controller_events.put_nowait(event)
            except asyncio.QueueFull:
                self._statistics.dropped_controller_events += 1

    def _hand_out(self, event: EventMessage) -> None:
        """Give an event to everybody who subscribed, once, however many patterns match."""
        handlers = self._subscriptions.match(event.topic)
        lossy: dict[Handler, Delivery] = {}
        for handler, delivery in self._lossy.match(event.topic) if len(self._lossy) else ():
            # Who asked for it in several ways gets it in the one that loses least.
            if handler not in handlers and lossy.get(handler) != "drop_oldest":
                lossy[handler] = delivery
        if not handlers and not lossy:
            return
        text = encode_event(event.topic, event.event, event.trace_id)
        for handler in handlers:
            handler.send_frame(text)
        for handler, delivery in lossy.items():
            handler.send_event(text, event.topic, delivery)

    def on_gap(self, reason: str) -> None:
        """Events may have been missed: tell everybody who subscribed to some."""
        for session_id, topics in tuple(self._topics.items()):
            handler = self._handler_manager.get_handler(session_id)
            if handler is not None and topics:
                handler.send_frame(encode_event("gap", encode_json({"reason": reason, "topics": list(topics)})))


def _nothing(*_: Any) -> None:
    """What was asked for has its effect without anybody waiting for it."""

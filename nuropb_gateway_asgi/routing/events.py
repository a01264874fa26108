"""Events of the mesh: subscriptions, and fan-out to subscribers."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable, Iterable
from typing import Final

from ..authentication import Identity
from ..authorization import Policy
from ..authorization.rules import Delivery
from ..controller import ServiceMeshManagerController
from ..exceptions import SettingsError
from ..handler_manager import Handler, HandlerManager, encode_refusal
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
from ..topics import GATEWAY_TOPICS, TopicTree, check_pattern
from ..wire.interface import EventMessage, Mesh
from .controller_events import ControllerEvents
from .interest import Interest
from .statistics import MeshStatistics

__all__ = ["EventRouter"]

logger = logging.getLogger(__name__)

#: Seconds that the first connection of a process waits for the binding that brings events with a target.
BINDING_TIMEOUT: Final = 1.0


class EventRouter:
    """Brings each event to its subscribers, and has the mesh send only events with subscribers in this process.

    An event with a target goes to all connections of its target's users, subscribed or not. The broker routes
    by topic alone, so a process with connections asks for all topics that such events may have (the setting
    ``TARGETED_TOPICS``), and a process without connections asks for none.
    """

    def __init__(
        self,
        settings: Settings,
        handler_manager: HandlerManager,
        mesh: Mesh,
        policy: Policy,
        controller: ServiceMeshManagerController,
        statistics: MeshStatistics,
        clock: Callable[[], float],
    ) -> None:
        for topic in settings.targeted_topics:
            reason = check_pattern(topic)
            if reason is not None:
                raise SettingsError(
                    f"{ENV_PREFIX}TARGETED_TOPICS: {topic!r} is not a topic pattern: {reason}; expected words "
                    "separated by dots, * for one word, # for any number of words"
                )
        self._settings = settings
        self._handler_manager = handler_manager
        self._policy = policy
        self._clock = clock
        self._interest = Interest(mesh, clock)
        self._subscriptions: TopicTree[Handler] = TopicTree()
        #: Subscriptions whose events a slow client may lose.
        self._lossy: TopicTree[tuple[Handler, Delivery]] = TopicTree()
        #: Topic patterns of each session, in the order of subscription, with their delivery.
        self._topics: dict[str, dict[str, Delivery]] = {}
        self.for_controller = ControllerEvents(controller, statistics)
        #: Set once events with a target come; None before they are asked for.
        self._targeted: asyncio.Event | None = None
        #: The gateway's own topics, for events with a target and for the controller, that the broker refuses.
        self._refused: dict[str, None] = {}
        self._own_topics = set(settings.targeted_topics)
        self._statistics = statistics
        #: The id of the event that is being delivered.
        self.delivering: str | None = None

    # --- life -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Subscribe to the controller's events."""
        for topic in self.for_controller.start():
            self._own_topics.add(topic)
            self._interest.add(topic)

    def stop(self) -> None:
        """Unsubscribe from everything. Subscriptions of connections are forgotten as the connections end."""
        self._targeted = None
        self._interest.clear()

    def sweep(self, now: float) -> None:
        """Unbind topics without subscribers; ``now`` is a time of the clock."""
        self._interest.sweep(now)

    # --- connections ------------------------------------------------------------------------------------------

    async def prepare(self) -> None:
        """Wait until events with a target come to this process; called before a connection is greeted.

        Takes at most BINDING_TIMEOUT seconds, and time only for the first connection.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BINDING_TIMEOUT):
                # Check again after a wait, during which the last connection may have ended.
                while not (bound := self._targeted or self._ask_for_targeted()).is_set():
                    await bound.wait()

    def _ask_for_targeted(self) -> asyncio.Event:
        self._targeted = bound = asyncio.Event()
        waiting = set(self._settings.targeted_topics)

        def on_bound(topic: str, known: bool) -> None:
            # A refused topic is a warning for the operator, and no reason for clients to wait.
            self._note_own(topic, refused=not known)
            waiting.discard(topic)
            if not waiting:
                bound.set()

        for topic in self._settings.targeted_topics:
            self._interest.add(topic, functools.partial(on_bound, topic))
        if not waiting:
            bound.set()
        return bound

    def on_connection_change(self, *, connected: bool) -> None:
        """Bind the topics of events with a target for a moment: an operator learns of a refusal before any client."""
        if connected and self._targeted is None:
            for topic in self._settings.targeted_topics:
                self._interest.add(topic, functools.partial(self._on_tried, topic))

    def _on_tried(self, topic: str, bound: bool) -> None:
        self._note_own(topic, refused=not bound)
        self._interest.remove(topic)

    def _note_own(self, topic: str, *, refused: bool) -> None:
        if refused:
            self._refused[topic] = None
        else:
            self._refused.pop(topic, None)

    @property
    def warnings(self) -> list[str]:
        """The gateway's own topics whose events do not come, in words for an operator."""
        return [
            f"events of the topic {topic} do not come: the broker refuses them to this user; grant the topic "
            "permission, or change TARGETED_TOPICS or the controller's topics"
            for topic in self._refused
        ]

    def subscribe(self, handler: Handler, frame: Subscribe) -> None:
        """Answer a ``subscribe`` once events of all its topics come."""
        subscribed = self._topics.setdefault(handler.session_id, {})
        topics = dict.fromkeys(frame.topics)
        new = [topic for topic in topics if topic not in subscribed]
        if len(subscribed) + len(new) > MAX_SUBSCRIPTIONS:
            description = f"payload.topics: a connection may have {MAX_SUBSCRIPTIONS} subscriptions"
            handler.send_frame(encode_failure(frame.id, frame.trace_id, Failure(ErrorCode.BAD_REQUEST, description)))
            return
        if self._refuse_bindings(handler, frame, sum(topic not in self._interest for topic in new)):
            return
        # The answer waits until every topic is bound, so that the client misses no event published after it. A topic
        # that was asked for before may not be bound yet either.
        waiting = set(topics)
        refused: list[str] = []

        def answer() -> None:
            if refused:
                for each in new:
                    self._drop(handler, each)
                failure = Failure(
                    ErrorCode.PERMISSION_DENIED, f"Subscribing to {refused[0]} is not allowed by the broker"
                )
                handler.send_frame(encode_failure(frame.id, frame.trace_id, failure))
                return
            handler.send_frame(encode_response(frame.id, frame.trace_id, encode_topics(list(subscribed))))

        def on_subscribed(topic: str, bound: bool) -> None:
            waiting.discard(topic)
            if not bound:
                refused.append(topic)
            if not waiting:
                answer()

        for topic in new:
            self._add(handler, topic)
        user_id = "" if handler.identity is None else handler.identity.user_id
        unasked = set(new)
        for topic in topics:
            if topic in unasked:
                self._interest.add(topic, functools.partial(on_subscribed, topic), user_id=user_id)
            else:
                self._interest.when_bound(topic, functools.partial(on_subscribed, topic))
        if not topics:
            answer()

    def _refuse_bindings(self, handler: Handler, frame: Subscribe, count: int) -> bool:
        """Count new bindings of the process for a user; refuse the frame, and return True, if there are too many."""
        if not count or handler.identity is None:
            return False
        limits = self._handler_manager.shared_limits.rates
        excess = limits.on_bindings(handler.identity.user_id, self._clock(), count)
        if excess is None:
            return False
        self._handler_manager.on_excess(handler, excess, functools.partial(encode_refusal, frame))
        return True

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
        """Forget the subscriptions of a connection that has ended."""
        for topic in tuple(self._topics.get(handler.session_id, ())):
            self._drop(handler, topic)
        self._topics.pop(handler.session_id, None)
        if self._targeted is not None and not self._handler_manager.handlers:
            self._targeted = None
            for topic in self._settings.targeted_topics:
                self._interest.remove(topic)

    def end_denied(self, handler: Handler) -> None:
        """End the subscriptions that the policy does not allow any longer, and tell the client."""
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
        except Exception:  # the application's policy must not keep the subscriptions of other clients from ending
            logger.exception("policy raised; subscription ended")
            return False

    def _drop(self, handler: Handler, topic: str) -> None:
        delivery = self._topics.get(handler.session_id, {}).pop(topic, None)
        if delivery is None:
            return
        if delivery == "close":
            self._subscriptions.remove(topic, handler)
        else:
            self._lossy.remove(topic, (handler, delivery))
        self._interest.remove(topic)

    def on_topic_refused(self, topic: str) -> None:
        """End the subscriptions to a topic that the broker refuses from now on, and tell the clients."""
        if topic in self._own_topics:
            self._note_own(topic, refused=True)
        for session_id, topics in tuple(self._topics.items()):
            handler = self._handler_manager.get_handler(session_id)
            if handler is not None and topic in topics:
                self._end_refused(handler, topic)

    def _end_refused(self, handler: Handler, topic: str) -> None:
        self._drop(handler, topic)
        self._statistics.denied_subscriptions += 1
        handler.send_frame(encode_event("unsubscribed", encode_json({"topics": [topic], "reason": "broker"})))

    # --- sessions that outlive their connections --------------------------------------------------------------

    def topics_of(self, handler: Handler) -> list[str]:
        """Return the topic patterns of a session, in the order of subscription."""
        return list(self._topics.get(handler.session_id, ()))

    def replace(self, handler: Handler, successor: Handler) -> None:
        """Give a connection's subscriptions to another handler with the same session id."""
        for topic, delivery in self._topics.get(handler.session_id, {}).items():
            if delivery == "close":
                self._subscriptions.remove(topic, handler)
                self._subscriptions.add(topic, successor)
            else:
                self._lossy.remove(topic, (handler, delivery))
                self._lossy.add(topic, (successor, delivery))

    def rename(self, old: str, new: str) -> None:
        """Give a session's subscriptions another session id."""
        topics = self._topics.pop(old, None)
        if topics is not None:
            self._topics[new] = topics

    async def adopt(self, handler: Handler, topics: Iterable[str]) -> None:
        """Subscribe a session that comes from another process, and wait until its events come.

        Raises TimeoutError after BINDING_TIMEOUT seconds; the session may then miss events.
        """
        subscribed = self._topics.setdefault(handler.session_id, {})
        bound = asyncio.Event()
        waiting = {topic for topic in topics if topic not in subscribed}

        def on_bound(topic: str, accepted: bool) -> None:
            if not accepted:
                self._end_refused(handler, topic)
            waiting.discard(topic)
            if not waiting:
                bound.set()

        for topic in tuple(waiting):
            self._add(handler, topic)
            self._interest.add(topic, functools.partial(on_bound, topic))
        if waiting:
            async with asyncio.timeout(BINDING_TIMEOUT):
                await bound.wait()

    @property
    def topics(self) -> frozenset[str]:
        """The topic patterns with subscribers."""
        return frozenset(topic for topics in self._topics.values() for topic in topics)

    @property
    def sessions(self) -> int:
        """The number of sessions with subscriptions."""
        return len(self._topics)

    @property
    def subscriptions(self) -> int:
        """The number of subscriptions of all sessions, in the trees that events are matched by."""
        return len(self._subscriptions) + len(self._lossy)

    # --- from the mesh ----------------------------------------------------------------------------------------

    def on_event(self, event: EventMessage) -> None:
        """Send an event to the connections of its target's users, or to its subscribers."""
        self._statistics.events += 1
        self.delivering = event.id
        self._deliver(event)
        self.delivering = None

    def _deliver(self, event: EventMessage) -> None:
        if len(memoryview(event.event)) > self._settings.outbox_size:
            # Every subscriber would get a copy that does not fit the outbox, and lose the connection.
            self._statistics.oversized_events += 1
            logger.debug("event dropped: larger than OUTBOX_SIZE")
            return
        if event.topic in GATEWAY_TOPICS:
            # Clients would obey it as the gateway's own. The controller may have it: it knows that its events are of
            # the mesh.
            self._statistics.reserved_events += 1
            logger.debug("event dropped: its topic is one of the gateway's own")
        elif event.target is None:
            self._fan_out(event)
        elif handlers := self._handler_manager.get_user_handlers(event.target):
            text = encode_event(event.topic, event.event, event.trace_id)
            for handler in handlers:
                handler.send_frame(text)
        self.for_controller.offer(event)

    def _fan_out(self, event: EventMessage) -> None:
        """Send an event to each subscriber once, however many of its patterns match."""
        handlers = self._subscriptions.match(event.topic)
        lossy: dict[Handler, Delivery] = {}
        for handler, delivery in self._lossy.match(event.topic) if len(self._lossy) else ():
            # A client that subscribed with several deliveries gets the one that loses least.
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
        """Tell all subscribers that events may have been missed."""
        for session_id, topics in tuple(self._topics.items()):
            handler = self._handler_manager.get_handler(session_id)
            if handler is not None and topics:
                handler.send_frame(encode_event("gap", encode_json({"reason": reason, "topics": list(topics)})))

"""Events of the mesh: subscriptions, and fan-out to subscribers."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from ..authentication import Identity
from ..authorization import Policy
from ..authorization.rules import Delivery
from ..controller import ServiceMeshManagerController
from ..handler_manager import Handler, HandlerManager, encode_refusal
from ..limits.slices import TOPICS_PER_SLICE
from ..protocol import (
    MAX_SUBSCRIPTIONS,
    ErrorCode,
    Failure,
    Since,
    Subscribe,
    Unsubscribe,
    encode_event,
    encode_failure,
    encode_json,
    encode_response,
    encode_topics,
)
from ..settings import Settings
from ..topics import GATEWAY_TOPICS, matches
from ..wire.history import KeptTopic
from ..wire.interface import EventMessage, Mesh
from .catch_up import CatchUp, Past
from .controller_events import ControllerEvents
from .history import History, HistoryStream, KeptSubscription
from .interest import Interest
from .own_topics import BINDING_TIMEOUT, OwnTopics
from .statistics import MeshStatistics
from .subscribers import Subscribers

__all__ = ["EventRouter"]

logger = logging.getLogger(__name__)

#: Units of an ordinary frame that a topic costs which begins in the past.
UNITS_OF_PAST: Final = 10
#: Messages of a history that cost one unit more.
MESSAGES_PER_UNIT: Final = 10
_NO_HISTORY: Final = Failure(ErrorCode.MESH_UNAVAILABLE, "The history of this topic is not available at present")


class EventRouter:
    """Brings each event to its subscribers, and has the mesh send only events with subscribers in this process.

    An event with a target goes to all connections of its target's users, subscribed or not. ``kept_topics`` have a
    history: their events come from there.
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
        kept_topics: Iterable[KeptTopic] = (),
    ) -> None:
        self._settings = settings
        self._handler_manager = handler_manager
        self._tracing = handler_manager.tracing
        self._mesh = mesh
        self._policy = policy
        self._clock = clock
        self._interest = Interest(mesh, clock)
        self.own_topics = OwnTopics(settings.targeted_topics, self._interest)
        self._subscribers = Subscribers()
        self.history = History(
            kept_topics, settings, mesh, statistics, clock, gap=self._tell_of_gap, demote=self._make_ordinary
        )
        self._has_history = bool(self.history)
        #: Topic patterns of each session, in the order of subscription, with their delivery.
        self._topics: dict[str, dict[str, Delivery | KeptSubscription]] = {}
        self.for_controller = ControllerEvents(controller, statistics)
        self._statistics = statistics
        #: The id of the event that is being delivered.
        self.delivering: str | None = None

    # --- life -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Subscribe to the controller's events."""
        self.own_topics.start(self.for_controller.start())

    def stop(self) -> None:
        """Unsubscribe from everything. Subscriptions of connections are forgotten as the connections end."""
        self.own_topics.stop()
        self._interest.clear()

    @property
    def bound(self) -> int:
        """The number of topics that the mesh is asked for; those with history come from there."""
        return len(self._interest)

    def sweep(self, now: float) -> None:
        """Unbind topics without subscribers; ``now`` is a time of the clock."""
        self._interest.sweep(now)
        self.history.sweep(now)

    # --- connections ------------------------------------------------------------------------------------------

    def on_connection_change(self, *, connected: bool) -> None:
        """Tell the parts that the mesh was connected or disconnected."""
        self.own_topics.on_connection_change(connected=connected)
        self.history.on_connection_change(connected=connected)

    def subscribe(self, handler: Handler, frame: Subscribe) -> None:
        """Answer a ``subscribe`` once events of all its topics come."""
        subscribed = self._topics.setdefault(handler.session_id, {})
        topics = dict.fromkeys(frame.topics)
        new = [topic for topic in topics if topic not in subscribed]
        if len(subscribed) + len(new) > MAX_SUBSCRIPTIONS:
            description = f"payload.topics: a connection may have {MAX_SUBSCRIPTIONS} subscriptions"
            handler.send_frame(encode_failure(frame.id, frame.trace_id, Failure(ErrorCode.BAD_REQUEST, description)))
            return
        kept = self._kept(topics) if self._has_history else {}
        failure = None if not frame.since else self._check_since(frame.since, kept)
        if failure is not None:
            handler.send_frame(encode_failure(frame.id, frame.trace_id, failure))
            return
        if self._refuse_bindings(
            handler, frame, sum(topic not in self._interest and topic not in kept for topic in new)
        ):
            return
        # The answer waits until every topic is bound, so that the client misses no event published after it. A topic
        # that was asked for before may not be bound yet either.
        waiting: set[str] = set(topics)
        refused: list[str] = []
        past = Past(handler, frame, new)

        def on_subscribed(topic: str, bound: bool) -> None:
            waiting.discard(topic)
            if not bound:
                refused.append(topic)
            if not waiting:
                self._answer(past, refused)

        since = frame.since or {}
        for topic in new:
            self._add(handler, topic, kept.get(topic), begins=topic not in since)
        user_id = "" if handler.identity is None else handler.identity.user_id
        unasked = set(new)
        for topic in topics:
            done = functools.partial(on_subscribed, topic)
            if topic in kept:
                if topic not in since:
                    kept[topic].when_started(
                        functools.partial(done, True), self._clock(), connected=self._mesh.can_publish
                    )
            elif topic in unasked:
                self._interest.add(topic, done, user_id=user_id)
            else:
                self._interest.when_bound(topic, done)
        if since:
            self._begin_in_the_past(past, since, kept, on_subscribed)
        if not topics:
            self._answer(past, refused)

    def _answer(self, past: Past, refused: Sequence[str]) -> None:
        """Answer a ``subscribe`` whose topics are all bound, unless some were ``refused``."""
        frame, failure = past.frame, past.failure
        if refused:
            failure = Failure(ErrorCode.PERMISSION_DENIED, f"Subscribing to {refused[0]} is not allowed by the broker")
        if failure is not None:
            for each in past.new:
                self._drop(past.handler, each)
            past.handler.send_frame(encode_failure(frame.id, frame.trace_id, failure))
        else:
            subscribed = self._topics.get(past.handler.session_id, {})
            result = encode_topics(list(subscribed), past.found)
            past.handler.send_frame(encode_response(frame.id, frame.trace_id, result))
        past.on_answered(successful=failure is None)

    def _kept(self, topics: Iterable[str]) -> dict[str, HistoryStream]:
        """Return the histories of those topics that have one."""
        found = {topic: self.history.covering(topic) for topic in topics}
        return {topic: stream for topic, stream in found.items() if stream is not None and stream.log.available}

    def _check_since(self, since: Mapping[str, Since], kept: Mapping[str, HistoryStream]) -> Failure | None:
        """Return the reason why topics cannot begin in the past, or None."""
        for topic in since:
            if self.history.covering(topic) is None:
                return Failure(ErrorCode.BAD_REQUEST, "payload.since: a topic without history")
            if topic not in kept or not self._mesh.can_publish:
                return _NO_HISTORY
        return None

    def _begin_in_the_past(
        self,
        past: Past,
        since: Mapping[str, Since],
        kept: Mapping[str, HistoryStream],
        done: Callable[[str, bool], None],
    ) -> None:
        """Have topics begin in the past; ``done`` is called for each once its past is read."""
        handler = past.handler
        self._charge(handler, UNITS_OF_PAST * len(since))
        subscribed = self._topics[handler.session_id]
        for stream in dict.fromkeys(kept[topic] for topic in since):
            topics = {topic: each for topic, each in since.items() if kept[topic] is stream}
            for topic in topics:
                if not isinstance(subscribed[topic], KeptSubscription):  # there was no history when it began
                    self._drop(handler, topic)
                    self._add(handler, topic, stream, begins=False)
            past.add(self.history.catch_up(handler, stream, topics, self._subscriptions_of(handler, topics)))

        def on_read(searched: int) -> None:
            self._charge(past.handler, searched // MESSAGES_PER_UNIT)
            for topic in since:
                done(topic, True)

        past.run(self.history.tasks, on_read)

    def _charge(self, handler: Handler, units: int) -> None:
        identity = handler.identity
        if units and identity is not None:
            rates = self._handler_manager.shared_limits.rates
            rates.charge(handler.session_id, identity.user_id, self._clock(), units)

    def _subscriptions_of(self, handler: Handler, topics: Iterable[str]) -> dict[str, KeptSubscription]:
        subscribed = self._topics.get(handler.session_id, {})
        found = ((topic, subscribed.get(topic)) for topic in topics)
        return {topic: each for topic, each in found if isinstance(each, KeptSubscription)}

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

    def _add(self, handler: Handler, topic: str, stream: HistoryStream | None = None, *, begins: bool = True) -> None:
        identity = handler.identity
        delivery = "close" if identity is None else self._policy.delivery(identity, topic)
        if stream is None:
            self._topics[handler.session_id][topic] = delivery
            self._subscribers.add(topic, handler, delivery)
        else:
            self._topics[handler.session_id][topic] = subscription = KeptSubscription(stream, topic, delivery)
            if begins:
                subscription.begin(handler, stream.offset)

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
        if self._has_history:
            self.history.forget(handler)
        if not self._handler_manager.handlers:
            self.own_topics.release()

    def review(self, handler: Handler) -> Iterator[None]:
        """End the subscriptions that the policy does not allow any longer. Yields between two slices; never raises."""
        topics = self.topics_of(handler)
        for begin in range(0, len(topics), TOPICS_PER_SLICE):
            if begin:
                yield
            present = self._handler_manager.get_handler(handler.session_id)
            if present is not None:
                self.end_denied(present, topics[begin : begin + TOPICS_PER_SLICE])

    def end_denied(self, handler: Handler, among: Sequence[str] | None = None) -> list[str]:
        """End the subscriptions that the policy does not allow any longer, tell the client, and return the topics.

        With ``among``, only these topics are looked at.
        """
        identity = handler.identity
        if identity is None:
            return []
        subscribed = self._topics.get(handler.session_id, {})
        topics = tuple(subscribed) if among is None else [topic for topic in among if topic in subscribed]
        denied = [topic for topic in topics if not self._still_allows(identity, topic)]
        for topic in denied:
            self._drop(handler, topic)
        if denied:
            self._statistics.denied_subscriptions += len(denied)
            logger.debug("session %s: %d subscriptions ended by the policy", handler.session_id, len(denied))
            handler.send_frame(encode_event("unsubscribed", encode_json({"topics": denied, "reason": "policy"})))
        return denied

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
        if isinstance(delivery, KeptSubscription):
            delivery.end(handler, self._clock())
            return
        self._subscribers.remove(topic, handler, delivery)
        self._interest.remove(topic)

    def on_topic_refused(self, topic: str) -> None:
        """End the subscriptions to a topic that the broker refuses from now on, and tell the clients."""
        self.own_topics.on_refused(topic)
        for session_id, topics in tuple(self._topics.items()):
            handler = self._handler_manager.get_handler(session_id)
            if handler is not None and topic in topics and not isinstance(topics[topic], KeptSubscription):
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
            if isinstance(delivery, KeptSubscription):
                delivery.replace(handler, successor)
            else:
                self._subscribers.replace(topic, handler, successor, delivery)
        if self._has_history:
            self.history.replace(handler, successor)

    def rename(self, old: str, new: str) -> None:
        """Give a session's subscriptions another session id."""
        topics = self._topics.pop(old, None)
        if topics is not None:
            self._topics[new] = topics

    async def adopt(self, handler: Handler, topics: Iterable[str]) -> None:
        """Subscribe a session that comes from another process, and wait until its events come.

        Raises TimeoutError after BINDING_TIMEOUT seconds; the session may then miss events. Topics with history begin
        only by :meth:`continue_after`.
        """
        subscribed = self._topics.setdefault(handler.session_id, {})
        bound = asyncio.Event()
        waiting = {topic for topic in topics if topic not in subscribed}
        for topic, stream in self._kept(waiting).items() if self._has_history else ():
            self._add(handler, topic, stream, begins=False)
            waiting.discard(topic)
        for subscription in self._subscriptions_of(handler, topics).values():
            subscription.arrive(handler)

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

    def positions_of(self, handler: Handler) -> dict[str, tuple[str, int]]:
        """Return the epoch and offset of the last event that a session got of each history, by the history's pattern.

        A history is missing if that is not known.
        """
        subscribed = self._topics.get(handler.session_id, {}).values()
        streams = {each.stream for each in subscribed if isinstance(each, KeptSubscription)}
        found = ((stream.pattern, self.history.position(stream, handler)) for stream in streams)
        return {pattern: position for pattern, position in found if position is not None}

    def continue_after(self, handler: Handler, positions: Mapping[str, tuple[str, int]]) -> None:
        """Have the adopted topics with history of a session begin behind the events that it has."""
        waiting: dict[HistoryStream, dict[str, KeptSubscription]] = {}
        for topic, each in self._topics.get(handler.session_id, {}).items():
            if isinstance(each, KeptSubscription) and each.offset is None:
                waiting.setdefault(each.stream, {})[topic] = each
        for stream, subscriptions in waiting.items():
            epoch, offset = positions.get(stream.pattern, ("", 0))
            since = dict.fromkeys(subscriptions, Since(epoch=epoch, offset=offset))
            catch_up = self.history.catch_up(handler, stream, since, subscriptions)
            self.history.tasks.start_soon(self._continue, catch_up, list(subscriptions), name="session's history")

    async def _continue(self, catch_up: CatchUp, topics: list[str]) -> None:
        found = await catch_up.try_to_read()
        if (found is None or not all(each.recovered for each in found.values())) and not catch_up.is_over():
            catch_up.handler.send_frame(encode_event("gap", encode_json({"reason": "expired", "topics": topics})))
        if found is None:
            catch_up.begin_now()
        await catch_up.send()

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
        return len(self._subscribers)

    # --- from the mesh ----------------------------------------------------------------------------------------

    def on_event(self, event: EventMessage) -> None:
        """Send an event to the connections of its target's users, or to its subscribers."""
        self._statistics.events += 1
        self.delivering = event.id
        if self._tracing is None:
            self._deliver(event)
        else:
            with self._tracing.delivering(event.topic, event.context):
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
            handlers, lossy = self._subscribers.of(event.topic)
            if self._has_history and (stream := self.history.of_event(event.topic)) is not None:
                handlers, lossy = stream.without_own(event, handlers, lossy, self._begin_of)
            if handlers or lossy:
                self._fan_out(event, handlers, lossy)
        elif targets := self._handler_manager.get_user_handlers(event.target):
            text = encode_event(event.topic, event.event, event.trace_id)
            for handler in targets:
                handler.send_frame(text)
        self.for_controller.offer(event)

    def _fan_out(self, event: EventMessage, handlers: Iterable[Handler], lossy: Mapping[Handler, Delivery]) -> None:
        """Send an event to each subscriber once, however many of its patterns match."""
        text = encode_event(event.topic, event.event, event.trace_id)
        for handler in handlers:
            handler.send_frame(text)
        for handler, delivery in lossy.items():
            handler.send_event(text, event.topic, delivery)

    def _begin_of(self, handler: Handler, topic: str) -> int | None:
        """Return the offset behind which a session gets the events of a topic from its history, or None."""
        subscribed = self._topics.get(handler.session_id, {})
        begins = [
            each.behind
            for pattern, each in subscribed.items()
            if isinstance(each, KeptSubscription) and each.behind is not None and matches(pattern, topic)
        ]
        return min(begins, default=None)

    def on_gap(self, reason: str) -> None:
        """Tell all subscribers that events may have been missed; those of topics with history have missed none."""
        self._tell_of_gap(None, reason)

    def _tell_of_gap(self, stream: HistoryStream | None, reason: str) -> None:
        """Tell the subscribers of a history, or of all topics without one, that events may have been missed."""
        for session_id, subscribed in tuple(self._topics.items()):
            handler = self._handler_manager.get_handler(session_id)
            topics = [
                topic
                for topic, each in subscribed.items()
                if (each.stream if isinstance(each, KeptSubscription) else None) is stream
            ]
            if handler is not None and topics:
                handler.send_frame(encode_event("gap", encode_json({"reason": reason, "topics": topics})))

    def _make_ordinary(self, stream: HistoryStream) -> None:
        """Make the topics of a history that is not available any longer topics like any other."""
        for session_id, subscribed in tuple(self._topics.items()):
            handler = self._handler_manager.get_handler(session_id)
            for topic, each in tuple(subscribed.items()):
                if handler is not None and isinstance(each, KeptSubscription) and each.stream is stream:
                    each.end(handler, self._clock())
                    self._add(handler, topic)
                    self._interest.add(topic)
        stream.let_go(late=False)

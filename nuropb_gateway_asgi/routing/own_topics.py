"""The gateway's own topics: those of events with a target, and those of its controller."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Iterable
from typing import Final

from ..exceptions import SettingsError
from ..settings import ENV_PREFIX
from ..topics import check_pattern
from .interest import Interest

__all__ = ["BINDING_TIMEOUT", "OwnTopics"]

#: Seconds that the first connection of a process waits for the binding that brings events with a target.
BINDING_TIMEOUT: Final = 1.0


class OwnTopics:
    """The topics that the gateway itself subscribes to.

    An event with a target goes to all connections of its target's users, subscribed or not. The broker routes by topic
    alone, so a process with connections asks for all topics that such events may have (the setting
    ``TARGETED_TOPICS``), and a process without connections asks for none. Raises SettingsError for an invalid topic.
    """

    def __init__(self, targeted: Iterable[str], interest: Interest) -> None:
        self._targeted_topics = tuple(targeted)
        self._interest = interest
        for topic in self._targeted_topics:
            reason = check_pattern(topic)
            if reason is not None:
                raise SettingsError(
                    f"{ENV_PREFIX}TARGETED_TOPICS: {topic!r} is not a topic pattern: {reason}; expected words "
                    "separated by dots, * for one word, # for any number of words"
                )
        #: Set once events with a target come; None before they are asked for.
        self._targeted: asyncio.Event | None = None
        #: The gateway's own topics, for events with a target and for the controller, that the broker refuses.
        self._refused: dict[str, None] = {}
        self._topics = set(self._targeted_topics)

    def start(self, topics: Iterable[str]) -> None:
        """Subscribe to the controller's topics."""
        for topic in topics:
            self._topics.add(topic)
            self._interest.add(topic)

    def stop(self) -> None:
        """Forget that events with a target come."""
        self._targeted = None

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
        waiting = set(self._targeted_topics)

        def on_bound(topic: str, known: bool) -> None:
            # A refused topic is a warning for the operator, and no reason for clients to wait.
            self._note(topic, refused=not known)
            waiting.discard(topic)
            if not waiting:
                bound.set()

        for topic in self._targeted_topics:
            self._interest.add(topic, functools.partial(on_bound, topic))
        if not waiting:
            bound.set()
        return bound

    def release(self) -> None:
        """Ask for events with a target no longer: the last connection has ended."""
        if self._targeted is not None:
            self._targeted = None
            for topic in self._targeted_topics:
                self._interest.remove(topic)

    def on_connection_change(self, *, connected: bool) -> None:
        """Bind the topics of events with a target for a moment: an operator learns of a refusal before any client."""
        if connected and self._targeted is None:
            for topic in self._targeted_topics:
                self._interest.add(topic, functools.partial(self._on_tried, topic))

    def _on_tried(self, topic: str, bound: bool) -> None:
        self._note(topic, refused=not bound)
        self._interest.remove(topic)

    def on_refused(self, topic: str) -> None:
        """Note that the broker refuses a topic from now on, if it is one of these."""
        if topic in self._topics:
            self._note(topic, refused=True)

    def _note(self, topic: str, *, refused: bool) -> None:
        if refused:
            self._refused[topic] = None
        else:
            self._refused.pop(topic, None)

    @property
    def warnings(self) -> list[str]:
        """The topics whose events do not come, in words for an operator."""
        return [
            f"events of the topic {topic} do not come: the broker refuses them to this user; grant the topic "
            "permission, or change TARGETED_TOPICS or the controller's topics"
            for topic in self._refused
        ]

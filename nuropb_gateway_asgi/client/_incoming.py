"""Frames from the gateway that belong to calls, subscriptions and listeners."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from ._calls import Calls
from ._emitter import Emitter
from ._events import GatewayEvent, read_position
from ._state import Farewell
from ._subscriptions import Subscriptions
from .errors import UnexpectedFrame, call_failed, obeyed

__all__ = ["Incoming"]


class Incoming:
    """Passes frames to calls, subscriptions and listeners.

    ``tell`` calls the listeners of a name; ``is_open`` tells whether the gateway has said hello.
    """

    def __init__(
        self,
        calls: Calls,
        subscriptions: Subscriptions,
        emitter: Emitter,
        tell: Callable[[str, object], None],
        is_open: Callable[[], bool],
    ) -> None:
        self._calls = calls
        self._subscriptions = subscriptions
        self._emitter = emitter
        self._tell = tell
        self._is_open = is_open
        self._loop = asyncio.get_running_loop()
        #: The gateway's last words on the connection in use.
        self.farewell = Farewell()

    def handle(self, frame: Mapping[str, Any]) -> None:
        """Handle a frame that is no ping, no pong, no hello and no goodbye."""
        payload = frame.get("payload")
        members = payload if isinstance(payload, dict) else {}
        match frame.get("type"):
            case "response":
                unexpected = self._calls.answer(members)
                if unexpected is not None:
                    self._tell("warning", unexpected)
            case "event":
                self._on_event(members)
            case "error":
                error = call_failed(frame)
                self.farewell.error = error
                self.farewell.not_before = self._loop.time() + obeyed(error.retry_after)
                # Before hello it is the reason why the gateway then closes the connection.
                if self._is_open():
                    self._tell("warning", error)
            case _:
                self._tell("warning", UnexpectedFrame("the gateway sent a frame of unknown type"))

    def _on_event(self, payload: Mapping[str, Any]) -> None:
        topic, event, trace_id = payload.get("topic"), payload.get("event"), payload.get("trace_id")
        if not isinstance(topic, str):
            self._tell("warning", UnexpectedFrame("the gateway sent an event without a topic"))
        elif not self._subscriptions.notice(topic, event):
            position = read_position(payload.get("position"))
            received = GatewayEvent(topic, event, trace_id if isinstance(trace_id, str) else None, position)
            self._emitter.emit("event", received)
            self._subscriptions.dispatch(received)

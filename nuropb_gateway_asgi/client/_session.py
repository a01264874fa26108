"""The resumable session of a client: its key, the number of frames that arrived, and the frames held back meanwhile.

``docs/resume.md`` explains the frames.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from ._frames import is_counted
from ._link import Link

__all__ = ["Resumption", "Session"]

#: The id of every ``resume``. Ids of calls are numbers.
RESUME_ID: Final = "resume"
#: Counted frames, and seconds after the first of them, after which the client says what has arrived.
ACKNOWLEDGE_EVERY: Final = 64
ACKNOWLEDGE_AFTER: Final = 5.0


@dataclass(frozen=True)
class Resumption:
    """The answer to ``resume``. ``in_flight`` are the ids of the calls that the gateway has not answered yet."""

    resumed: bool = False
    reason: str = ""
    session_id: str = ""
    key: str = ""
    #: The number of frames that follow once more.
    replay: int = 0
    in_flight: frozenset[str] = frozenset()
    topics: tuple[str, ...] = ()


class Session:
    """The session of a client, which may outlive its connections.

    ``patience`` is how many seconds the answer to ``resume`` may take; then the connection is dropped.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        #: The key to come back with; empty if the session cannot be resumed.
        self.key = ""
        #: The number of counted frames that have arrived.
        self.received = 0
        self._acknowledged = 0
        #: The connection whose frames are counted.
        self._counted: Link | None = None
        #: The connection on which ``resume`` was sent, until the answer arrives.
        self.asked: Link | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._acknowledging: asyncio.TimerHandle | None = None
        self._early: list[dict[str, Any]] = []
        self._late: list[dict[str, Any]] = []
        #: After a resumption: the frames that still have to be repeated, and the answer to ``resume``.
        self._replayed: Resumption | None = None
        self._to_replay = 0

    def ask(self, link: Link) -> None:
        """Send ``resume`` on ``link``, with the key if there is one. With a key, frames are held back from now on."""
        payload: dict[str, Any] = {"id": RESUME_ID}
        self.asked = link
        if self.key:
            payload |= {"key": self.key, "received": self.received}
            self._stop()
        link.send(msgspec.json.encode({"type": "resume", "payload": payload}).decode())
        self._deadline = self._loop.call_later(self._patience, link.drop, "no answer to resume in time")

    def hold_back(self, link: Link, frame: dict[str, Any]) -> None:
        """Keep a frame until the answer to ``resume``: if the session is resumed, the gateway sends it once more."""
        (self._early if link is self.asked else self._late).append(frame)

    def take_late(self) -> list[dict[str, Any]]:
        """Return the frames that were held back on the connection that the session had before."""
        late, self._late = self._late, []
        return late

    def take_early(self) -> list[dict[str, Any]]:
        """Return the frames that were held back on the connection that asked."""
        early, self._early = self._early, []
        return early

    def on_answer(self, payload: Mapping[str, Any]) -> Resumption:
        """Take the answer to ``resume``. The caller then calls :meth:`begin`, unless the session is given up."""
        self.give_up()
        return _read(payload.get("result"))

    def give_up(self) -> None:
        """Expect no answer any more."""
        self.asked = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def stay(self, link: Link) -> list[dict[str, Any]]:
        """Count the frames of ``link`` again, and return those that were held back: the session has not moved."""
        self.give_up()
        self._counted = link
        self._early = []
        late, self._late = self._late, []
        return late

    def begin(self, link: Link, answer: Resumption) -> None:
        """Count the frames of ``link`` from now on."""
        self.key = answer.key
        if answer.resumed:
            self._early, self._late = [], []
            self._replayed, self._to_replay = answer, answer.replay
        else:
            self.received = 0
            self._replayed = None
        self._acknowledged = self.received
        self._counted = link if answer.key else None

    def count(self, link: Link, frame: Mapping[str, Any]) -> None:
        """Count a frame if it is a counted one, and acknowledge it in time."""
        if link is not self._counted or not is_counted(frame):
            return
        self.received += 1
        self._to_replay -= 1
        if self.received - self._acknowledged >= ACKNOWLEDGE_EVERY:
            self._acknowledge()
        elif self._acknowledging is None:
            self._acknowledging = self._loop.call_later(ACKNOWLEDGE_AFTER, self._on_quiet)

    def take_replayed(self) -> Resumption | None:
        """Return the answer to ``resume``, once, when all repeated frames have been handled."""
        if self._replayed is None or self._to_replay > 0:
            return None
        answer, self._replayed = self._replayed, None
        return answer

    def disconnected(self) -> None:
        """Note the end of the connection. The key stays."""
        self.give_up()
        self._stop()
        self._replayed = None

    def end(self) -> None:
        """Forget the session: it is over at the gateway, or not wanted any more."""
        self.disconnected()
        self.key = ""
        self.received = 0
        self._early, self._late = [], []

    def _stop(self) -> None:
        self._counted = None
        if self._acknowledging is not None:
            self._acknowledging.cancel()
            self._acknowledging = None

    def _on_quiet(self) -> None:
        self._acknowledging = None
        if self.received > self._acknowledged:
            self._acknowledge()

    def _acknowledge(self) -> None:
        self._acknowledged = self.received
        if self._counted is not None:
            self._counted.send(f'{{"type":"ack","payload":{{"received":{self.received}}}}}')


def _read(result: object) -> Resumption:
    """Read the result of ``resume``. A refusal has none: the session is not resumed then, and has no key."""
    given = result if isinstance(result, dict) else {}
    texts = {name: given[name] for name in ("reason", "session_id", "key") if isinstance(given.get(name), str)}
    replay, in_flight, topics = (given.get(name) for name in ("replay", "in_flight", "topics"))
    return Resumption(
        resumed=given.get("resumed") is True,
        **texts,
        replay=replay if isinstance(replay, int) else 0,
        in_flight=frozenset(each for each in in_flight if isinstance(each, str))
        if isinstance(in_flight, list)
        else frozenset(),
        topics=tuple(each for each in topics if isinstance(each, str)) if isinstance(topics, list) else (),
    )

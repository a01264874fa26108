"""History of topics: the patterns that an operator names, and the interface between the gateway and a mesh for them.

The interface is pure; so is the parsing of the operator's words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, Protocol, TypeAlias, runtime_checkable

from ..topics import check_pattern, overlaps
from .interface import EventMessage

__all__ = [
    "BYTES_SYNTAX",
    "DEFAULT_BYTES",
    "LAST_BYTES",
    "TIME_SYNTAX",
    "After",
    "Follower",
    "HistoryLog",
    "HistoryMesh",
    "KeptTopic",
    "Last",
    "Read",
    "Seconds",
    "Start",
    "check_kept_topics",
    "parse_bytes",
    "parse_kept_topics",
    "parse_time",
]

#: Bytes of each history, unless the operator names another number: of one with a time, and of the newest events. The
#: broker drops many events together, all those of a burst, so the newest ones need room, too.
DEFAULT_BYTES: Final = 64 * 1024 * 1024
LAST_BYTES: Final = 16 * 1024 * 1024
#: The shortest and the longest time that events are kept, in seconds, and the fewest bytes.
_SHORTEST, _LONGEST, _FEWEST = 1, 365 * 86400, 1024 * 1024
_UNITS: Final = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_SIZES: Final = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_TIME = re.compile(r"([1-9][0-9]{0,8})(s|m|min|h|d)")
_BYTES = re.compile(r"([1-9][0-9]{0,14})(|KB|MB|GB|KiB|MiB|GiB)")
TIME_SYNTAX: Final = (
    "a time from 1s to 365d, as in 30s, 15m, 1h or 7d, or last for the newest events whatever their age"
)
BYTES_SYNTAX: Final = "a whole number of bytes from 1MiB on, as in 64MiB"


class KeptTopic(NamedTuple):
    """A topic pattern whose events are kept: for ``seconds`` (None for any age), in ``size`` bytes."""

    pattern: str
    seconds: int | None
    size: int


def parse_time(text: str) -> int | None:
    """Parse ``15m`` into seconds, and ``last`` into None. Raises ValueError."""
    if text == "last":
        return None
    match = _TIME.fullmatch(text)
    seconds = 0 if match is None else int(match[1]) * _UNITS[match[2]]
    if not _SHORTEST <= seconds <= _LONGEST:
        raise ValueError("not a time")
    return seconds


def parse_bytes(text: str) -> int:
    """Parse ``64MiB``. Raises ValueError."""
    match = _BYTES.fullmatch(text)
    size = 0 if match is None else int(match[1]) * _SIZES[match[2]]
    if not _FEWEST <= size < 2**63:
        raise ValueError("not a number of bytes")
    return size


def parse_kept_topics(items: Iterable[str]) -> tuple[KeptTopic, ...]:
    """Parse items such as ``orders.#:1h``. Raises ValueError with the fault and the remedy."""
    topics = []
    for item in items:
        pattern, separator, time = item.rpartition(":")
        if not separator:
            raise ValueError(f"{item!r} names no time; expected a topic pattern, a colon and {TIME_SYNTAX}")
        try:
            seconds = parse_time(time)
            topics.append(KeptTopic(pattern, seconds, LAST_BYTES if seconds is None else DEFAULT_BYTES))
        except ValueError as error:
            raise ValueError(f"{time!r} is not a time; expected {TIME_SYNTAX}") from error
    check_kept_topics(topics)
    return tuple(topics)


def check_kept_topics(topics: Iterable[KeptTopic]) -> None:
    """Raise ValueError for a pattern that cannot be kept, and for two patterns that an event may match both."""
    seen: list[str] = []
    for topic in topics:
        reason = check_pattern(topic.pattern)
        if reason is not None:
            raise ValueError(
                f"{topic.pattern!r} is not a topic pattern: {reason}; expected words separated by dots, * for one "
                "word, # for any number of words"
            )
        other = next((each for each in seen if overlaps(each, topic.pattern)), None)
        if other is not None:
            raise ValueError(
                f"{topic.pattern!r} and {other!r} overlap; expected patterns of which each event matches one at most"
            )
        seen.append(topic.pattern)


# --- between the gateway and a mesh -------------------------------------------------------------------------------


class After(NamedTuple):
    """The start behind the event with this offset."""

    offset: int


class Last(NamedTuple):
    """The start with the last ``number`` events."""

    number: int


class Seconds(NamedTuple):
    """The start with the events of the last ``seconds``."""

    seconds: float


Start: TypeAlias = After | Last | Seconds


class Read(NamedTuple):
    """Events read from a history, with their offsets, the oldest first.

    ``complete`` tells that every event from the start on is among them. ``last`` is the offset of the last event that
    was read, wanted or not, or None. ``searched`` messages were read.
    """

    events: list[tuple[int, EventMessage]]
    complete: bool
    last: int | None = None
    searched: int = 0


class Follower(Protocol):
    """The receiver of the live events of a history. No method waits or raises."""

    def on_started(self, offset: int) -> None:
        """Take note that each event behind ``offset`` comes, and that :attr:`HistoryLog.epoch` is known."""

    def on_kept(self, offset: int, event: EventMessage) -> None:
        """Take an event and its offset. Offsets grow; they may have gaps."""

    def on_missed(self) -> None:
        """Take note that events were lost, or that the history begins anew, since the last event that came."""

    def on_unavailable(self) -> None:
        """Take note that there is no history: :attr:`HistoryLog.available` is false."""


class HistoryLog(Protocol):
    """The kept events of one pattern, as one process sees them."""

    @property
    def available(self) -> bool:
        """Whether there is a history; else its topics are topics like any other."""
        ...

    @property
    def epoch(self) -> str | None:
        """The id of this history, the same in all processes, and another one after its loss; None while unknown."""
        ...

    def follow(self, follower: Follower) -> None:
        """Bring live events to ``follower`` from now on, across reconnections too."""

    def leave(self) -> None:
        """Bring no more events."""

    def mark(self, done: Callable[[int], None]) -> None:
        """Call ``done`` once the follower has all events that were published before, with an offset behind them.

        Raises MeshUnavailable. ``done`` is not called if the connection is lost before.
        """

    async def read(self, start: Start, end: int, wanted: Callable[[EventMessage], bool], limit: int, size: int) -> Read:
        """Read the wanted events from ``start`` to the offset ``end``.

        More than ``limit`` events or ``size`` bytes are not complete. Raises MeshUnavailable.
        """
        ...


@runtime_checkable
class HistoryMesh(Protocol):
    """A mesh that keeps events."""

    def keep_history(self, topics: Iterable[KeptTopic]) -> dict[str, HistoryLog]:
        """Keep the events of these topics, and return their histories by pattern. Once, before entering."""
        ...

"""The format of Server-Sent Events, and the writer of a stream of them."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable
from typing import NamedTuple

import msgspec
from msgspec import Raw, Struct

from ..journal import Traffic
from ..protocol import PING, is_counted, on_one_line
from ..topics import GATEWAY_TOPICS
from .direct import DirectResponse
from .exchange import UNREADABLE, read_answer

__all__ = ["DirectStream", "EventNumbers", "payload_of", "server_sent_event"]

#: Topics of the gateway's own events. These become named events; mesh events reach a page's ``message`` listener.
_OWN_TOPIC = re.compile(rb'\{"topic":"(%b)"' % b"|".join(topic.encode() for topic in sorted(GATEWAY_TOPICS)))


class EventNumbers:
    """The ids of a stream's events, and the bytes of its frames with them.

    With a ``stem``, the key of a resumable session, the ids count what the session counts; else all events.
    """

    __slots__ = ("count", "stem")

    def __init__(self) -> None:
        #: The beginning of each id.
        self.stem = ""
        #: The number of the latest event.
        self.count = 0

    def encode(self, text: str) -> bytes:
        """Return the bytes of a frame: an event with the next id, or a comment for a ping.

        Empty for an answer to a frame that the client did not send.
        """
        if text == PING:
            return b": ping\n\n"
        formatted = _formatted(text)
        if formatted.counts or not self.stem:
            self.count += 1
            if formatted.is_answer and self.stem:
                return b""
        return b"%bid: %b%d%b" % (formatted.head, self.stem.encode(), self.count, formatted.tail)

    def encode_last(self, text: str) -> bytes:
        """Return the bytes of the event that ends a connection, which no session counts."""
        if not self.stem:
            self.count += 1
        return server_sent_event(text, f"{self.stem}{self.count}")


class DirectStream:
    """The writer of a stream whose server takes parts of the response by plain calls.

    ``on_end`` is called once the connection is to be closed and all frames before are written.
    """

    __slots__ = ("_numbers", "_on_end", "_response", "_traffic")

    def __init__(
        self, response: DirectResponse, numbers: EventNumbers, traffic: Traffic | None, on_end: Callable[[], None]
    ) -> None:
        self._response = response
        self._numbers = numbers
        self._traffic = traffic
        self._on_end = on_end

    @property
    def is_writable(self) -> bool:
        """Whether the client keeps up."""
        return self._response.is_writable

    def write(self, text: str) -> None:
        """Send a frame as an event."""
        data = self._numbers.encode(text)
        if data:
            self._response.write(data)
        if self._traffic is not None:
            self._traffic.on_sent(text)

    def close(self, code: int, reason: str) -> None:
        """Have the handler end the stream."""
        self._on_end()


# --- the format ---------------------------------------------------------------------------------------------------


class _EventFrame(Struct, tag_field="type", tag="event"):
    payload: Raw


class _Retry(Struct):
    retry_after_ms: int


class _Goodbye(Struct):
    event: _Retry


_decode_event_frame = msgspec.json.Decoder(_EventFrame).decode
_decode_goodbye = msgspec.json.Decoder(_Goodbye).decode


def payload_of(text: str) -> bytes:
    """Return the payload of an event frame. Raises one of :data:`~.exchange.UNREADABLE` for any other frame."""
    return bytes(_decode_event_frame(text).payload)


def server_sent_event(text: str, id_: str | int) -> bytes:
    """Format an event frame's payload as a Server-Sent Event, or any other frame as an event named "frame"."""
    formatted = _formatted(text)
    return b"%bid: %b%b" % (formatted.head, str(id_).encode(), formatted.tail)


class _Formatted(NamedTuple):
    """A frame as an event without its id: the same for all streams."""

    #: The lines before the id.
    head: bytes
    #: The rest behind the id.
    tail: bytes
    #: Whether sessions count the frame.
    counts: bool
    #: Whether it is an answer to a frame of the client.
    is_answer: bool


# Streams get an event one after the other.
@functools.lru_cache(maxsize=4)
def _formatted(text: str) -> _Formatted:
    line = on_one_line(text)
    counts = is_counted(text)
    try:
        payload = payload_of(line)
    except UNREADABLE:  # an answer, or sent by the host application
        is_answer = counts and read_answer(text) is not None
        return _Formatted(b"event: frame\n", b"\ndata: %b\n\n" % line.encode(), counts, is_answer)
    own = _OWN_TOPIC.match(payload)
    head = b"" if own is None else b"event: %b\n" % own[1]
    if own is not None and own[1] == b"goodbye":
        with contextlib.suppress(*UNREADABLE):
            head += b"retry: %d\n" % max(_decode_goodbye(payload).event.retry_after_ms, 0)
    return _Formatted(head, b"\ndata: %b\n\n" % payload, counts, is_answer=False)

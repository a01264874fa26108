"""Streams of Server-Sent Events that are written by plain calls: numbers, bytes, and responses that are left alone."""

from __future__ import annotations

import h11
import pytest

from nuropb_gateway_asgi.handlers.kept_frames import SessionOutbox
from nuropb_gateway_asgi.handlers.server_sent_events import DirectStream, EventNumbers
from nuropb_gateway_asgi.journal import Traffic
from nuropb_gateway_asgi.protocol import PING, encode_event, encode_response
from nuropb_gateway_asgi.server.watched_response import WatchedResponse

EVENT = encode_event("news.today", b"1")
HELLO = encode_event("hello", b"{}")
ANSWER = encode_response("1", None, b"1")


def numbers(stem: str = "") -> EventNumbers:
    made = EventNumbers()
    made.stem = stem
    return made


def test_the_events_of_a_stream_without_a_session_are_numbered() -> None:
    stream = numbers()
    assert [b"id: 1\n" in stream.encode(HELLO), b"id: 2\n" in stream.encode(EVENT)] == [True, True]


def test_the_events_of_a_session_have_the_numbers_that_it_counts() -> None:
    stream = numbers("key:")
    assert b"id: key:0\n" in stream.encode(HELLO)
    assert b"id: key:1\n" in stream.encode(EVENT)
    assert b"id: key:1\n" in stream.encode_last(encode_event("closed", b"{}"))


def test_an_answer_to_a_frame_that_the_client_did_not_send_is_counted_and_not_sent() -> None:
    stream = numbers("key:")
    assert stream.encode(ANSWER) == b""
    assert b"id: key:2\n" in stream.encode(EVENT)


def test_a_ping_is_a_comment_without_a_number() -> None:
    stream = numbers()
    assert (stream.encode(PING), stream.count) == (b": ping\n\n", 0)


class Response:
    """A direct response that keeps what is written."""

    is_writable = True

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def prepare(self) -> None:
        raise NotImplementedError

    def attach(self, on_writable: object, sent: bytes) -> bool:
        raise NotImplementedError

    def write(self, body: bytes) -> None:
        self.written.append(body)


def test_frames_of_a_direct_stream_count_for_the_access_log() -> None:
    response, traffic = Response(), Traffic()
    stream = DirectStream(response, numbers(), traffic, lambda: None)
    stream.write(EVENT)
    assert (len(response.written), traffic.sent) == (1, 1)


# --- a session's outbox -----------------------------------------------------------------------------------------------


def outbox() -> SessionOutbox:
    made = SessionOutbox(1000, 1000)
    made.begin()
    made.go_on(None)
    return made


def test_a_frame_that_nothing_waits_before_passes_the_outbox_and_is_kept() -> None:
    box = outbox()
    assert box.pass_on(EVENT)
    assert (box.kept, box.sent, box.size) == ([EVENT], 1, 0)


def test_a_frame_that_is_not_counted_passes_and_is_not_kept() -> None:
    box = outbox()
    assert box.pass_on(HELLO)
    assert (box.kept, box.sent) == ([], 0)


def test_no_frame_passes_one_that_waits() -> None:
    box = outbox()
    box.put(EVENT)
    assert not box.pass_on(EVENT)
    assert box.get_nowait() == EVENT
    assert box.pass_on(EVENT)


def test_no_frame_passes_an_outbox_that_nobody_may_read() -> None:
    box = SessionOutbox(1000, 1000)
    box.begin()
    assert not box.pass_on(EVENT)
    box.go_on(None)
    box.close()
    assert not box.pass_on(EVENT)


# --- responses that middleware changes --------------------------------------------------------------------------------


def requested() -> h11.Connection:
    """Return a server's connection that has read a request."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"GET /events HTTP/1.1\r\nHost: here\r\n\r\n")
    while connection.next_event() not in (h11.NEED_DATA, h11.PAUSED) and connection.their_state is not h11.DONE:
        pass
    return connection


@pytest.mark.parametrize(
    ("headers", "parts", "is_same"),
    [
        ([], [b"begin"], True),
        ([], [b"other"], False),
        ([], [], False),
        ([], [b"begin", b"more"], False),
        ([("Content-Encoding", "gzip")], [b"begin"], False),
    ],
)
def test_a_response_is_written_directly_only_if_it_has_come_as_it_was_sent(
    headers: list[tuple[str, str]], parts: list[bytes], is_same: bool
) -> None:
    connection = requested()
    watched = WatchedResponse(connection)
    connection.send(h11.Response(status_code=200, headers=headers))
    for part in parts:
        connection.send(h11.Data(data=part))
    watched.end()
    connection.send(h11.Data(data=b"not watched"))
    assert watched.has_begun_with(b"begin") is is_same

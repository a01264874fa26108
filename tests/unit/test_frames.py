"""Frames read by hand, compared with pamqp, whole and byte by byte."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Iterable
from typing import Any

import pamqp.frame
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands
from pamqp.body import ContentBody
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

from nuropb_gateway_asgi.mesh.rabbitmq._frames import HEARTBEAT_FRAME, Content, Incoming, Splitter
from nuropb_gateway_asgi.wire import codec

Properties = commands.Basic.Properties

HEADERS = {
    "nuropb_protocol": "0.1.1",
    "nuropb_version": "0.1.8",
    "nuropb_type": "response",
    "trace_id": "t",
    "encrypted": "",
}


def marshal(channel: int, *frames: Any) -> bytes:
    return b"".join(pamqp.frame.marshal(frame, channel) for frame in frames)


def message(
    channel: int, body: bytes, properties: Properties, *, start: Any = None, parts: Iterable[bytes] | None = None
) -> bytes:
    start = start or commands.Basic.Deliver("ctag", 7, False, "exchange", "key")
    bodies = [ContentBody(part) for part in ([body] if parts is None else parts) if part]
    return marshal(channel, start, ContentHeader(0, len(body), properties), *bodies)


class Ear:
    """A splitter with one taker on channel 1, and everything that it reports."""

    def __init__(self) -> None:
        self.messages: list[Incoming] = []
        self.returned: list[str] = []
        self.confirms: list[tuple[int, bool, bool]] = []
        self.blocked: list[bool] = []
        self.splitter = Splitter(self.blocked.append)
        self.splitter.add(
            1,
            Content(
                on_message=self.messages.append,
                on_return=self.returned.append,
                on_confirm=lambda *confirm: self.confirms.append(confirm),
            ),
        )

    def feed(self, data: bytes, *, size: int | None = None) -> bytes:
        """Feed bytes in pieces; return those that were passed on."""
        size = size or len(data) or 1
        return b"".join(self.splitter.feed(data[at : at + size]) for at in range(0, len(data), size))


# --- messages -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 64, None])
@pytest.mark.parametrize("redelivered", [True, False])
def test_a_message_is_put_together_however_its_bytes_come(size: int | None, redelivered: bool) -> None:
    ear = Ear()
    start = commands.Basic.Deliver("ctag", 2**62 + 5, redelivered, "", "nuropb-rq")
    properties = Properties(content_type="application/json", correlation_id="c1", reply_to="r", headers=dict(HEADERS))
    data = message(1, b'{"a":1}', properties, start=start)
    assert ear.feed(data * 3, size=size) == b""
    assert len(ear.messages) == 3
    got = ear.messages[0]
    assert (got.delivery_tag, got.redelivered, got.body) == (2**62 + 5, redelivered, b'{"a":1}')
    assert (got.correlation_id, got.reply_to, got.headers) == ("c1", "r", HEADERS)
    assert (got.kind, got.encrypted) == ("response", False)


@pytest.mark.parametrize("parts", [[b""], [b"abc"], [b"ab", b"c"], [b"a", b"b", b"c"]])
def test_a_body_may_come_in_any_number_of_frames(parts: list[bytes]) -> None:
    ear = Ear()
    body = b"".join(parts)
    data = message(1, body, Properties(correlation_id="c"), parts=parts)
    assert ear.feed(data + data, size=5) == b""
    assert [each.body for each in ear.messages] == [body, body]


def test_frames_of_other_channels_come_in_between() -> None:
    ear = Ear()
    one, other = message(1, b"abc", Properties()), message(2, b"xyz", Properties())
    frames_of_one, frames_of_other = split(one), split(other)
    mixed = b"".join(b"".join(pair) for pair in zip(frames_of_one, frames_of_other, strict=True))
    assert ear.feed(mixed, size=3) == other
    assert [each.body for each in ear.messages] == [b"abc"]


def test_what_belongs_to_no_message_is_passed_on() -> None:
    ear = Ear()
    _, header, body = split(message(1, b"abc", Properties()))
    assert ear.feed(header + body) == header + body
    assert not ear.messages


def test_no_other_frame_disturbs_a_message() -> None:
    ear = Ear()
    method, header, body = split(message(1, b"abc", Properties()))
    stranger = b"\x04\x00\x01\x00\x00\x00\x01x\xce"
    assert ear.feed(method + header + stranger + body) == b""
    assert [each.body for each in ear.messages] == [b"abc"]


def test_what_comes_back_to_nobody_is_dropped() -> None:
    splitter = Splitter(lambda blocked: None)
    splitter.add(1, Content())
    start = commands.Basic.Return(312, "NO_ROUTE", "", "key")
    assert splitter.feed(message(1, b"abc", Properties(correlation_id="c"), start=start)) == b""


def split(data: bytes) -> list[bytes]:
    frames = []
    while data:
        size, _, _ = pamqp.frame.unmarshal(data)
        frames.append(data[:size])
        data = data[size:]
    return frames


OTHERS = [
    marshal(0, Heartbeat()),
    marshal(0, commands.Connection.Close(320, "CONNECTION_FORCED", 0, 0)),
    marshal(1, commands.Channel.Close(404, "NOT_FOUND", 60, 40)),
    marshal(1, commands.Basic.ConsumeOk("ctag")),
    marshal(1, commands.Basic.Cancel("ctag", True)),
    marshal(1, commands.Basic.QosOk()),
    marshal(9, commands.Basic.Ack(5, True)),
    message(9, b"abc", Properties(headers={"a": 1})),
]


@pytest.mark.parametrize("frames", OTHERS)
def test_what_is_not_taken_is_passed_on_as_it_came(frames: bytes) -> None:
    ear = Ear()
    assert ear.feed(frames, size=3) == frames
    assert not ear.splitter.took
    assert not ear.messages


def test_what_was_taken_is_said() -> None:
    ear = Ear()
    ear.feed(message(1, b"a", Properties()) + OTHERS[0])
    assert ear.splitter.took
    ear.feed(OTHERS[0])
    assert not ear.splitter.took


@pytest.mark.parametrize("garbage", [b"AMQP\x00\x00\x09\x01", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xff" * 20])
def test_what_is_no_frame_is_passed_on(garbage: bytes) -> None:
    assert Ear().feed(garbage) == garbage


def test_a_frame_without_its_end_is_passed_on() -> None:
    data = bytearray(message(1, b"abc", Properties()))
    data[-1] = 0
    ear = Ear()
    assert ear.feed(bytes(data)) == split_last(bytes(data))
    assert not ear.messages


def split_last(data: bytes) -> bytes:
    return data[-(8 + 3) :]


def test_the_broker_says_that_it_blocks_and_aiormq_hears_it_too() -> None:
    ear = Ear()
    blocked, unblocked = (
        marshal(0, commands.Connection.Blocked("low on memory")),
        marshal(0, commands.Connection.Unblocked()),
    )
    assert ear.feed(blocked + unblocked, size=4) == blocked + unblocked
    assert ear.blocked == [True, False]


def test_the_heartbeat_is_one() -> None:
    assert marshal(0, Heartbeat()) == HEARTBEAT_FRAME


# --- returns and confirms -------------------------------------------------------------------------------------


def test_a_message_that_comes_back_is_told_by_its_correlation_id() -> None:
    ear = Ear()
    start = commands.Basic.Return(312, "NO_ROUTE", "nuropb-rpc-exchange", "guess")
    assert ear.feed(message(1, b"{}", Properties(correlation_id="c", headers={"a": "b"}), start=start)) == b""
    assert ear.feed(message(1, b"", Properties(), start=start)) == b""
    assert ear.returned == ["c", ""]
    assert not ear.messages


@pytest.mark.parametrize("multiple", [True, False])
def test_confirms_are_read(multiple: bool) -> None:
    ear = Ear()
    data = marshal(1, commands.Basic.Ack(5, multiple), commands.Basic.Nack(2**40, multiple, False))
    assert ear.feed(data, size=4) == b""
    assert ear.confirms == [(5, multiple, True), (2**40, multiple, False)]


def test_confirms_are_nobodys_on_a_channel_without() -> None:
    splitter = Splitter(lambda blocked: None)
    splitter.add(1, Content())
    data = marshal(1, commands.Basic.Ack(5, False))
    assert splitter.feed(data) == data
    assert splitter.feed(message(1, b"a", Properties())) == b""


# --- properties -----------------------------------------------------------------------------------------------

TEXT = st.text(max_size=30)
TABLE = st.dictionaries(
    st.text(min_size=1, max_size=10, alphabet="abcxyz_-"),
    st.one_of(TEXT, st.none(), st.booleans(), st.integers(-(2**31), 2**31 - 1), st.floats(allow_nan=False, width=32)),
    max_size=6,
)


@given(
    content_type=st.none() | TEXT,
    content_encoding=st.none() | TEXT,
    headers=st.none() | TABLE,
    delivery_mode=st.none() | st.sampled_from([1, 2]),
    priority=st.none() | st.integers(0, 255),
    correlation_id=st.none() | TEXT,
    reply_to=st.none() | TEXT,
    expiration=st.none() | st.integers(0, 9999).map(str),
    message_id=st.none() | TEXT,
    timestamp=st.none() | st.just(dt.datetime(2026, 1, 1, tzinfo=dt.UTC)),
    body=st.binary(max_size=50),
    seed=st.integers(0, 2**32),
)
def test_whatever_properties_there_are_the_same_is_read_as_by_pamqp(body: bytes, seed: int, **properties: Any) -> None:
    header = ContentHeader(0, len(body), Properties(**properties))
    data = message(1, body, Properties(**properties))
    ear, source = Ear(), random.Random(seed)
    at = 0
    while at < len(data):
        step = source.randrange(1, 30)
        assert ear.splitter.feed(data[at : at + step]) == b""
        at += step
    (got,) = ear.messages
    expected = ContentHeader()
    expected.unmarshal(header.marshal())
    assert got.body == body
    assert (got.correlation_id or None) == (expected.properties.correlation_id or None)
    assert (got.reply_to or None) == (expected.properties.reply_to or None)
    assert (got.headers or None) == (expected.properties.headers or None)


@pytest.mark.parametrize("kind", ["request", "response", "event", "command"])
@pytest.mark.parametrize("encrypted", ["yes", ""])
@pytest.mark.parametrize("reversed_", [True, False])
def test_what_nuropb_writes_is_known_at_a_glance(kind: str, encrypted: str, reversed_: bool) -> None:
    headers: dict[str, Any] = HEADERS | {"nuropb_type": kind, "encrypted": encrypted}
    if reversed_:
        headers = dict(reversed(headers.items()))
    ear = Ear()
    ear.feed(message(1, b"{}", Properties(headers=headers, correlation_id="c")))
    (got,) = ear.messages
    assert (got.kind, got.encrypted) == (kind, encrypted == "yes")


WRONG: list[dict[str, Any] | None] = [
    None,
    {},
    HEADERS | {"nuropb_protocol": "0.2.0"},
    HEADERS | {"nuropb_type": "gossip"},
    HEADERS | {"nuropb_type": None},
    HEADERS | {"nuropb_type": "responses"},
    {"nuropb_type": "response"},
    {"trace_id": "nuropb_typeS response nuropb_protocolS 0.1.1"},
]


@pytest.mark.parametrize("headers", WRONG)
def test_headers_that_are_not_nuropbs_are_refused(headers: dict[str, Any] | None) -> None:
    ear = Ear()
    ear.feed(message(1, b"{}", Properties(headers=headers)))
    with pytest.raises(codec.InvalidMessage):
        ear.messages[0].kind  # noqa: B018


@given(st.binary(min_size=12, max_size=80))
def test_properties_that_cannot_be_read_are_none_at_all(garbage: bytes) -> None:
    got = Incoming(1, False, garbage, b"")
    assert got.correlation_id is None or isinstance(got.correlation_id, str)
    assert got.reply_to is None or isinstance(got.reply_to, str | bytes)
    assert got.headers is None or isinstance(got.headers, dict)


@given(st.lists(st.sampled_from([*OTHERS, b"own"]), max_size=12), st.integers(0, 2**32))
def test_all_that_is_for_others_comes_out_in_order_whatever_the_pieces(frames: list[bytes], seed: int) -> None:
    own = message(1, b"abc", Properties(correlation_id="c"))
    data = b"".join(own if frame == b"own" else frame for frame in frames)
    ear, source, rest = Ear(), random.Random(seed), b""
    at = 0
    while at < len(data):
        step = source.choice([1, 2, 3, 50, 500])
        rest += ear.splitter.feed(data[at : at + step])
        at += step
    assert rest == b"".join(frame for frame in frames if frame != b"own")
    assert len(ear.messages) == frames.count(b"own")


@pytest.mark.parametrize("offset", [0, 1, 2**31, 2**62])
def test_the_offset_in_a_stream_is_that_of_pamqp(offset: int) -> None:
    found = incoming({"a": "x-stream-offset", "x-stream-offset": offset, "z": "x"})
    assert found.headers is not None
    assert found.stream_offset == found.headers["x-stream-offset"] == offset


@pytest.mark.parametrize("headers", [None, {}, {"x-stream-offset": "l12345678"}, {"x-stream-offse": 2**40}])
def test_a_message_of_a_queue_has_no_offset(headers: dict[str, Any] | None) -> None:
    assert incoming(headers).stream_offset is None


def incoming(headers: dict[str, Any] | None) -> Incoming:
    return Incoming(1, False, ContentHeader(0, 0, Properties(headers=headers)).marshal(), b"")

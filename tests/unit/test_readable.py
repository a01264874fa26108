"""Frames that pamqp cannot decode, beside those that it can."""

from __future__ import annotations

import pamqp.frame
import pytest
from pamqp import commands
from pamqp.body import ContentBody
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

from nuropb_gateway_asgi.mesh.rabbitmq._readable import ReadableFrames

Properties = commands.Basic.Properties
NOT_UTF8 = b"\xff\xfe\xff\xfe"
SIZES = [1, 3, 7, 8, 64, 10_000]


def marshal(*frames: object) -> bytes:
    return b"".join(pamqp.frame.marshal(frame, 1) for frame in frames)  # type: ignore[arg-type]


def feed(data: bytes, size: int) -> bytes:
    """Feed ``data`` in pieces of ``size`` bytes; return all the output."""
    frames = ReadableFrames()
    return b"".join(frames.feed(data[at : at + size]) for at in range(0, len(data), size))


def unmarshal(data: bytes) -> list[object]:
    frames: list[object] = []
    while data:
        size, _, frame = pamqp.frame.unmarshal(data)
        frames.append(frame)
        data = data[size:]
    return frames


MESSAGE = marshal(
    commands.Basic.Deliver("tag", 7, False, "exch", "@@@@"),
    ContentHeader(0, 4, Properties(correlation_id="@@@@", reply_to="reply")),
    ContentBody(b"body"),
    Heartbeat(),
)


@pytest.mark.parametrize("size", SIZES)
def test_decodable_frames_pass_unchanged(size: int) -> None:
    assert feed(MESSAGE * 2, size) == MESSAGE * 2


@pytest.mark.parametrize("size", SIZES)
def test_names_that_are_not_utf8_become_question_marks_and_properties_go(size: int) -> None:
    data = feed(MESSAGE.replace(b"@@@@", NOT_UTF8), size)
    assert len(data) == len(MESSAGE)
    deliver, header, body, heartbeat = unmarshal(data)
    assert isinstance(deliver, commands.Basic.Deliver)
    assert (deliver.consumer_tag, deliver.delivery_tag, deliver.exchange) == ("tag", 7, "exch")
    assert deliver.routing_key == "????"
    assert isinstance(header, ContentHeader)
    assert (header.body_size, header.properties.correlation_id, header.properties.reply_to) == (4, None, None)
    assert isinstance(body, ContentBody)
    assert body.value == b"body"
    assert isinstance(heartbeat, Heartbeat)


@pytest.mark.parametrize("data", [b"AMQP\x00\x00\x09\x01", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_other_bytes_pass_unchanged(data: bytes) -> None:
    assert ReadableFrames().feed(marshal(Heartbeat()) + data) == marshal(Heartbeat()) + data


def test_another_undecodable_frame_is_left_to_aiormq() -> None:
    frame = marshal(commands.Connection.Close(320, "@@@@", 0, 0)).replace(b"@@@@", NOT_UTF8)
    assert ReadableFrames().feed(frame) == frame

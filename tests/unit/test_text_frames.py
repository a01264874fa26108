"""The fast path for text frames, compared with the websockets library."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from nuropb_gateway_asgi.server.text_frames import (
    MAX_SHORT,
    decode_text,
    encode_text,
    encode_texts,
    frame_size,
    has_invalid_head,
    is_fragment,
    take_texts,
)

LENGTHS = [0, 1, 125, 126, 127, 65535, 65536]
frames = st.one_of(
    st.builds(
        Frame,
        st.sampled_from([Opcode.CONT, Opcode.TEXT, Opcode.BINARY]),
        st.one_of(st.binary(max_size=300), st.sampled_from([os.urandom(length) for length in LENGTHS])),
        fin=st.booleans(),
    ),
    st.builds(Frame, st.sampled_from([Opcode.PING, Opcode.PONG, Opcode.CLOSE]), st.binary(min_size=2, max_size=125)),
)


def written(frame: Frame, *, mask: bool = True) -> bytes:
    return frame.serialize(mask=mask)


@given(frames, st.booleans(), st.binary(max_size=20))
def test_the_head_gives_the_size_of_a_frame(frame: Frame, mask: bool, more: bytes) -> None:
    data = written(frame, mask=mask)
    assert frame_size(b"..." + data + more, 3) == len(data)
    assert frame_size(bytearray(data), 0) == len(data)


@given(frames)
def test_an_incomplete_head_gives_no_size(frame: Frame) -> None:
    data = written(frame)
    known = [frame_size(data[:room], 0) for room in range(min(len(data), 14))]
    assert set(known) <= {0, len(data)}
    assert known == sorted(known)
    assert known[:2] == [0, 0][: len(known)]


@given(st.text(max_size=200), st.binary(max_size=10), st.binary(max_size=10))
def test_a_text_arrives_unchanged(text: str, before: bytes, after: bytes) -> None:
    data = written(Frame(Opcode.TEXT, text.encode()))
    assert decode_text(before + data + after, len(before), len(before) + len(data)) == text


@pytest.mark.parametrize("length", [125, 126, 65535])
def test_a_long_text_arrives_unchanged(length: int) -> None:
    data = written(Frame(Opcode.TEXT, b"x" * length))
    assert decode_text(bytearray(data), 0, len(data)) == "x" * length


@pytest.mark.parametrize(
    ("frame", "mask"),
    [
        pytest.param(Frame(Opcode.TEXT, b"\xff"), True, id="not UTF-8"),
        pytest.param(Frame(Opcode.TEXT, b"a", fin=False), True, id="a fragment"),
        pytest.param(Frame(Opcode.TEXT, b"a"), False, id="not masked"),
        pytest.param(Frame(Opcode.TEXT, b"a" * 65536), True, id="long"),
        *(pytest.param(Frame(code, b"\x03\xe8"), True, id=code.name) for code in Opcode if code is not Opcode.TEXT),
    ],
)
def test_all_other_frames_are_left_to_the_library(frame: Frame, mask: bool) -> None:
    data = written(frame, mask=mask)
    assert decode_text(data, 0, len(data)) is None


def test_compressed_frames_are_left_to_the_library() -> None:
    compressed = b"\xc1" + written(Frame(Opcode.TEXT, b"a"))[1:]
    assert decode_text(compressed, 0, len(compressed)) is None


@given(st.one_of(st.text(max_size=200), st.sampled_from(["x" * length for length in LENGTHS])))
def test_a_text_is_encoded_as_by_the_library(text: str) -> None:
    assert encode_text(text) == written(Frame(Opcode.TEXT, text.encode()), mask=False)


@given(st.binary(min_size=2, max_size=2))
def test_an_invalid_head_is_one_that_the_library_refuses(head: bytes) -> None:
    valid = head[0] & 0x0F in set(Opcode)
    assert has_invalid_head(b"." + head, 1) == (not valid or head[1] < 128)


@pytest.mark.parametrize(
    ("first", "unfinished"), [(0x01, True), (0x00, True), (0x81, False), (0x80, False), (0x82, False), (0x89, None)]
)
def test_fragments_are_recognised(first: int, unfinished: bool | None) -> None:
    assert is_fragment(first) is unfinished


def one_by_one(data: bytes, most: int) -> tuple[list[str], list[int]]:
    """Take short texts as the path for single frames does it."""
    texts: list[str] = []
    ends: list[int] = []
    start = 0
    while len(texts) < most and (size := frame_size(data, start)) and start + size <= len(data):
        text = decode_text(data, start, start + size)
        if text is None or len(text.encode()) > MAX_SHORT:
            break
        start += size
        texts.append(text)
        ends.append(start)
    return texts, ends


texts_and_more = st.one_of(st.builds(lambda text: Frame(Opcode.TEXT, text.encode()), st.text(max_size=200)), frames)
at_the_limit = st.sampled_from([Frame(Opcode.TEXT, b"x" * size) for size in (126, MAX_SHORT, MAX_SHORT + 1, 65535)])


@given(st.lists(st.one_of(texts_and_more, at_the_limit), max_size=8), st.integers(0, 8), st.integers(0, 20))
def test_texts_are_taken_together_as_they_are_one_by_one(several: list[Frame], most: int, missing: int) -> None:
    data = b"".join(map(written, several))
    data = data[: len(data) - missing]
    assert take_texts(data, 0, most) == take_texts(bytearray(data), 0, most) == one_by_one(data, most)


@given(st.binary(max_size=40))
def test_any_bytes_can_be_searched_for_texts(data: bytes) -> None:
    assert take_texts(b"." + data, 1, 4)[0] == one_by_one(data, 4)[0]


@given(st.lists(st.one_of(st.text(max_size=200), st.sampled_from(["x" * length for length in LENGTHS])), max_size=3))
def test_texts_are_encoded_together_as_they_are_one_by_one(texts: list[str]) -> None:
    assert encode_texts(texts) == b"".join(map(encode_text, texts))

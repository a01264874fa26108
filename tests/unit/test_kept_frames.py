"""The outbox of a session: frames are counted when they are handed out, kept until acknowledged, and replayed."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nuropb_gateway_asgi.handlers.kept_frames import FORGET_AFTER, SessionOutbox
from nuropb_gateway_asgi.protocol import PING, encode_event, encode_response, is_counted

ANSWER = encode_response("r", None, b"{}")


def frame(number: int) -> str:
    return encode_event("a", b"%d" % number)


def drain(outbox: SessionOutbox) -> list[str]:
    texts = []
    while (text := outbox.get_nowait()) is not None:
        texts.append(text)
    return texts


def sent(outbox: SessionOutbox, count: int) -> list[str]:
    """Have ``count`` frames handed out, and return them."""
    texts = [frame(number) for number in range(count)]
    for text in texts:
        assert outbox.put(text)
    assert drain(outbox) == texts
    return texts


COUNTED = [
    ('{"type":"response","payload":{}}', True),
    ('{"type":"event","payload":{"topic":"a"}}', True),
    ('{"type":"error"}', True),
    ('{ "payload" : {"topic":"a"}, "type" : "event" }', True),
    ('{"type":"event","payload":{"topic":"hello"}}', False),
    ('{"type":"event","payload":{"topic":"goodbye","event":{}}}', False),
    ('{"type": "event", "payload": {"event": 1, "topic": "goodbye"}}', False),
    ('{"type":"ping"}', False),
    ('{"type":"pong","payload":1}', False),
    ('{"type": "news"}', False),
    ('["event"]', False),
    ("no JSON", False),
]


@pytest.mark.parametrize(("text", "counted"), COUNTED)
def test_responses_events_and_errors_are_counted(text: str, counted: bool) -> None:
    assert is_counted(text) is counted


def test_a_frame_is_counted_when_it_is_handed_out() -> None:
    outbox = SessionOutbox(10_000, 10_000)
    outbox.put(frame(1))
    assert outbox.sent == 0
    assert drain(outbox) == [frame(1)]
    assert (outbox.sent, outbox.kept) == (1, [frame(1)])


def test_another_connection_gets_the_answer_the_kept_frames_and_those_that_wait() -> None:
    outbox = SessionOutbox(10_000, 10_000)
    texts = sent(outbox, 3)
    outbox.put(frame(3))
    outbox.put(PING)
    outbox.acknowledge(1)
    outbox.begin()
    outbox.settle()
    outbox.put(frame(4))
    assert outbox.get_nowait() is None
    outbox.go_on(ANSWER)
    assert drain(outbox) == [ANSWER, *texts[1:], frame(3), frame(4)]
    assert outbox.sent == 5


def test_a_closed_outbox_takes_frames_and_hands_them_to_the_next_connection() -> None:
    outbox = SessionOutbox(10_000, 10_000)
    outbox.close(discard=True)
    outbox.put(frame(1))
    assert outbox.get_nowait() is None
    outbox.begin()
    outbox.settle()
    outbox.go_on(None)
    assert drain(outbox) == [frame(1)]


@pytest.mark.parametrize("received", [-1, 0, 4, 2**63])
def test_a_number_that_goes_back_or_beyond_is_refused(received: int) -> None:
    outbox = SessionOutbox(10_000, 10_000)
    sent(outbox, 3)
    assert outbox.acknowledge(1)
    assert not outbox.acknowledge(received)
    assert outbox.acknowledged == 1


def test_more_bytes_than_are_kept_overflow_and_are_given_up() -> None:
    outbox = SessionOutbox(100_000, 3 * len(frame(1)))
    sent(outbox, 3)
    assert not outbox.overflowed
    sent(outbox, 1)
    assert outbox.overflowed
    assert outbox.kept == []
    assert outbox.acknowledge(4)


def test_an_outbox_that_forgets_keeps_the_latest_frames() -> None:
    outbox = SessionOutbox(100_000, 3 * len(frame(1)), forgets=True)
    texts = sent(outbox, 5)
    assert (outbox.overflowed, outbox.acknowledged, outbox.kept) == (False, 2, texts[2:])


def test_an_outbox_that_forgets_forgets_old_frames() -> None:
    outbox = SessionOutbox(100_000, 100_000, forgets=True)
    sent(outbox, 2)
    outbox.age(FORGET_AFTER)
    assert len(outbox.kept) == 2
    sent(outbox, 1)
    outbox.age(2 * FORGET_AFTER)
    assert len(outbox.kept) == 1


async def test_the_reader_of_a_former_connection_gets_no_frame() -> None:
    outbox = SessionOutbox(10_000, 10_000)
    former = asyncio.create_task(outbox.get())
    await asyncio.sleep(0)
    outbox.begin()
    outbox.go_on(None)
    latter = asyncio.create_task(outbox.get())
    await asyncio.sleep(0)
    outbox.put(frame(1))
    assert await former is None
    assert await latter == frame(1)


@given(st.lists(st.sampled_from(["put", "send", "lose", "resume", "acknowledge"]), max_size=60))
def test_a_client_gets_every_frame_once_and_in_order(steps: list[str]) -> None:
    outbox = SessionOutbox(1_000_000, 1_000_000)
    made = 0
    has: list[str] = []
    connected = True
    for step in steps:
        if step == "put":
            outbox.put(frame(made))
            made += 1
        elif step == "send" and connected:
            text = outbox.get_nowait()
            if text is not None and text != ANSWER:
                has.append(text)
        elif step == "lose":
            connected = False
            outbox.close(discard=True)
            outbox.settle()
        elif step == "acknowledge" and connected:
            # Replayed frames that were not handed out again yet are not the client's to acknowledge.
            outbox.acknowledge(min(len(has), outbox.sent))
        elif step == "resume" and not connected:
            connected = True
            assert outbox.acknowledge(len(has))
            outbox.begin()
            outbox.settle()
            outbox.go_on(ANSWER)
    assert has == [frame(number) for number in range(len(has))]
    if not connected:
        assert outbox.acknowledge(len(has))
        outbox.begin()
        outbox.settle()
        outbox.go_on(ANSWER)
    has += [text for text in drain(outbox) if text != ANSWER]
    assert has == [frame(number) for number in range(made)]

from __future__ import annotations

import asyncio
import copy
import json
import tracemalloc
from collections import deque

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given
from hypothesis import strategies as st

from nuropb_gateway_asgi.handlers.outbox import MAX_DROPPED_TOPICS, Outbox
from tests.kit.waiting import DEADLINE


async def drain(outbox: Outbox) -> list[str]:
    """Take all frames that are left in a closed outbox."""
    texts = []
    with anyio.fail_after(DEADLINE):
        while (text := await outbox.get()) is not None:
            texts.append(text)
    return texts


async def test_messages_come_out_in_the_order_in_which_they_went_in() -> None:
    outbox = Outbox(100)
    for text in ("a", "b", "c"):
        assert outbox.put(text)
    outbox.close()
    assert await drain(outbox) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("text", "size"),
    [("", 0), ("a", 1), ("abc", 3), ("é", 2), ("aé", 3), ("€", 3), ("😀", 4), ("\0", 1)],
)
async def test_a_message_counts_as_many_bytes_as_it_has(text: str, size: int) -> None:
    outbox = Outbox(100)
    assert outbox.put(text)
    assert outbox.put(text)
    assert outbox.size == 2 * size
    assert await outbox.get() == text
    assert outbox.size == size


async def test_what_does_not_fit_is_not_taken() -> None:
    outbox = Outbox(4)
    assert outbox.put("ab")
    assert outbox.put("cd")  # the limit itself fits
    assert not outbox.put("e")
    assert outbox.size == 4
    assert await outbox.get() == "ab"
    assert not outbox.put("éf")
    assert outbox.put("é")
    outbox.close()
    assert await drain(outbox) == ["cd", "é"]


async def test_an_empty_outbox_takes_a_message_of_any_size() -> None:
    outbox = Outbox(4)
    assert outbox.put("a" * 100)
    assert outbox.size == 100
    assert not outbox.put("b")
    assert await outbox.get() == "a" * 100
    assert outbox.size == 0
    assert outbox.put("b")


async def test_getting_waits_for_a_message() -> None:
    outbox = Outbox(100)
    texts: list[str | None] = []

    async def reader() -> None:
        texts.append(await outbox.get())
        texts.append(await outbox.get())

    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reader)
            await anyio.wait_all_tasks_blocked()
            assert texts == []
            outbox.put("a")
            outbox.put("b")  # the reader was woken already, and has not run yet
            assert texts == []
    assert texts == ["a", "b"]


@pytest.mark.parametrize("discard", [False, True])
async def test_closing_ends_the_wait(discard: bool) -> None:
    outbox = Outbox(100)
    texts: list[str | None] = [""]

    async def reader() -> None:
        texts.append(await outbox.get())

    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reader)
            await anyio.wait_all_tasks_blocked()
            outbox.close(discard=discard)
    assert texts == ["", None]


async def test_what_waits_is_handed_out_after_closing_and_nothing_is_taken_any_more() -> None:
    outbox = Outbox(2)
    outbox.put("a")
    outbox.close()
    assert outbox.put("dropped, and too long")  # a dropped frame is no reason to close the connection
    assert outbox.size == 1
    outbox.close()
    assert await drain(outbox) == ["a"]
    assert await outbox.get() is None


async def test_what_waits_can_be_discarded() -> None:
    outbox = Outbox(100)
    outbox.put("a")
    outbox.put("b")
    outbox.close()
    outbox.close(discard=True)
    assert outbox.size == 0
    assert await outbox.get() is None


async def test_a_message_that_is_discarded_before_its_reader_runs_is_not_handed_out() -> None:
    outbox = Outbox(100)
    texts: list[str | None] = []

    async def reader() -> None:
        texts.append(await outbox.get())

    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reader)
            await anyio.wait_all_tasks_blocked()
            outbox.put("a")
            outbox.close(discard=True)
    assert texts == [None]


async def test_cancelling_a_wait_loses_nothing() -> None:
    outbox = Outbox(100)
    for text in ("a", "b"):
        waiting = asyncio.ensure_future(outbox.get())
        await checkpoint()
        assert not waiting.done()
        waiting.cancel()
        if text == "b":
            outbox.put(text)  # while the cancellation is on its way
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert outbox.size == 1
    assert await outbox.get() == "b"


async def test_cancelling_a_reader_that_was_woken_loses_nothing() -> None:
    outbox = Outbox(100)
    waiting = asyncio.ensure_future(outbox.get())
    await checkpoint()
    outbox.put("a")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (outbox.size, await outbox.get()) == (1, "a")


operations = st.lists(st.sampled_from(["get", "close", "discard"]) | st.text("aé", max_size=4), max_size=30)


@given(operations, st.integers(0, 12))
async def test_an_outbox_is_a_bounded_queue(operations: list[str], limit: int) -> None:
    outbox = Outbox(limit)
    model: deque[str] = deque()
    closed = False
    for operation in operations:
        if operation in ("close", "discard"):
            outbox.close(discard=operation == "discard")
            closed = True
            if operation == "discard":
                model.clear()
        elif operation != "get":
            fits = not model or len("".join([*model, operation]).encode()) <= limit
            assert outbox.put(operation) is (closed or fits)
            if fits and not closed:
                model.append(operation)
        elif model:
            assert await outbox.get() == model.popleft()
        elif closed:
            assert await outbox.get() is None
        assert outbox.size == len("".join(model).encode())
    outbox.close()
    assert await drain(outbox) == list(model)


# --- events that may be dropped -----------------------------------------------------------------------------


def dropped(topic: str | None, count: int) -> str:
    name = json.dumps(topic)
    return f'{{"type":"event","payload":{{"topic":"dropped","event":{{"count":{count},"topic":{name}}}}}}}'


def all_of(outbox: Outbox) -> list[str]:
    """Take all frames that are in the outbox now, ``dropped`` events included."""
    texts = []
    while (text := outbox.get_nowait()) is not None:
        texts.append(text)
    return texts


def bytes_in(outbox: Outbox) -> int:
    """Count the bytes of the frames that a copy of the outbox hands out, ``dropped`` events excluded."""
    return sum(len(text) for text in all_of(copy.deepcopy(outbox)) if not text.startswith("{"))


async def test_the_oldest_events_make_room_and_the_reader_is_told_how_many() -> None:
    outbox = Outbox(6)
    assert [outbox.put_event(text, "t", "drop_oldest") for text in ("aa", "bb", "cc", "dd", "eeee")] == [0, 0, 0, 1, 2]
    assert outbox.size == 6
    assert all_of(outbox) == [dropped("t", 3), "dd", "eeee"]
    assert outbox.put_event("ff", "t", "drop_oldest") == 0
    assert all_of(outbox) == ["ff"]


async def test_what_has_to_be_kept_takes_the_place_of_events() -> None:
    outbox = Outbox(6)
    outbox.put_event("aa", "t", "drop_oldest")
    outbox.put("bb")
    outbox.put_event("cc", "u", "drop_oldest")
    assert outbox.put("dddd")
    assert not outbox.put("e")
    assert outbox.size == 6
    assert all_of(outbox) == [dropped("t", 1), "bb", dropped("u", 1), "dddd"]
    assert outbox.size == 0


async def test_an_event_that_finds_no_room_is_lost_itself() -> None:
    outbox = Outbox(4)
    outbox.put("aaaa")
    assert outbox.put_event("b", "t", "drop_oldest") == 1
    assert outbox.put_event("b", "t", "latest") == 1
    assert all_of(outbox) == [dropped("t", 2), "aaaa"]


async def test_of_some_topics_only_the_latest_is_kept() -> None:
    outbox = Outbox(100)
    assert outbox.put_event("a1", "a", "latest") == 0
    assert outbox.put_event("b1", "b", "latest") == 0
    assert outbox.put_event("a22", "a", "latest") == 1
    outbox.put("x")
    assert outbox.size == 6
    assert all_of(outbox) == ["a22", "b1", "x"]
    assert outbox.put_event("a3", "a", "latest") == 0
    assert all_of(outbox) == ["a3"]


async def test_a_latest_that_grows_too_big_is_a_new_one() -> None:
    outbox = Outbox(5)
    outbox.put_event("a1", "a", "latest")
    outbox.put("xx")
    assert outbox.put_event("a2345", "a", "latest") == 2
    assert all_of(outbox) == [dropped("a", 2), "xx"]
    # The dropped event is forgotten: it is not replaced in the place of a new one.
    assert outbox.put_event("a3", "a", "latest") == 0
    assert all_of(outbox) == ["a3"]


async def test_an_empty_outbox_takes_an_event_of_any_size() -> None:
    outbox = Outbox(4)
    assert outbox.put_event("a" * 100, "t", "drop_oldest") == 0
    assert outbox.put_event("b" * 100, "t", "drop_oldest") == 1
    assert all_of(outbox) == [dropped("t", 1), "b" * 100]


async def test_a_reader_that_waits_gets_an_event() -> None:
    outbox = Outbox(4)
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(outbox.get)
            await anyio.wait_all_tasks_blocked()
            outbox.put_event("a", "t", "drop_oldest")


@pytest.mark.parametrize("discard", [True, False])
async def test_a_closed_outbox_takes_no_event_and_tells_of_none(discard: bool) -> None:
    outbox = Outbox(2)
    for text in ("aa", "bb"):
        outbox.put_event(text, "t", "drop_oldest")
    outbox.close(discard=discard)
    assert outbox.put_event("cc", "t", "drop_oldest") == 0
    assert await drain(outbox) == ([] if discard else ["bb"])


async def test_what_was_dropped_does_not_keep_a_slow_reader_from_getting_events() -> None:
    outbox, read = Outbox(20), []
    for number in range(100):
        # For each message that the reader takes, two of other topics are dropped.
        for each in ("a", "b"):
            outbox.put_event(f"{number:010}", f"{each}{number % 5}", "drop_oldest")
        read.append(await outbox.get())
    assert sum(text is not None and not text.startswith("{") for text in read) >= 49


async def test_events_of_more_topics_than_can_be_told_apart_are_told_together() -> None:
    outbox = Outbox(1)
    for number in range(1000):
        outbox.put_event("x", f"topic {number}", "drop_oldest")
    told = [text for text in all_of(outbox) if text.startswith("{")]
    assert len(told) == MAX_DROPPED_TOPICS + 1
    assert told[0] == dropped("topic 0", 1)
    assert told[-1] == dropped(None, 999 - MAX_DROPPED_TOPICS)


async def test_events_that_were_dropped_take_no_memory() -> None:
    outbox = Outbox(200)
    outbox.put("x" * 100)
    tracemalloc.start()
    for number in range(10_000):
        outbox.put_event(f"{number:010}", "t", "drop_oldest")
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 100_000  # 10,000 empty places would take more than 600,000 bytes
    texts = all_of(outbox)
    assert texts[0] == dropped("t", 9990)
    assert texts[2:] == [f"{number:010}" for number in range(9990, 10_000)]


@given(
    st.integers(1, 20),
    st.lists(
        st.tuples(
            st.sampled_from(["put", "drop_oldest", "latest", "get"]), st.integers(1, 8), st.sampled_from(["a", "b"])
        )
    ),
)
def test_nothing_is_lost_but_what_may_be_and_all_of_it_is_told(
    limit: int, operations: list[tuple[str, int, str]]
) -> None:
    async def run() -> None:
        outbox, kept, lossy, read = Outbox(limit), 0, 0, []
        for number, (operation, size, topic) in enumerate(operations):
            text = f"{number},".ljust(size + 4, "x")
            if operation == "put":
                kept += outbox.put(text)
            elif operation == "get":
                if (text := outbox.get_nowait() or "") != "":
                    read.append(text)
            else:
                lossy += 1
                outbox.put_event(text, topic, operation)  # type: ignore[arg-type]
            assert outbox.size == bytes_in(outbox)
        read += all_of(outbox)
        numbers = [int(text.partition(",")[0]) for text in read if text and not text.startswith("{")]
        assert len(numbers) == len(set(numbers))
        assert len([n for n in numbers if operations[n][0] == "put"]) == kept
        told = sum(int(text.split('"count":')[1].split(",")[0]) for text in read if text and text.startswith("{"))
        arrived = len(numbers) - kept
        # Events replaced by later events of their topic are counted, but not reported.
        assert told <= lossy - arrived
        if not any(operation == "latest" for operation, _, _ in operations):
            assert told == lossy - arrived
        assert outbox.size == 0

    asyncio.run(run())

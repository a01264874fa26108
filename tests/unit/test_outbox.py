from __future__ import annotations

import asyncio
from collections import deque

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given
from hypothesis import strategies as st

from nuropb_gateway_asgi._outbox import Outbox


async def drain(outbox: Outbox) -> list[str]:
    """All that is left in a closed outbox."""
    texts = []
    with anyio.fail_after(10):
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

    with anyio.fail_after(10):
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

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reader)
            await anyio.wait_all_tasks_blocked()
            outbox.close(discard=discard)
    assert texts == ["", None]


async def test_what_waits_is_handed_out_after_closing_and_nothing_is_taken_any_more() -> None:
    outbox = Outbox(2)
    outbox.put("a")
    outbox.close()
    assert outbox.put("dropped, and too long")  # nobody has to be hung up on for it
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

    with anyio.fail_after(10):
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

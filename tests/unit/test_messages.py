"""What waits for a WebSocket's receive(): the queue of server.py."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from nuropb_gateway_asgi.server.websocket import _Messages


async def test_messages_come_in_their_order() -> None:
    messages = _Messages()
    for number in range(3):
        messages.put_nowait(number)
    assert not messages.empty()
    assert (messages.get_nowait(), await messages.get(), await messages.get()) == (0, 1, 2)
    assert messages.empty()
    assert messages.qsize() == 0


async def test_whoever_waits_is_woken_and_all_of_them_get_one() -> None:
    messages, got = _Messages(), []

    async def read() -> None:
        got.append(await messages.get())

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            messages.put_nowait("a")
            await anyio.wait_all_tasks_blocked()
            assert got == ["a"]
            messages.put_nowait("b")
            messages.put_nowait("c")
    assert sorted(got) == ["a", "b", "c"]


async def test_a_reader_that_is_cancelled_loses_no_message() -> None:
    messages = _Messages()
    reader = asyncio.create_task(messages.get())
    await anyio.wait_all_tasks_blocked()
    messages.put_nowait("kept")
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    with anyio.fail_after(5):
        assert await messages.get() == "kept"

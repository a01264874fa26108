"""The receive queue of a WebSocket."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from nuropb_gateway_asgi.server.message_queue import MessageQueue
from tests.kit.waiting import DEADLINE


async def test_messages_keep_their_order() -> None:
    messages = MessageQueue()
    for number in range(3):
        messages.put_nowait(number)
    assert not messages.empty()
    assert (messages.get_nowait(), await messages.get(), await messages.get()) == (0, 1, 2)
    assert messages.empty()
    assert messages.qsize() == 0


async def test_each_waiting_reader_gets_one_message() -> None:
    messages, got = MessageQueue(), []

    async def read() -> None:
        got.append(await messages.get())

    with anyio.fail_after(DEADLINE):
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


async def test_a_cancelled_reader_loses_no_message() -> None:
    messages = MessageQueue()
    reader = asyncio.create_task(messages.get())
    await anyio.wait_all_tasks_blocked()
    messages.put_nowait("kept")
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    with anyio.fail_after(DEADLINE):
        assert await messages.get() == "kept"

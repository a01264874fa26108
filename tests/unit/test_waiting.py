from __future__ import annotations

import asyncio
import time

import pytest

from tests.kit.waiting import in_time


async def test_what_does_not_end_in_time_is_given_up() -> None:
    with pytest.raises(TimeoutError):
        async with in_time(0.02):
            await asyncio.Event().wait()


async def test_time_in_which_the_process_was_not_let_run_is_not_counted() -> None:
    async with in_time(0.2):
        time.sleep(0.3)
        for _ in range(3):
            await asyncio.sleep(0)


async def test_what_ends_in_time_leaves_nothing_behind() -> None:
    before = asyncio.all_tasks()
    async with in_time(60):
        pass
    assert asyncio.all_tasks() == before

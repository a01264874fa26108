from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncIterator, Callable

import pytest
import sniffio

from nuropb_gateway_asgi.tasks import TaskOwner, in_own_task
from tests.kit.waiting import eventually


class Fault(Exception):
    pass


async def forever() -> None:
    await asyncio.Event().wait()


async def fail() -> None:
    raise Fault


# --- tasks of a context -------------------------------------------------------------------------------------------


async def test_a_bare_callback_starts_a_task() -> None:
    libraries: list[str] = []

    def callback(owner: TaskOwner) -> None:
        with pytest.raises(sniffio.AsyncLibraryNotFoundError):
            sniffio.current_async_library()
        owner.start_soon(work)

    async def work() -> None:
        libraries.append(sniffio.current_async_library())

    async with TaskOwner() as owner:
        # anyio's test runner sets sniffio's context variable, which a callback of a socket does not have.
        asyncio.get_running_loop().call_soon(callback, owner, context=contextvars.Context())
        await eventually(lambda: libraries)
    assert libraries == ["asyncio"]


async def test_the_end_cancels_the_tasks_and_waits_for_them() -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            await forever()
        finally:
            await asyncio.sleep(0)
            ended.append("work")

    async with TaskOwner() as owner:
        owner.start_soon(work)
        await asyncio.sleep(0)
    assert ended == ["work"]
    with pytest.raises(RuntimeError, match="outside the context"):
        owner.start_soon(forever)


async def test_a_task_that_catches_a_cancellation_is_cancelled_again() -> None:
    caught: list[str] = []

    async def work() -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            caught.append("once")
        await forever()

    async with TaskOwner() as owner:
        owner.start_soon(work)
        await asyncio.sleep(0)
    assert caught == ["once"]


async def test_cancel_ends_the_body() -> None:
    async with TaskOwner() as owner:
        asyncio.get_running_loop().call_soon(owner.cancel)
        await forever()
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


async def test_an_error_of_a_task_ends_the_context() -> None:
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012
        async with TaskOwner() as owner:
            owner.start_soon(forever)
            owner.start_soon(fail)
            await forever()
    assert [type(error) for error in caught.value.exceptions] == [Fault]


async def test_an_error_at_the_end_is_raised_too() -> None:
    async def work() -> None:
        try:
            await forever()
        finally:
            raise Fault

    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012
        async with TaskOwner() as owner:
            owner.start_soon(work)
            await asyncio.sleep(0)
            raise ValueError
    assert [type(error) for error in caught.value.exceptions] == [ValueError, Fault]


async def test_a_cancellation_from_outside_goes_on() -> None:
    started, owners = asyncio.Event(), []

    async def host() -> None:
        async with TaskOwner() as owner:
            owners.append(owner)
            owner.start_soon(forever)
            started.set()
            await forever()

    task = asyncio.create_task(host())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# --- a task for a context -----------------------------------------------------------------------------------------

Steps = list[str]


def make_context(
    steps: Steps, failing: asyncio.Event | None = None
) -> Callable[[], contextlib.AbstractAsyncContextManager[int]]:
    @in_own_task
    @contextlib.asynccontextmanager
    async def context() -> AsyncIterator[int]:
        async with asyncio.TaskGroup() as tasks:  # it belongs to one task
            task = tasks.create_task(_fail_at(failing))
            steps.append("entered")
            try:
                yield 7
            finally:
                task.cancel()
                await asyncio.sleep(0)
                steps.append("left")

    return context


async def _fail_at(failing: asyncio.Event | None) -> None:
    await (failing or asyncio.Event()).wait()
    raise Fault


async def test_a_context_is_entered_in_one_task_and_left_in_another() -> None:
    steps: Steps = []
    context = make_context(steps)()
    assert await asyncio.create_task(context.__aenter__()) == 7
    assert steps == ["entered"]
    await asyncio.create_task(context.__aexit__(None, None, None))
    assert steps == ["entered", "left"]


async def test_a_failing_context_cancels_its_body() -> None:
    failing, steps = asyncio.Event(), Steps()
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012
        async with make_context(steps, failing)():
            failing.set()
            await forever()
    assert [type(error) for error in caught.value.exceptions] == [Fault]
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


async def test_a_context_that_fails_while_no_task_has_it_raises_at_its_end(caplog: pytest.LogCaptureFixture) -> None:
    failing = asyncio.Event()
    context = make_context([], failing)()
    await asyncio.create_task(context.__aenter__())
    failing.set()
    await eventually(lambda: "its end raises the error" in caplog.text)
    with pytest.raises(ExceptionGroup):
        await context.__aexit__(None, None, None)


async def test_errors_of_the_entering_and_of_the_body_are_raised_as_they_are() -> None:
    @in_own_task
    @contextlib.asynccontextmanager
    async def context() -> AsyncIterator[None]:
        raise Fault
        yield

    with pytest.raises(Fault):
        await context().__aenter__()
    steps: Steps = []
    with pytest.raises(ValueError, match="of the body"):
        async with make_context(steps)():
            raise ValueError("of the body")
    assert steps == ["entered", "left"]


async def test_a_cancelled_body_leaves_its_context_first() -> None:
    steps: Steps = []

    async def host() -> None:
        async with make_context(steps)():
            await forever()

    task = asyncio.create_task(host())
    await eventually(lambda: steps)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps == ["entered", "left"]


async def test_a_cancelled_entering_leaves_no_task() -> None:
    ended = asyncio.Event()

    @in_own_task
    @contextlib.asynccontextmanager
    async def context() -> AsyncIterator[None]:
        try:
            await forever()
        finally:
            ended.set()
        yield

    task = asyncio.create_task(context().__aenter__())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()

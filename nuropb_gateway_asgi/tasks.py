"""Owners of tasks: a group that callbacks of the event loop may start tasks in, and a task for a whole context.

anyio's task groups start tasks only from within a task: with the package ``sniffio`` installed, anyio finds no event
loop in a bare callback. Messages of the mesh and of the direct WebSocket arrive in such callbacks.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from types import FrameType, TracebackType
from typing import Any, Final, ParamSpec, TypeVar

import anyio

__all__ = ["TaskOwner", "in_own_task", "on_hangup"]

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

#: Seconds between two cancellations of a task that caught the first one and went on.
CANCEL_INTERVAL: Final = 1.0


class TaskOwner:
    """Owns tasks that tasks and callbacks start. An async context manager, entered and left by the same task.

    The end of the context cancels the tasks and waits for them. A task that fails cancels the context's body and the
    other tasks, and the context raises its error in an ExceptionGroup.
    """

    __slots__ = ("_errors", "_is_open", "_scope", "_tasks")

    def __init__(self) -> None:
        self._is_open = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._errors: list[BaseException] = []
        self._scope: anyio.CancelScope

    async def __aenter__(self) -> TaskOwner:
        self._is_open = True
        self._scope = anyio.CancelScope()
        self._scope.__enter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self._is_open = False
        interrupted = await _end(self._tasks) if self._tasks else False
        swallowed = bool(self._scope.__exit__(exc_type, exc, traceback))
        if self._errors:
            if exc is not None and not isinstance(exc, asyncio.CancelledError):
                self._errors.insert(0, exc)
            raise BaseExceptionGroup("errors of tasks", self._errors)
        if interrupted:
            raise asyncio.CancelledError
        return swallowed

    def start_soon(
        self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any, name: str | None = None
    ) -> None:
        """Run ``function`` in a task. Raises RuntimeError outside the context."""
        if not self._is_open:
            raise RuntimeError("no task can be started outside the context of its owner")
        task = asyncio.get_running_loop().create_task(function(*args), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_end)

    def cancel(self) -> None:
        """Cancel the body of the context, whose end cancels the tasks."""
        self._scope.cancel()

    def _on_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._errors.append(error)
            if self._is_open:
                self._scope.cancel()


def in_own_task(
    function: Callable[P, contextlib.AbstractAsyncContextManager[T]],
) -> Callable[P, contextlib.AbstractAsyncContextManager[T]]:
    """Make the context managers of ``function`` enterable in one task and leavable in another.

    Each is entered and left by a task of its own, since a task group and a cancel scope belong to one task. Fixtures of
    pytest-asyncio, for example, enter and leave in two. A context that fails while its body runs cancels the task that
    entered it, if that task still runs; the exit raises the error.
    """

    @contextlib.asynccontextmanager
    @functools.wraps(function)
    async def managed(*args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        loop = asyncio.get_running_loop()
        host = asyncio.current_task()
        entered: asyncio.Future[T] = loop.create_future()
        left = asyncio.Event()

        async def run() -> None:
            async with function(*args, **kwargs) as value:
                entered.set_result(value)
                await left.wait()

        task = loop.create_task(run(), name=function.__qualname__)
        try:
            await asyncio.wait((task, entered), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            task.cancel()
            await _leave(task)
            raise
        if not entered.done():
            entered.cancel()
            await task  # raises
            raise RuntimeError("the context ended before it was entered")
        interrupted = False

        def on_end(_: object) -> None:
            nonlocal interrupted
            if left.is_set():
                return
            if host is None or host.done():
                logger.error("%s failed; its end raises the error", function.__qualname__)
            else:
                interrupted = True
                host.cancel()

        task.add_done_callback(on_end)
        try:
            yield entered.result()
        finally:
            left.set()
            if interrupted and host is not None:
                host.uncancel()
            cancelled = await _leave(task)
            task.result()
            if cancelled:
                raise asyncio.CancelledError

    return managed


async def _leave(task: asyncio.Task[None]) -> bool:
    """Wait for the end of ``task``, and cancel it if the caller is cancelled; return whether it was."""
    cancelled = False
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait((task,))
            except asyncio.CancelledError:
                cancelled = True
                task.cancel()
    return cancelled


@contextlib.contextmanager
def on_hangup(function: Callable[[], object]) -> Iterator[None]:
    """Make SIGHUP call ``function`` on the event loop, and then the previous handler, while the context lasts.

    The signal's default action would end the process.
    """
    number = getattr(signal, "SIGHUP", None)  # missing on Windows
    if number is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    saved = signal.getsignal(number) or signal.SIG_DFL  # None: a handler that Python did not install

    def on_signal(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(function)
        if callable(saved):
            saved(number, frame)

    signal.signal(number, on_signal)
    try:
        yield
    finally:
        if signal.getsignal(number) is on_signal:
            signal.signal(number, saved)


async def _end(tasks: set[asyncio.Task[None]]) -> bool:
    """Cancel ``tasks`` until each has left the set, even if the caller is cancelled; return whether it was."""
    cancelled = False
    with anyio.CancelScope(shield=True):
        while tasks:
            for task in tasks:
                task.cancel()
            try:
                await asyncio.wait(tasks, timeout=CANCEL_INTERVAL)
            except asyncio.CancelledError:
                cancelled = True
    return cancelled

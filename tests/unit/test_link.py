from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import anyio
import pytest
from aiormq.abc import AbstractChannel
from aiormq.exceptions import AMQPConnectionError, ChannelClosed

from nuropb_gateway_asgi.mesh.rabbitmq import _link
from nuropb_gateway_asgi.mesh.rabbitmq._connection import Connection
from nuropb_gateway_asgi.mesh.rabbitmq._errors import explain
from nuropb_gateway_asgi.mesh.rabbitmq._link import Link

from .fakes import until


class FakeConnection:
    """A connection that lasts until its test ends it."""

    def __init__(self) -> None:
        self.closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.aborted = False
        self.closed = 0
        self.close_error: BaseException | None = None

    def abort(self) -> None:
        self.aborted = True

    async def close(self) -> None:
        self.closed += 1
        if self.close_error is not None:
            raise self.close_error


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_link, "FIRST_RECONNECT", 0.001)
    monkeypatch.setattr(_link, "LAST_RECONNECT", 0.002)


class Stage:
    """A link with connections that the test makes."""

    def __init__(self, *, in_set_up: Sequence[BaseException] = (), on_connect: Sequence[Any] = ()) -> None:
        #: What the channels raise at the end of a connection.
        self.at_the_end: BaseException | None = None
        self.connections: list[FakeConnection] = []
        self.changes: list[bool] = []
        self._in_set_up = list(in_set_up)
        self._on_connect = list(on_connect)
        self.link = Link("testing", self._connect, self._set_up, self._on_change)

    async def _connect(self) -> Connection:
        next_ = self._on_connect.pop(0) if self._on_connect else FakeConnection()
        if isinstance(next_, BaseException):
            raise next_
        self.connections.append(next_)
        return cast("Connection", next_)

    @contextlib.asynccontextmanager
    async def _set_up(self, connection: Connection) -> AsyncIterator[Sequence[AbstractChannel]]:
        if self._in_set_up:
            raise self._in_set_up.pop(0)
        yield ()
        if self.at_the_end is not None:
            raise self.at_the_end

    def _on_change(self) -> None:
        self.changes.append(self.link.up)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.link.run())
        try:
            yield task
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


#: Exceptions of aiormq for connections lost at various moments, and exceptions of no library.
ERRORS: list[BaseException] = [
    AMQPConnectionError("refused"),
    ChannelClosed(None, "gone"),
    RuntimeError("Connection closed"),
    Exception("a bare one"),
    OSError("network is unreachable"),
    asyncio.CancelledError(),
    TimeoutError(),
    KeyError("tune"),
    ExceptionGroup("from the tasks of a set-up", [RuntimeError("x"), OSError("y")]),
    BaseExceptionGroup("cancelled within", [asyncio.CancelledError()]),
]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("where", ["connect", "set up", "close"])
async def test_whatever_goes_wrong_the_next_attempt_is_made(where: str, error: BaseException) -> None:
    stage = Stage(
        on_connect=[error] * 2 if where == "connect" else (), in_set_up=[error] * 2 if where == "set up" else ()
    )
    async with stage.running() as task:
        await until(lambda: stage.link.up)
        if where == "close":
            first = stage.connections[0]
            first.close_error = error
            first.closing.set_result(None)
            await until(lambda: len(stage.connections) == 2 and stage.link.up)
        assert stage.link.problem is None
        assert not task.done()
    assert all(connection.closed == 1 for connection in stage.connections)


async def test_a_connection_that_is_gone_before_it_is_used_is_made_again() -> None:
    gone = FakeConnection()
    gone.closing.set_exception(AMQPConnectionError("closed"))
    stage = Stage(on_connect=[gone])
    async with stage.running():
        await until(lambda: len(stage.connections) == 2 and stage.link.up)


@pytest.mark.parametrize("error", [OSError("gone"), None])
async def test_a_loss_is_told_with_its_reason(error: OSError | None) -> None:
    stage = Stage()
    async with stage.running():
        await until(lambda: stage.link.up)
        closing = stage.connections[0].closing
        if error is None:
            closing.cancel()
        else:
            closing.set_exception(error)
        await until(lambda: len(stage.connections) == 2)
    assert stage.changes[:2] == [True, False]


async def test_a_connection_may_be_given_up(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage()
    with caplog.at_level(logging.WARNING):
        async with stage.running():
            await until(lambda: stage.link.up)
            stage.link.abort("a message to itself did not come back")
            await until(lambda: len(stage.connections) == 2 and stage.link.up)
    assert stage.connections[0].aborted
    assert [record.getMessage() for record in caplog.records] == [
        "mesh: testing connection: a message to itself did not come back"
    ]


async def test_a_channel_that_ends_late_does_not_end_the_next_connection(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage()
    with caplog.at_level(logging.WARNING):
        async with stage.running():
            await until(lambda: stage.link.up)
            stage.link.abort("no answer to a ping")
            await until(lambda: len(stage.connections) == 2 and stage.link.up)
            stage.connections[0].closing.cancel()
            for _ in range(5):
                await asyncio.sleep(0)
            assert stage.link.up
    assert (len(stage.connections), len(caplog.records)) == (2, 1)


@pytest.mark.parametrize("error", ERRORS, ids=repr)
async def test_a_loss_is_told_once_whatever_the_channels_of_the_connection_raise(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage()
    stage.at_the_end = error
    with caplog.at_level(logging.WARNING):
        async with stage.running():
            await until(lambda: stage.link.up)
            stage.connections[0].closing.set_exception(OSError("gone"))
            await until(lambda: len(stage.connections) == 2 and stage.link.up)
            stage.at_the_end = None
    assert [record.getMessage() for record in caplog.records] == ["mesh: testing connection: OSError: gone"]


async def test_a_problem_that_several_links_have_is_logged_by_one_of_them_at_a_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    one, other = Stage(on_connect=[OSError("refused")] * 3), Stage(on_connect=[OSError("refused")] * 200)
    one.link.siblings = other.link.siblings = (one.link, other.link)
    one.link.name, other.link.name = "one", "other"
    async with one.running():
        await until(lambda: one.link.problem == "OSError: refused")
        async with other.running():
            await until(lambda: one.link.up)
            # Now the other one is alone with it.
            await until(lambda: len(caplog.records) == 2)
            await until(lambda: other.link.up)
    said = [record.getMessage() for record in caplog.records][:2]
    assert said == ["mesh: one connection: OSError: refused", "mesh: other connection: OSError: refused"]
    assert len(caplog.records) == 2


async def test_what_is_no_error_of_a_connection_is_not_kept_silent() -> None:
    class Bug(BaseException):
        pass

    stage = Stage(in_set_up=[BaseExceptionGroup("from a task", [Bug()])])
    with pytest.raises(BaseExceptionGroup):
        await stage.link.run()


async def test_it_ends_when_it_is_cancelled() -> None:
    stage = Stage()
    async with stage.running() as task:
        await until(lambda: stage.link.up)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not stage.link.up
    assert stage.connections[0].closed == 1


async def test_a_connection_is_closed_in_good_order_when_the_scope_around_is_cancelled() -> None:
    closed: list[str] = []

    class Polite(FakeConnection):
        async def close(self) -> None:
            for _ in range(5):
                await asyncio.sleep(0)
            closed.append("in good order")

    stage = Stage(on_connect=[Polite()])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stage.link.run)
        await until(lambda: stage.link.up)
        tasks.cancel_scope.cancel()
    assert closed == ["in good order"]


async def test_a_connection_that_does_not_close_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_link, "BROKER_CLOSE_TIMEOUT", 0.01)

    class Silent(FakeConnection):
        async def close(self) -> None:
            await asyncio.Event().wait()

    silent = Silent()
    stage = Stage(on_connect=[silent])
    async with stage.running():
        await until(lambda: stage.link.up)
    assert silent.aborted


def test_an_error_that_is_its_own_cause_can_be_explained() -> None:
    one, other = ConnectionError("one"), ConnectionError("other")
    one.__cause__, other.__cause__ = other, one
    assert explain(one) == "ConnectionError: one"

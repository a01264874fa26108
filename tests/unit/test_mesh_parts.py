from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import pytest
from aiormq.abc import AbstractChannel
from aiormq.exceptions import (
    AMQPConnectionError,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    ConnectionInternalError,
    ConnectionResourceError,
)

from nuropb_gateway_asgi.mesh.rabbitmq import _parts
from nuropb_gateway_asgi.mesh.rabbitmq._connection import Connection
from nuropb_gateway_asgi.mesh.rabbitmq._parts import Part

from .fakes import until


class FakeConnection:
    """A connection until its test ends it."""

    end: BaseException | None = None


CONNECTION = cast("Connection", FakeConnection())
NODE_DOWN = ChannelNotFoundEntity("home node is down")


class FakeChannel:
    """A channel until its test ends it."""

    def __init__(self) -> None:
        self.closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.closed = 0

    async def close(self) -> None:
        self.closed += 1


class Stage:
    """A part whose queue fails by ``errors``, one for each declaration."""

    def __init__(self, *errors: BaseException | None) -> None:
        self.errors = list(errors)
        self.declared = 0
        self.channels: list[FakeChannel] = []
        self.part = Part("the queue sq", "nobody is called", self._declare, self._consume)

    async def _declare(self, connection: Connection) -> None:
        self.declared += 1
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error

    async def _consume(self, connection: Connection) -> Sequence[AbstractChannel]:
        self.channels.append(FakeChannel())
        return cast("Sequence[AbstractChannel]", self.channels[-1:])

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        await self.part.attempt(CONNECTION)
        task = asyncio.create_task(self.part.keep(CONNECTION))
        try:
            yield task
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RETRY_INTERVAL", "SETTLE_TIME"):
        monkeypatch.setattr(_parts, name, 0.001)


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    return [(record.levelno, record.getMessage()) for record in caplog.records]


@pytest.mark.parametrize("error", [NODE_DOWN, ChannelPreconditionFailed("inequivalent arg"), TimeoutError()], ids=repr)
async def test_a_part_that_is_missing_is_told_once_and_tried_on(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    stage = Stage(*[error] * 5)
    await stage.part.attempt(CONNECTION)
    warning = stage.part.warning or ""
    assert warning.startswith("the queue sq is missing (")
    assert warning.endswith("): nobody is called")
    async with stage.running():
        await until(lambda: stage.part.warning is None)
    assert lines(caplog) == [(logging.WARNING, f"mesh: {warning}"), (logging.INFO, "mesh: the queue sq is there again")]
    assert stage.declared == 6


async def test_a_part_may_be_set_up_by_its_keeper() -> None:
    stage = Stage(NODE_DOWN)
    task = asyncio.create_task(stage.part.keep(CONNECTION, attempt=True))
    await until(lambda: stage.part.is_there)
    assert stage.declared == 2
    task.cancel()


async def test_a_part_that_is_there_is_not_told_of(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with Stage().running():
        pass
    assert lines(caplog) == []


@pytest.mark.parametrize("error", [ConnectionInternalError("541"), ConnectionResourceError("506")], ids=repr)
@pytest.mark.parametrize("told_by", ["the error", "the end of the connection"])
async def test_a_part_that_costs_a_connection_is_left_alone_for_a_while(
    error: AMQPConnectionError, told_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_parts, "RETRY_INTERVAL", 0.05)
    connection = FakeConnection()
    if told_by == "the error":
        stage = Stage(error)
        with pytest.raises(type(error)):
            await stage.part.attempt(cast("Connection", connection))
    else:
        connection.end = error
        stage = Stage(TimeoutError("the history was lost"))
        await stage.part.attempt(cast("Connection", connection))
    warning = stage.part.warning
    async with stage.running():  # on the next connection
        assert stage.declared == 1
        assert (stage.part.warning, stage.part.is_there) == (warning, False)
        await until(lambda: stage.part.is_there)
    assert stage.declared == 2


@pytest.mark.parametrize("error", [AMQPConnectionError("cut"), asyncio.CancelledError()], ids=repr)
async def test_a_part_whose_connection_is_lost_is_tried_on_the_next_one(error: BaseException) -> None:
    stage = Stage(error)
    with pytest.raises(type(error)):
        await stage.part.attempt(CONNECTION)
    await stage.part.attempt(CONNECTION)
    assert (stage.declared, stage.part.is_there) == (2, True)


@pytest.mark.parametrize("how", ["cancelled", "closed"])
async def test_a_part_that_is_lost_is_set_up_again(how: str) -> None:
    stage = Stage()
    async with stage.running():
        if how == "cancelled":
            stage.part.lose()
        else:
            stage.channels[0].closing.set_exception(NODE_DOWN)
        await until(lambda: len(stage.channels) == 2)
    assert stage.channels[0].closed == 1
    assert stage.part.warning is None


async def test_a_channel_that_ends_late_does_not_end_the_next_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_parts, "SETTLE_TIME", 0)
    stage = Stage()
    await stage.part.attempt(CONNECTION)
    async with stage.running():
        stage.channels[0].closing.set_exception(NODE_DOWN)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(stage.channels) == 2


async def test_a_part_is_declared_again_on_request_and_its_loss_noticed() -> None:
    stage = Stage()
    async with stage.running():
        await stage.part.reassert(CONNECTION)
        assert (stage.declared, len(stage.channels)) == (2, 1)
        stage.errors.append(NODE_DOWN)
        await stage.part.reassert(CONNECTION)
        assert stage.part.warning is not None
        await until(lambda: stage.part.warning is None and len(stage.channels) == 2)


async def test_a_part_that_is_missing_is_not_declared_on_request() -> None:
    stage = Stage(NODE_DOWN)
    await stage.part.attempt(CONNECTION)
    await stage.part.reassert(CONNECTION)
    assert stage.declared == 1


@pytest.mark.parametrize("error", [AMQPConnectionError("lost"), RuntimeError("closed"), asyncio.CancelledError()])
async def test_the_loss_of_the_connection_is_no_fault_of_a_part(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    stage: Any = Stage(error)
    with pytest.raises(type(error)):
        await stage.part.attempt(CONNECTION)
    assert stage.part.warning is None
    assert lines(caplog) == []

"""Connections to the broker that fail as networks do: cut, stalled, half-open, refused, slow."""

from __future__ import annotations

import functools
import itertools
import time
from collections import Counter
from typing import Literal

import pytest

from tests.integration.scene import Record, Scene, eventually_within, log_lines, scene
from tests.kit.clients import connect, refusal
from tests.servers.faults import Direction, Purpose

#: Seconds.
NOTICED, HALF_OPEN_NOTICED, RECOVERED, FAST = 2.0, 10.0, 3.0, 1.0


@pytest.mark.parametrize("how", ["reset", "end"])
@pytest.mark.parametrize("purpose", [None, "publish", "consume", "stream"])
async def test_a_cut_costs_no_call_that_the_service_has(
    amqp_url: str, purpose: Purpose | None, how: Literal["reset", "end"], record_property: Record
) -> None:
    async with scene(amqp_url) as set_:
        assert len(set_.proxy.connections(purpose)) == (3 if purpose is None else 1)
        in_flight = await set_.hold(15)
        set_.begin()
        set_.proxy.cut(purpose, how=how)
        set_.service.released.set()
        await set_.notices(NOTICED, set_.reconnected())
        for caller, ids in in_flight:
            assert await caller.ended(ids) == {"ok": 15}
        await set_.recovers(RECOVERED)
        set_.check(record_property, f"{how} of {purpose or 'all'}", in_flight)


def _published_more(set_: Scene, before: int) -> bool:
    return set_.mesh.statistics.published > before


async def test_calls_around_cuts_end_once_and_run_once_at_the_most(amqp_url: str, record_property: Record) -> None:
    async with scene(amqp_url, clients=3, max_in_flight=1000) as set_:
        rounds = []
        purposes: itertools.cycle[Purpose | None] = itertools.cycle((None, "publish", "consume", "stream"))
        for purpose in itertools.islice(purposes, 12):
            reconnected, published = set_.reconnected(), set_.mesh.statistics.published
            rounds += [(caller, await caller.start(count=10, timeout=3.0)) for caller in set_.callers]
            await eventually_within(RECOVERED, functools.partial(_published_more, set_, published))
            set_.proxy.cut(purpose)
            rounds += [(caller, await caller.start(count=10, timeout=3.0)) for caller in set_.callers]
            await eventually_within(RECOVERED, reconnected)
            await eventually_within(RECOVERED, lambda: not set_.not_ready)
        codes: Counter[str] = Counter()
        for caller, ids in rounds:
            codes += await caller.ended(ids)
        assert codes.total() == 12 * 3 * 20
        assert codes.keys() <= {"ok", "mesh_unavailable", "timeout"}
        await set_.recovers(RECOVERED)
        record_property("answers", dict(codes))
        set_.check(record_property, "12 cuts among 720 calls", rounds)


async def test_nobody_is_blamed_for_calls_that_were_lost_with_a_connection(amqp_url: str) -> None:
    """The calls count neither as errors of the user nor as silence of the service."""
    async with scene(amqp_url, users=1) as set_:
        lost = [(caller, await caller.start("hold", 40, timeout=2.0)) for caller in set_.callers]
        await eventually_within(5, lambda: set_.service.holding >= 32)
        reconnected = set_.reconnected()
        set_.proxy.cut()
        await eventually_within(RECOVERED, reconnected)
        for caller, ids in lost:
            assert await caller.ended(ids) == {"timeout": 40}
        set_.service.released.set()
        assert [await caller.call() for caller in set_.callers] == ["ok", "ok"]


@pytest.mark.parametrize(("purpose", "direction"), [(None, "both"), ("consume", "down")])
async def test_a_half_open_connection_is_noticed(
    amqp_url: str, purpose: Purpose | None, direction: Direction, record_property: Record
) -> None:
    async with scene(amqp_url) as set_:
        in_flight = await set_.hold(10, timeout=40.0)
        set_.begin()
        set_.proxy.stall(purpose, direction=direction)
        set_.service.released.set()
        await set_.notices(HALF_OPEN_NOTICED)
        await set_.recovers(RECOVERED)
        set_.proxy.resume()  # now the broker notices the end, too, and delivers unacknowledged messages again
        for caller, ids in in_flight:
            assert await caller.ended(ids) == {"ok": 10}
        set_.check(record_property, f"stall ({direction}) of {purpose or 'all'}", in_flight)


async def test_no_service_is_blamed_for_calls_on_a_half_open_connection(amqp_url: str) -> None:
    async with scene(amqp_url, clients=3) as set_:
        set_.proxy.stall()
        for _ in range(4):
            # More than enough to open the circuit of a silent service.
            ids = [(caller, await caller.start(count=3, timeout=0.3)) for caller in set_.callers]
            assert [await caller.ended(each) for caller, each in ids] == [{"timeout": 3}] * 3
        assert set_.running.gateway.service_mesh_manager.open_circuits == []
        await set_.notices(HALF_OPEN_NOTICED)
        assert set_.running.gateway.service_mesh_manager.open_circuits == []
        set_.proxy.resume()
        await set_.recovers(RECOVERED)


async def test_a_network_that_swallows_everything_for_a_while(amqp_url: str, record_property: Record) -> None:
    async with scene(amqp_url) as set_:
        set_.begin()
        set_.proxy.stall(new=True)
        swallowed = [(caller, await caller.start(count=10, timeout=1.0)) for caller in set_.callers]
        for caller, ids in swallowed:
            assert await caller.ended(ids, within=3) == {"timeout": 10}
        await set_.notices(HALF_OPEN_NOTICED)
        assert (await set_.readyz())[0] == 503
        assert [await caller.call(timeout=20.0) for caller in set_.callers] == ["mesh_unavailable"] * 2
        set_.proxy.resume()
        await set_.recovers(RECOVERED)
        set_.check(record_property, "stall of everything", swallowed)


async def test_the_broker_believes_in_a_connection_that_is_gone(amqp_url: str, record_property: Record) -> None:
    """The broker keeps its consumers and their deliveries; neither locks the new connection out."""
    async with scene(f"{amqp_url}?heartbeat=2", service_url=amqp_url) as set_:
        in_flight = await set_.hold(10, timeout=40.0)
        set_.begin()
        set_.proxy.orphan()
        set_.service.released.set()  # some replies go to the orphans, and come again
        await set_.notices(NOTICED, set_.reconnected())
        await set_.recovers(RECOVERED)
        for _ in range(5):
            assert [await caller.call(timeout=2.0) for caller in set_.callers] == ["ok", "ok"]
        for caller, ids in in_flight:
            assert await caller.ended(ids) == {"ok": 10}
        set_.check(record_property, "orphan", in_flight)


async def test_nobody_listens(amqp_url: str, caplog: pytest.LogCaptureFixture, record_property: Record) -> None:
    async with scene(amqp_url) as set_:
        started = time.monotonic()
        in_flight = await set_.hold(10, timeout=1.5)
        with log_lines(caplog) as lines:
            set_.begin()
            began = time.monotonic()
            set_.proxy.refuse()
            set_.proxy.cut()
            await set_.notices(NOTICED)
            status, reasons = await set_.readyz()
            assert (status, "publishing connection" in reasons) == (503, True)
            for caller, ids in in_flight:
                assert await caller.ended(ids, within=3.5 + started - time.monotonic()) == {"timeout": 10}
                assert all(caller.seconds(id_) >= 1.5 for id_ in ids)
            while time.monotonic() - began < 5:
                for caller in set_.callers:
                    (id_,) = ids = await caller.start(timeout=20.0)
                    assert await caller.ended(ids, within=FAST) == {"mesh_unavailable": 1}
                    assert caller.error(id_)["retryable"] is True
                    assert caller.error(id_)["retry_after_ms"] > 0
            seconds = time.monotonic() - began
            record_property("log lines", f"{len(lines())} in {seconds:.1f} s")
            assert len(lines()) <= seconds + 1, [record.getMessage() for record in lines()]
        set_.proxy.accept()
        await set_.recovers(RECOVERED)
        set_.check(record_property, "nobody listens", in_flight)


async def test_a_gateway_that_starts_before_its_broker(amqp_url: str, record_property: Record) -> None:
    async with scene(amqp_url, clients=0, before=lambda proxy: proxy.refuse(), ready=False) as set_:
        assert (await set_.readyz())[0] == 503
        refused = await refusal(set_.running.url, "alice")  # a revocation may be in the stream that it cannot read
        assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
        await eventually_within(5, lambda: set_.service_mesh.connected)
        set_.proxy.accept()
        await eventually_within(RECOVERED, lambda: not set_.not_ready)
        async with connect(set_.running.url, "alice") as client:
            assert await client.settled() == []
        set_.check(record_property, "no broker at the start")


async def test_a_slow_network_is_no_fault(amqp_url: str, record_property: Record) -> None:
    async with scene(amqp_url) as set_:
        reconnected = set_.reconnected()
        set_.proxy.delay = 0.2
        set_.proxy.bytes_per_second = 100_000
        calls = [(caller, await caller.start(count=20)) for caller in set_.callers]
        for caller, ids in calls:
            assert await caller.ended(ids) == {"ok": 20}
        assert not reconnected()
        assert not set_.not_ready
        set_.check(record_property, "0.2 s late, 100 kB/s", calls)

"""Several processes of one gateway in one event loop, with a fake broker between them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import msgspec
import pytest

from nuropb_gateway_asgi import CallError, ServiceMeshManagerController
from nuropb_gateway_asgi.authentication import Identity
from nuropb_gateway_asgi.authentication.revocation import Revocation, Revocations, encode_record, fingerprint
from nuropb_gateway_asgi.exceptions import AuthenticationFailed, AuthenticationUnavailable, NotStartedError
from nuropb_gateway_asgi.fleet import Connections, Online, Reached, Sessions, members
from nuropb_gateway_asgi.fleet.members import ANSWER_TIMEOUT, SILENCE
from nuropb_gateway_asgi.fleet.online import OFFLINE, ONLINE
from nuropb_gateway_asgi.fleet.presence import DEBOUNCE
from nuropb_gateway_asgi.fleet.revocations import CLOCK_SKEW, CLOSE_AT_ONCE
from nuropb_gateway_asgi.fleet.users import MAX_USERS
from nuropb_gateway_asgi.wire.errors import NuropbTransportError, NuropbValidationError
from nuropb_gateway_asgi.wire.services import call_service, describe_service

from .fakes import FakeGateway, FakeHandler, Network, make_gateway, running, until


@contextlib.asynccontextmanager
async def processes(count: int, network: Network | None = None, **settings: Any) -> AsyncIterator[list[FakeGateway]]:
    """Run ``count`` processes that know each other."""
    network = network or Network()
    async with contextlib.AsyncExitStack() as stack:
        gateways = []
        for number in range(count):
            mesh = network.mesh()
            gateway = await stack.enter_async_context(running(mesh=mesh, instance_id=f"process-{number}", **settings))
            network.connect(mesh)
            gateways.append(gateway)
        await know_each_other(gateways)
        for gateway in gateways:
            gateway.clock.now += ANSWER_TIMEOUT  # no process is new any more, and questions wait for known ones only
        yield gateways


async def know_each_other(gateways: list[FakeGateway]) -> None:
    await until(lambda: all(len(gateway.manager.fleet.members) == len(gateways) - 1 for gateway in gateways))


def events(handler: FakeHandler) -> list[tuple[str, Any]]:
    return [(frame["payload"]["topic"], frame["payload"]["event"]) for frame in handler.frames]


# --- reaching users -------------------------------------------------------------------------------------


async def test_an_event_reaches_all_connections_of_its_users_in_all_processes() -> None:
    async with processes(3) as (one, two, three):
        alices = [await one.connect("alice/1"), await two.connect("alice/2"), await two.connect("alice/3")]
        bob, carol = await three.connect("bob"), await one.connect("carol")
        reached = await two.manager.send_to_users(["alice", "bob", "alice"], "news.private", {"n": 1})
        assert reached == Reached(count=4, processes=3)
        for handler in (*alices, bob):
            assert events(handler) == [("news.private", {"n": 1})]
        assert carol.frames == []


async def test_an_event_reaches_everybody_or_one_connection() -> None:
    async with processes(2) as (one, two):
        here, there = await one.connect("alice"), await two.connect("bob")
        assert await one.manager.send_to_all("news", None) == Reached(count=2, processes=2)
        assert await one.manager.send_to_session(there.session_id, "mine", [1]) == Reached(count=1, processes=2)
        assert await one.manager.send_to_session("nobody", "mine", [1]) == Reached(count=0, processes=2)
        assert events(here) == [("news", None)]
        assert events(there) == [("news", None), ("mine", [1])]


async def test_connections_are_hung_up_on_wherever_they_are() -> None:
    async with processes(2) as (one, two):
        here, there, other = await one.connect("alice/1"), await two.connect("alice/2"), await two.connect("bob")
        assert await one.manager.disconnect_users(["alice"]) == Reached(count=2, processes=2)
        assert here.closes == there.closes == [(4503, "disconnected")]
        assert await one.manager.disconnect_session(other.session_id, 4000, "go away") == Reached(count=1, processes=2)
        assert other.closes == [(4000, "go away")]


async def test_sessions_connections_and_who_is_online_are_of_all_processes() -> None:
    async with processes(2) as (one, two):
        one.authenticator.expires_at["alice/1"] = 2_000_000_000.9
        first, second = await one.connect("alice/1"), await two.connect("alice/2")
        first.connected_at, second.connected_at = 2000.7, 1000.2
        found = await two.manager.list_sessions("alice")
        assert isinstance(found, Sessions)
        assert [
            (each.session_id, each.instance_id, each.username, each.connected_at, each.expires_at)
            for each in found.sessions
        ] == [
            (second.session_id, "process-1", "Alice", 1000, None),
            (first.session_id, "process-0", "Alice", 2000, 2_000_000_000),
        ]
        counted = await one.manager.count()
        assert counted == Connections(count=2, by_process={"process-0": 1, "process-1": 1}, processes=2)
        online = await one.manager.is_online(["alice", "bob"])
        assert online == Online(online={"alice": True, "bob": False}, processes=2)
        assert (await one.manager.list_sessions("bob")).sessions == []


async def test_a_process_that_does_not_answer_is_named_and_not_waited_for() -> None:
    network = Network()
    async with processes(3, network) as (one, two, three):
        await two.connect("alice")
        network.cut_off.add(three.mesh.address)
        with anyio.fail_after(5 * ANSWER_TIMEOUT):
            assert await one.manager.count() == Connections(
                count=1, by_process={"process-0": 0, "process-1": 1}, processes=2, missing=["process-2"]
            )


async def test_a_process_that_goes_while_it_is_asked_is_not_waited_for() -> None:
    network = Network()
    async with processes(2, network) as (one, two):
        network.cut_off.add(two.mesh.address)
        asking = asyncio.create_task(one.manager.count())
        await until(lambda: one.manager.fleet.questions)
        two.manager.fleet.leave()
        assert await asking == Connections(count=0, by_process={"process-0": 0}, processes=1)


async def test_without_a_mesh_it_is_done_here_and_the_others_are_named() -> None:
    async with processes(2) as (one, two):
        here, there = await one.connect("alice"), await two.connect("alice")
        one.mesh.lose()
        assert await one.manager.send_to_users(["alice"], "a", 1) == Reached(
            count=1, processes=1, missing=["process-1"]
        )
        assert (len(here.frames), len(there.frames)) == (1, 0)


async def test_soon_after_the_start_those_who_are_not_known_yet_are_waited_for() -> None:
    network = Network()
    async with processes(1, network) as (old,), running(mesh=(mesh := network.mesh()), instance_id="new") as new:
        await old.connect("alice")
        mesh.find()
        assert not new.manager.fleet.members
        assert await new.manager.count() == Connections(count=1, by_process={"new": 0, "process-0": 1}, processes=2)


async def test_who_alone_asks_is_answered_at_once() -> None:
    async with processes(1) as (one,):
        await one.connect("alice")
        with anyio.fail_after(ANSWER_TIMEOUT / 2):
            assert (await one.manager.is_online(["alice"])).online == {"alice": True}


async def test_outside_the_lifespan_nobody_is_reached() -> None:
    manager = make_gateway().manager
    for call in (
        lambda: manager.send_to_users(["a"], "t", 1),
        lambda: manager.send_to_all("t", 1),
        lambda: manager.send_to_session("s", "t", 1),
        lambda: manager.disconnect_users(["a"]),
        lambda: manager.disconnect_session("s"),
        lambda: manager.list_sessions("a"),
        manager.count,
        lambda: manager.is_online(["a"]),
        lambda: manager.revoke(user_id="a"),
        lambda: manager.unrevoke(user_id="a"),
    ):
        with pytest.raises(NotStartedError):
            await call()


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("send_to_users", {"user_ids": "alice", "topic": "t", "event": 1}),
    ("send_to_users", {"user_ids": None, "topic": "t", "event": 1}),
    ("send_to_users", {"user_ids": [1], "topic": "t", "event": 1}),
    ("send_to_users", {"user_ids": [""], "topic": "t", "event": 1}),
    ("send_to_users", {"user_ids": map(str, range(MAX_USERS + 1)), "topic": "t", "event": 1}),
    ("send_to_users", {"user_ids": ["a"], "topic": "a.*", "event": 1}),
    ("send_to_users", {"user_ids": ["a"], "topic": "", "event": 1}),
    ("send_to_users", {"user_ids": ["a"], "topic": "hello", "event": 1}),
    ("send_to_all", {"topic": "goodbye", "event": {"retry_after_ms": 86_400_000}}),
    ("send_to_session", {"session_id": "a", "topic": "unsubscribed", "event": {"topics": ["#"]}}),
    ("send_to_users", {"user_ids": ["a"], "topic": None, "event": 1}),
    ("send_to_all", {"topic": "t", "event": {("a", "b"): 1}}),
    ("send_to_all", {"topic": "t", "event": "x" * (1 << 20)}),
    ("send_to_session", {"session_id": "", "topic": "t", "event": 1}),
    ("send_to_session", {"session_id": 5, "topic": "t", "event": 1}),
    ("disconnect_users", {"user_ids": ["a"], "code": 1000}),
    ("disconnect_users", {"user_ids": ["a"], "code": 5000}),
    ("disconnect_users", {"user_ids": ["a"], "code": "4503"}),
    ("disconnect_users", {"user_ids": ["a"], "reason": 5}),
    ("disconnect_session", {"session_id": None}),
    ("list_sessions", {"user_id": ["a"]}),
    ("is_online", {"user_ids": "a"}),
    ("revoke", {}),
    ("revoke", {"user_id": "a", "token_id": "j"}),
    ("revoke", {"user_id": "a", "until": 1.0}),
    ("revoke", {"user_id": "a", "until": time.time() * 2}),
    ("revoke", {"user_id": ""}),
    # Milliseconds.
    ("revoke", {"issued_before": time.time() * 1000}),
    ("revoke", {"user_id": "a", "issued_before": time.time() * 1000}),
    ("revoke", {"issued_before": time.time() + 3600}),
    ("unrevoke", {}),
    ("unrevoke", {"user_id": "a", "token_id": "j"}),
    ("unrevoke", {"session_id": "s", "issued_before": 1.0}),
    ("unrevoke", {"token_id": ""}),
]


@pytest.mark.parametrize(("method", "arguments"), WRONG)
async def test_what_means_nothing_is_refused(method: str, arguments: dict[str, Any]) -> None:
    async with processes(1) as (one,):
        handler = await one.connect("a")
        with pytest.raises((ValueError, TypeError)):
            await getattr(one.manager, method)(**arguments)
        assert not handler.frames
        assert not handler.closes
        assert not one.mesh.records


@pytest.mark.parametrize("message", [b"", b"{}", b"[]", b"\xff", b'{"type":"ask"}', b'{"type":"guess","sender":"x"}'])
async def test_what_no_sibling_would_say_changes_nothing(message: bytes) -> None:
    async with processes(1) as (one,):
        one.manager.receiver.on_peer_message(message)
        assert one.manager.fleet.unreadable == 1
        assert not one.manager.fleet.members


@pytest.mark.parametrize(
    "question",
    ["null", '{"type":"guess"}', '{"type":"send","topic":1,"event":1}', '{"type":"send","topic":"goodbye","event":{}}'],
)
async def test_a_question_of_another_version_is_not_answered(question: str) -> None:
    network = Network()
    async with processes(2, network) as (one, two):
        before = len(network.meshes[one.mesh.address].told_peers)
        ask = {"type": "ask", "sender": two.mesh.address, "id": "1", "question": json.loads(question)}
        one.manager.receiver.on_peer_message(json.dumps(ask).encode())
        assert len(one.mesh.told_peers) == before


async def test_an_answer_that_comes_twice_or_late_counts_once() -> None:
    network = Network()
    async with processes(2, network) as (one, two):
        network.cut_off.add(two.mesh.address)
        asking = asyncio.create_task(one.manager.count())
        await until(lambda: one.manager.fleet.questions)
        (id_,) = one.manager.fleet.questions
        answer = {"type": "answer", "sender": two.mesh.address, "id": id_, "answer": {"process-1": 5}}
        for _ in range(2):
            one.manager.receiver.on_peer_message(json.dumps(answer).encode())
        assert (await asking).count == 5
        one.manager.receiver.on_peer_message(json.dumps(answer).encode())
        assert not one.manager.fleet.questions


@pytest.mark.parametrize("wrong", ['"many"', "[" * 2000 + "]" * 2000, '{"process-1":"5"}'])
async def test_a_process_whose_answer_cannot_be_read_is_named(wrong: str) -> None:
    network = Network()
    async with processes(2, network) as (one, two):
        network.cut_off.add(two.mesh.address)
        asking = asyncio.create_task(one.manager.count())
        await until(lambda: one.manager.fleet.questions)
        (id_,) = one.manager.fleet.questions
        answer = f'{{"type":"answer","sender":"{two.mesh.address}","id":"{id_}","answer":{wrong}}}'
        one.manager.receiver.on_peer_message(answer.encode())
        found = await asking
        assert (found.count, found.processes, found.missing) == (0, 1, ["process-1"])
        assert one.manager.fleet.unreadable == 1


async def test_who_gives_up_asking_leaves_nothing() -> None:
    network = Network()
    async with processes(2, network) as (one, two):
        network.cut_off.add(two.mesh.address)
        asking = asyncio.create_task(one.manager.count())
        await until(lambda: one.manager.fleet.questions)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert not one.manager.fleet.questions


# --- peer processes -------------------------------------------------------------------------------------


async def test_a_process_that_leaves_is_known_to_have_left() -> None:
    network = Network()
    async with processes(1, network) as (one,):
        async with running(mesh=(mesh := network.mesh()), instance_id="other"):
            network.connect(mesh)
            await until(lambda: [each.instance_id for each in one.manager.fleet.members.values()] == ["other"])
        await until(lambda: not one.manager.fleet.members)


async def test_a_process_that_falls_silent_is_taken_for_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "ALIVE_INTERVAL", 0.01)
    network = Network()
    async with processes(3, network) as (one, two, three):
        network.cut_off.add(one.mesh.address)
        await anyio.wait_all_tasks_blocked()  # so that no sign of life on its way comes later than that
        one.clock.now += SILENCE + 0.1
        await until(lambda: not one.manager.fleet.members)
        network.cut_off.clear()
        await know_each_other([one, two, three])


async def test_whoever_was_cut_off_hears_of_the_others_again() -> None:
    network = Network()
    async with processes(2, network) as (one, two):
        one.mesh.lose()
        one.clock.now += SILENCE + 0.1
        one.manager.fleet.sweep()
        assert not one.manager.fleet.members
        network.connect(one.mesh)
        await know_each_other([one, two])


# --- presence -------------------------------------------------------------------------------------------


def published(gateways: list[FakeGateway]) -> list[tuple[str, Any]]:
    return [(each.topic, each.event["user_id"]) for gateway in gateways for each in gateway.mesh.published]


async def test_the_mesh_is_told_when_a_user_comes_and_goes_in_the_whole_fleet() -> None:
    async with processes(3, presence_events="on") as gateways:
        one, two, _ = gateways
        here, there = await one.connect("alice/1"), await two.connect("alice/2")
        await until(lambda: all(len(each.manager.online.presence.online) for each in gateways))  # type: ignore[union-attr]
        for gateway in gateways:
            gateway.clock.now += DEBOUNCE + 1
        await until(lambda: published(gateways) == [(ONLINE, "alice")])
        one.handlers.unregister(here)
        two.handlers.unregister(there)
        await until(lambda: not any(each.manager.online.presence.online for each in gateways))  # type: ignore[union-attr]
        for gateway in gateways:
            gateway.clock.now += DEBOUNCE + 1
        await until(lambda: sorted(published(gateways)) == [(OFFLINE, "alice"), (ONLINE, "alice")])


async def test_what_happens_while_the_mesh_is_away_is_told_when_it_is_back() -> None:
    async with processes(1, presence_events="on") as (one,):
        one.mesh.lose()
        await one.connect("alice")
        one.clock.now += DEBOUNCE + 1
        await asyncio.sleep(0.3)
        assert published([one]) == []
        one.mesh.find()
        await until(lambda: published([one]) == [(ONLINE, "alice")])


async def test_what_happens_while_no_event_can_be_published_is_told_later_and_known_at_once() -> None:
    async with processes(2, presence_events="on") as gateways:
        one, two = gateways
        for gateway in gateways:
            gateway.mesh.publishes = False
        await one.connect("alice")
        await until(lambda: two.manager.online.presence.online)  # type: ignore[union-attr]
        for gateway in gateways:
            gateway.clock.now += DEBOUNCE + 1
        await asyncio.sleep(0.3)
        assert published(gateways) == []
        for gateway in gateways:
            gateway.mesh.publishes = True
        await until(lambda: published(gateways) == [(ONLINE, "alice")])


async def test_a_process_that_comes_later_knows_who_is_online() -> None:
    network = Network()
    async with processes(1, network, presence_events="on") as (one,):
        handler = await one.connect("alice")
        one.clock.now += DEBOUNCE + 1
        await until(lambda: published([one]) == [(ONLINE, "alice")])
        async with running(mesh=(mesh := network.mesh()), instance_id="new", presence_events="on") as new:
            network.connect(mesh)
            watch = new.manager.online
            assert watch is not None
            await until(lambda: watch.presence.online)
            one.handlers.unregister(handler)
            await until(lambda: not watch.presence.online)
            for gateway in (one, new):
                gateway.clock.now += DEBOUNCE + 1
            await until(lambda: sorted(published([one, new])) == [(OFFLINE, "alice"), (ONLINE, "alice")])


async def test_a_process_with_a_new_address_is_the_same_process_with_the_same_users() -> None:
    network = Network()
    async with processes(3, network, presence_events="on") as gateways:
        one, two, three = gateways
        here, there = await one.connect("alice"), await two.connect("bob")
        watches = [each.manager.online for each in gateways]
        await until(lambda: all(watch and watch.presence.online == {"alice", "bob"} for watch in watches))
        for gateway in gateways:
            gateway.clock.now += DEBOUNCE + 1
        await until(lambda: sorted(published(gateways)) == [(ONLINE, "alice"), (ONLINE, "bob")])
        one.mesh.lose()
        network.move(one.mesh)
        for gateway in gateways:  # the others give a sign of life, too: the time has moved on
            gateway.mesh.find()
        for gateway in gateways:
            gateway.clock.now += ANSWER_TIMEOUT
        await until(lambda: one.mesh.address in three.manager.fleet.members)
        assert await three.manager.count() == Connections(
            count=2, by_process={"process-0": 1, "process-1": 1, "process-2": 0}, processes=3
        )
        assert await three.manager.send_to_users(["alice"], "news", 1) == Reached(count=1, processes=3)
        assert len(one.manager.fleet.members) == 2
        one.handlers.unregister(here)
        two.handlers.unregister(there)
        await until(lambda: not any(watch and watch.presence.online for watch in watches))
        for gateway in gateways:
            gateway.clock.now += DEBOUNCE + 1
        told = [(OFFLINE, "alice"), (OFFLINE, "bob"), (ONLINE, "alice"), (ONLINE, "bob")]
        await until(lambda: sorted(published(gateways)) == told)


async def test_presence_is_nobodys_business_unless_it_is_asked_for() -> None:
    async with processes(2) as (one, two):
        await one.connect("alice")
        assert one.manager.online is None
        assert {each["type"] for _, each in one.mesh.told_peers + two.mesh.told_peers} == {"alive"}


async def test_news_that_cannot_be_read_change_nothing() -> None:
    async with processes(2, presence_events="on") as (one, two):
        for topic, news in (("changed", [1]), ("users", {"users": 1}), ("weather", "fine")):
            assert one.manager.online is not None
            one.manager.online.on_news(two.mesh.address, topic, msgspec.Raw(json.dumps(news).encode()))
        assert one.manager.fleet.unreadable == 2


# --- revocation -----------------------------------------------------------------------------------------


async def test_a_revoked_users_connections_end_and_the_tokens_are_refused_everywhere() -> None:
    network = Network()
    async with processes(2, network) as (one, two):
        here, there, other = await one.connect("alice/1"), await two.connect("alice/2"), await two.connect("bob")
        await one.manager.revoke(user_id="alice")
        assert here.closes[0] == (4511, "token revoked")
        await until(lambda: there.closes)
        assert there.closes[0] == (4511, "token revoked")
        assert not other.closes
        for gateway in (one, two):
            for token in ("alice/1", "alice/2", "alice/3"):  # without a time of issue, all of them count as older
                with pytest.raises(AuthenticationFailed, match="does not identify a user"):
                    await gateway.connect(token)
            assert await gateway.handlers.authenticator("alice/1") is None
        async with running(mesh=(mesh := network.mesh())) as late:
            network.connect(mesh)
            with pytest.raises(AuthenticationFailed):
                await late.connect("alice/1")
            await late.connect("bob")


@pytest.mark.parametrize("asked", [0, 1])
async def test_a_revoked_session_takes_its_token_with_it(asked: int) -> None:
    async with processes(2) as gateways:
        has, asks = gateways[0], gateways[asked]
        handler, twin = await has.connect("alice/1"), await gateways[1].connect("alice/1")
        other = await has.connect("alice/2")
        await asks.manager.revoke(session_id=handler.session_id)
        await until(lambda: twin.closes)
        assert handler.closes[0] == twin.closes[0] == (4511, "token revoked")
        assert not other.closes
        for gateway in gateways:
            with pytest.raises(AuthenticationFailed):
                await gateway.connect("alice/1")
            await gateway.connect("alice/2")


async def test_a_revocation_that_comes_while_somebody_connects_is_in_time() -> None:
    async with processes(1) as (one,):
        one.authenticator.gate = asyncio.Event()
        connecting = asyncio.create_task(one.connect("alice"))
        await until(lambda: one.authenticator.tokens)
        await one.manager.revoke(user_id="alice")
        one.authenticator.gate.set()
        with pytest.raises(AuthenticationFailed):
            await connecting
        assert len(one.handlers) == 0


async def test_a_revocation_that_comes_while_all_is_prepared_is_in_time() -> None:
    async with running(targeted_topics=["#"]) as gateway:
        gateway.mesh.binds_at_once = False
        connecting = asyncio.create_task(gateway.connect("alice"))
        await until(lambda: gateway.mesh.waiting)
        await gateway.manager.revoke(user_id="alice")
        gateway.mesh.bound("#")
        with pytest.raises(AuthenticationFailed, match="revoked"):
            await connecting


async def test_a_revoked_token_refreshes_nothing() -> None:
    async with processes(1) as (one,):
        handler = await one.connect("alice/1")
        await one.manager.revoke(user_id="alice")
        one.receive(handler, "authorize", token="alice/2", id="r")
        await handler.finish()
        assert handler.codes == ["unauthenticated"]


async def test_a_revocation_that_cannot_be_written_holds_here_and_is_an_error() -> None:
    async with processes(1) as (one,):
        handler = await one.connect("alice")
        one.mesh.lose()
        with pytest.raises(CallError) as caught:
            await one.manager.revoke(user_id="alice")
        assert (caught.value.code, caught.value.retryable) == ("mesh_unavailable", True)
        assert handler.closes[0][0] == 4511
        with pytest.raises(AuthenticationFailed):
            await one.connect("alice")


async def test_the_token_of_a_revoked_session_is_written_once_that_is_possible() -> None:
    async with processes(1) as (one,):
        handler = await one.connect("alice")
        one.mesh.lose()
        with pytest.raises(CallError):
            await one.manager.revoke(session_id=handler.session_id)
        assert one.mesh.records == []
        one.mesh.find()
        await until(lambda: one.mesh.records)
        assert set(one.mesh.records[0]) == {"token", "until", "of_session"}
        assert "alice" not in str(one.mesh.records)


@pytest.mark.parametrize(
    "record", [b"", b"{}", b'{"until":1,"token":5}', b"\xff", b'{"until":1}', b'{"a":' + b"[" * 100_000]
)
async def test_a_record_that_cannot_be_read_has_no_effect(record: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with processes(1) as (one,):
        handler = await one.connect("alice")
        one.manager.receiver.on_record(record)
        assert one.manager.revoker.unreadable == 1
        assert not handler.closes
    assert "cannot be read" in caplog.text


async def test_a_record_of_the_future_locks_nobody_out(caplog: pytest.LogCaptureFixture) -> None:
    now = time.time()
    async with processes(1) as (one,):
        handler = await one.connect("alice")
        for record in ({"issued_before": now * 1000}, {"user_id": "alice", "issued_before": now + 3600}):
            one.manager.receiver.on_record(json.dumps({**record, "until": now + 3600}).encode())
        assert one.manager.revoker.unreadable == 2
        assert not handler.closes
        await one.connect("alice/2")
        # The clocks of two processes may differ.
        skewed = {"user_id": "alice", "issued_before": now + CLOCK_SKEW / 2, "until": now + 3600}
        one.manager.receiver.on_record(json.dumps(skewed).encode())
        await until(lambda: handler.closes)
        assert handler.closes[0][0] == 4511
    assert "issued_before in the future; it has no effect" in caplog.text


async def test_what_is_over_is_forgotten() -> None:
    async with processes(1) as (one,):
        await one.manager.revoke(token_id="j", until=time.time() + 0.05)
        assert len(one.handlers.revocations) == 1
        await asyncio.sleep(0.05)
        await one.sweep(100.0)
        assert len(one.handlers.revocations) == 0


# --- revocation: from the first second ------------------------------------------------------------------


async def test_no_client_is_let_in_before_the_records_are_read() -> None:
    network = Network()
    mesh = network.mesh()
    mesh.has_read = False
    async with running(mesh=mesh) as one:
        network.connect(mesh)
        assert one.manager.revoker.problem == "revocations are being read (0)"
        for _ in range(2):
            with pytest.raises(AuthenticationUnavailable, match="revocations"):
                await one.connect("alice")
            one.manager.receiver.on_record(record_of(user_id="alice", issued_before=time.time()))
        assert one.manager.revoker.problem == "revocations are being read (2)"
        one.manager.receiver.on_records_read()
        assert one.manager.revoker.problem is None
        with pytest.raises(AuthenticationFailed):
            await one.connect("alice")
        await one.connect("bob")


async def test_a_gateway_that_starts_again_reads_again() -> None:
    mesh = Network().mesh()
    gateway = make_gateway(mesh=mesh)
    async with gateway.manager:
        assert gateway.manager.revoker.problem is None
    mesh.has_read = False
    async with gateway.manager:
        assert gateway.manager.revoker.problem is not None


def record_of(**fields: Any) -> bytes:
    return encode_record(Revocation(**({"until": time.time() + 1000} | fields)))


async def test_many_records_are_not_compared_with_every_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    refuses = Revocations.refuses

    def counted(self: Revocations, identity: Identity) -> bool:
        nonlocal looks
        looks += 1
        return refuses(self, identity)

    async with running() as one:
        handlers = [await one.connect(f"user-{number}/1") for number in range(500)]
        monkeypatch.setattr(Revocations, "refuses", counted)
        now = time.time()
        for number in range(5000):
            one.manager.receiver.on_record(record_of(user_id=f"other-{number}", issued_before=now))
            one.manager.receiver.on_record(record_of(token_id=f"other-{number}"))
            one.manager.receiver.on_record(record_of(token=f"other-{number}"))
            # The same user, and all users, again and again, with a later time.
            one.manager.receiver.on_record(record_of(user_id="user-0", issued_before=now - 1 + number / 5000))
        one.manager.receiver.on_record(record_of(token=fingerprint("user-1/1")))
        await until(lambda: handlers[0].closes and handlers[1].closes)
        assert looks == 2
        assert not any(handler.closes for handler in handlers[2:])
        assert len(one.handlers.revocations) == 15_002


async def test_a_record_that_another_transport_has_added_closes_the_connections_of_this_one() -> None:
    async with running() as one:
        handler = await one.connect("alice")
        revocation = Revocation(user_id="alice", issued_before=time.time(), until=time.time() + 1000)
        one.handlers.shared_limits.revocations.add(revocation, time.time())
        one.manager.receiver.on_record(encode_record(revocation))
        await until(lambda: handler.closes)


async def test_a_revocation_of_all_tokens_yields_to_other_clients() -> None:
    async with running() as one:
        handlers = [await one.connect(f"user-{number}/1") for number in range(2 * CLOSE_AT_ONCE + 10)]
        for before in (1, 2, 3):
            one.manager.receiver.on_record(record_of(issued_before=float(before)))
        closed: list[int] = []

        def count() -> int:
            return sum(bool(handler.closes) for handler in handlers)

        while count() < len(handlers):
            await asyncio.sleep(0)
            closed.append(count())
        steps = [later - earlier for earlier, later in zip([0, *closed], closed, strict=False)]
        assert max(steps) <= CLOSE_AT_ONCE
        assert all(len(handler.closes) == 1 for handler in handlers)


# --- revocation: of sessions ----------------------------------------------------------------------------


async def refreshed(gateway: FakeGateway, handler: FakeHandler, token: str) -> None:
    gateway.receive(handler, "authorize", token=token, id="r")
    await handler.finish()


@pytest.mark.parametrize("asked", [0, 1])
@pytest.mark.parametrize("ended", [False, True])
async def test_a_revoked_session_takes_all_tokens_with_it_that_it_used(asked: int, ended: bool) -> None:
    network = Network()
    async with processes(2, network) as gateways:
        has, asks = gateways[0], gateways[asked]
        handler, other = await has.connect("alice/1"), await has.connect("alice/4")
        await refreshed(has, handler, "alice/2")
        await refreshed(has, handler, "alice/3")
        if ended:
            has.handlers.unregister(handler)
        await asks.manager.revoke(session_id=handler.session_id)
        assert bool(handler.closes) is not ended
        assert not other.closes
        await until(lambda: len(network.records) == 4)
        async with running(mesh=(mesh := network.mesh())) as late:
            network.connect(mesh)
            for gateway in (*gateways, late):
                for token in ("alice/1", "alice/2", "alice/3"):
                    with pytest.raises(AuthenticationFailed):
                        await gateway.connect(token)
                await gateway.connect("alice/4")


async def test_a_token_that_a_session_gets_while_it_is_revoked_is_revoked_too() -> None:
    async with processes(1) as (one,):
        handler = await one.connect("alice/1")
        one.authenticator.gate = asyncio.Event()
        one.receive(handler, "authorize", token="alice/2", id="r")
        await until(lambda: "alice/2" in one.authenticator.tokens)
        await one.manager.revoke(session_id=handler.session_id)
        one.authenticator.gate.set()
        await handler.finish()
        for token in ("alice/1", "alice/2"):
            with pytest.raises(AuthenticationFailed):
                await one.connect(token)


async def test_the_tokens_of_a_session_are_written_once() -> None:
    network = Network()
    async with processes(2, network) as (one, two):
        one.authenticator.expires_at["alice/1"] = time.time() + 1000
        handler = await one.connect("alice/1")
        for _ in range(2):
            await two.manager.revoke(session_id=handler.session_id)
        await until(lambda: one.mesh.records)
        await one.manager.revoke(token_id="j")
        assert [set(record) for record in one.mesh.records] == [{"token", "until", "of_session"}, {"token_id", "until"}]


# --- revocation: taken back -----------------------------------------------------------------------------


async def test_a_revocation_is_taken_back_in_all_processes_and_in_later_ones() -> None:
    network = Network()
    async with processes(2, network) as (one, two):
        await one.connect("alice/1")
        session = (await two.connect("bob/1")).session_id
        await one.manager.revoke(user_id="alice")
        await one.manager.revoke(session_id=session)
        await one.manager.revoke(issued_before=time.time())
        await until(lambda: len(network.records) == 4)
        await two.manager.unrevoke(issued_before=time.time())
        for gateway in (one, two):
            with pytest.raises(AuthenticationFailed):
                await gateway.connect("alice/1")
            await gateway.connect("carol")
        await two.manager.unrevoke(user_id="alice")
        await one.manager.unrevoke(session_id=session)
        async with running(mesh=(mesh := network.mesh())) as late:
            network.connect(mesh)
            for gateway in (one, two, late):
                assert len(gateway.handlers.revocations) == 0
                for token in ("alice/1", "bob/1"):
                    await gateway.connect(token)


async def test_revoking_again_holds_again() -> None:
    network = Network()
    async with processes(2, network) as (one, two):
        for _ in range(2):
            await one.manager.revoke(user_id="alice")
            await two.manager.unrevoke(user_id="alice")
        await one.manager.revoke(user_id="alice")
        for gateway in (one, two):
            with pytest.raises(AuthenticationFailed):
                await gateway.connect("alice/1")


async def test_a_revoked_session_that_is_taken_back_before_it_was_written_is_not_written() -> None:
    async with processes(1) as (one,):
        handler = await one.connect("alice")
        one.mesh.lose()
        for operation in (one.manager.revoke, one.manager.unrevoke):
            with pytest.raises(CallError):
                await operation(session_id=handler.session_id)
        one.mesh.find()
        await one.manager.revoke(token_id="j")
        assert [set(record) for record in one.mesh.records] == [{"token_id", "until"}]
        await one.connect("alice")


async def test_a_revocation_of_a_process_whose_clock_is_ahead_is_taken_back() -> None:
    async with processes(1) as (one,):
        one.manager.receiver.on_record(record_of(user_id="alice", issued_before=time.time() + CLOCK_SKEW / 2))
        with pytest.raises(AuthenticationFailed):
            await one.connect("alice")
        await one.manager.unrevoke(user_id="alice")
        await one.connect("alice")


# --- calls of other services ----------------------------------------------------------------------------


async def called(controller: ServiceMeshManagerController, method: str, **params: Any) -> Any:
    """Call a method of the controller, as a service of the mesh does."""
    outcome = await call_service(controller, service="gw", method=method, params=params, context={})
    return json.loads(outcome.result) if outcome.error is None else outcome.error


async def test_other_services_reach_users_by_the_controller() -> None:
    async with processes(2) as (one, two):
        here, there = await one.connect("alice/1"), await two.connect("alice/2")
        controller = one.manager.controller
        answer = {"processes": 2, "missing": []}
        assert await called(controller, "send_to_users", user_ids=["alice"], topic="t", event=1) == answer | {
            "count": 2
        }
        assert await called(controller, "send_to_all", topic="t", event=1) == answer | {"count": 2}
        assert await called(controller, "send_to_session", session_id=here.session_id, topic="t") == answer | {
            "count": 1
        }
        assert await called(controller, "is_online", user_ids=["alice"]) == answer | {"online": {"alice": True}}
        assert (await called(controller, "count"))["by_process"] == {"process-0": 1, "process-1": 1}
        sessions = (await called(controller, "list_sessions", user_id="alice"))["sessions"]
        assert {each["session_id"] for each in sessions} == {here.session_id, there.session_id}
        assert await called(controller, "disconnect_session", session_id=here.session_id) == answer | {"count": 1}
        assert await called(controller, "disconnect_users", user_ids=["alice"], code=4000) == answer | {"count": 2}
        assert await called(controller, "revoke", user_id="alice") is None
        assert await called(controller, "unrevoke", user_id="alice") is None
        await until(lambda: len(here.closes) > 2)
        assert here.closes[:3] == [(4503, "disconnected"), (4000, "disconnected"), (4511, "token revoked")]


async def test_what_other_services_do_wrong_is_told_by_nuropbs_names() -> None:
    async with processes(1) as (one,):
        controller = one.manager.controller
        assert (await called(controller, "is_online", user_ids="alice"))["error"] == "NuropbValidationError"
        assert (await called(controller, "revoke"))["error"] == "NuropbValidationError"
        one.mesh.lose()
        assert (await called(controller, "revoke", user_id="alice"))["error"] == "NuropbTransportError"
        assert issubclass(NuropbTransportError, Exception)
        assert issubclass(NuropbValidationError, Exception)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("send_to_users", {"users": ["alice"], "topic": "t"}),
        ("send_to_users", {"user_ids": ["alice"]}),
        ("send_to_all", {"topic": "t", "payload": 1}),
        ("send_to_session", {"session": "s", "topic": "t"}),
        ("disconnect_users", {"user_ids": ["alice"], "status": 4000}),
        ("disconnect_session", {}),
        ("list_sessions", {"user": "alice"}),
        ("count", {"user_id": "alice"}),
        ("is_online", {"users": ["alice"]}),
        ("revoke", {"user": "alice"}),
    ],
)
async def test_a_wrong_parameter_of_the_controller_is_nuropbs_validation_error(
    method: str, params: dict[str, Any]
) -> None:
    async with processes(1) as (one,):
        error = await called(one.manager.controller, method, **params)
        assert error["error"] == "NuropbValidationError"
        assert f".{method}: parameters " in error["description"]


async def test_a_type_error_within_a_method_of_the_controller_is_none_of_its_caller() -> None:
    class Controller(ServiceMeshManagerController):
        def crash(self) -> None:
            raise TypeError("by mistake")

    assert (await called(Controller(), "crash"))["error"] == "NuropbException"


def test_what_the_controller_can_do_is_described() -> None:
    described = describe_service(ServiceMeshManagerController())
    assert described["nuropb_gateway"] is True
    methods = described["methods"]
    assert set(methods) == {
        "send_to_users",
        "send_to_all",
        "send_to_session",
        "disconnect_users",
        "disconnect_session",
        "list_sessions",
        "count",
        "is_online",
        "revoke",
        "unrevoke",
    }
    assert methods["send_to_users"]["parameters"]["required"] == ["user_ids", "topic"]
    assert all(method["description"] for method in methods.values())


async def test_a_controller_without_a_gateway_can_do_nothing() -> None:
    doing: Callable[[], Awaitable[Any]] = ServiceMeshManagerController().count
    with pytest.raises(RuntimeError, match="not belong to a gateway"):
        await doing()

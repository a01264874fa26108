"""Sessions that survive their connections: at the same process, at another one, and during a drain."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Literal

import httpx
import pytest

from nuropb_gateway_asgi import JWTAuthenticator
from nuropb_gateway_asgi.authentication import issue_token
from nuropb_gateway_asgi.authorization import ExposePolicy
from nuropb_gateway_asgi.mesh.embedded import EmbeddedMesh
from nuropb_gateway_asgi.mesh.rabbitmq import RabbitMQMesh
from nuropb_gateway_asgi.sessions import Resumption
from tests.integration.test_fleet import SECRET, fleet
from tests.kit.clients import Client, Frame, connect, refusal
from tests.kit.gateways import RunningGateway, eventually, make_gateway, run_gateway
from tests.servers.processes import ServiceProcess


class ResumingClient:
    """A client that counts frames and comes back with its key."""

    def __init__(self, client: Client, token: str = "") -> None:
        self.client = client
        self.token = token
        self.received = 0
        self.key = ""
        #: Counted frames of the session, in the order of their numbers.
        self.frames: list[Frame] = []

    async def resume(self, **payload: Any) -> Frame:
        """Send ``resume`` and return its result."""
        answer = await self.client.ask("resume", **payload)
        assert answer["error"] is None, answer["error"]
        result: Frame = answer["result"]
        self.key = result["key"]
        self.received = result["received"]
        return result

    async def next(self, count: int = 1) -> list[Frame]:
        """Return the next counted frames."""
        frames: list[Frame] = []
        while len(frames) < count:
            frame = await self.client.next()
            topic = frame["payload"].get("topic") if frame["type"] == "event" else None
            if frame["type"] in ("response", "event", "error") and topic not in ("hello", "goodbye"):
                self.received += 1
                frames.append(frame)
        self.frames += frames
        return frames


@contextlib.asynccontextmanager
async def resuming(running: RunningGateway, user: str = "alice", **payload: Any) -> AsyncIterator[ResumingClient]:
    """Connect with a token of ``user``; ``payload`` is that of ``resume``, or nothing for no resume yet."""
    token = issue_token(SECRET, user, lifetime=600)
    async with connect(running.url, token) as client:
        yield ResumingClient(client, token)


@pytest.fixture
async def two(amqp_url: str) -> AsyncIterator[list[RunningGateway]]:
    async with fleet(amqp_url, 2, expose_topics=["#"]) as running:
        yield running


async def start(first: RunningGateway, client: ResumingClient, service: str) -> None:
    """Make a session with one answered frame, two calls in flight, and a subscription."""
    result = await client.resume()
    assert result["reason"] == "new"
    await client.client.send("subscribe", id="s", topics=["lab.#"])
    await client.next()
    await client.client.request(f"{service}.slow", {"seconds": 0.4}, id="quick")
    await client.client.request(f"{service}.slow", {"seconds": 1.5}, id="slow")
    await client.client.settled()


@pytest.mark.parametrize("to", [0, 1], ids=["the same process", "another process"])
async def test_calls_and_events_survive_a_lost_connection(
    two: list[RunningGateway], echo_service: ServiceProcess, to: int
) -> None:
    first, second = two[0], two[to]
    publish = first.gateway.service_mesh_manager.publish_event
    async with resuming(first) as client:
        await start(first, client, echo_service.service)
        session_id = client.client.hello["session_id"]
        client.client.abort()
    await eventually(lambda: not len(first.gateway.handler_manager))
    for number in range(5):
        await publish("lab.away", {"number": number})
    await asyncio.sleep(0.6)  # the first answer comes while no client is there
    async with resuming(second) as again:
        publishing = asyncio.create_task(_publish(publish, "lab.moving", 200))
        result = await again.resume(key=client.key, received=client.received)
        assert result["resumed"], result
        assert result["session_id"] == session_id
        assert result["in_flight"] == ["slow"]
        assert result["topics"] == ["lab.#"]
        await publishing
        frames = await again.next(5 + 2 + 200)
        events = [each["payload"]["event"]["number"] for each in frames if each["type"] == "event"]
        answers = [each["payload"]["id"] for each in frames if each["type"] == "response"]
        assert events == [*range(5), *range(200)]
        assert sorted(answers) == ["quick", "slow"]
        assert not await again.client.settled()
        await again.client.send("ack", received=again.received)
        assert not await again.client.settled()
    for running in two:
        await eventually(functools.partial(_is_idle, running))


def _is_idle(running: RunningGateway) -> bool:
    return running.gateway.service_mesh_manager.resumption.is_idle


async def test_a_drain_hands_over_the_session_of_a_client_that_follows_goodbye(
    two: list[RunningGateway], echo_service: ServiceProcess
) -> None:
    first, second = two
    async with resuming(first) as client, resuming(second) as again:
        await start(first, client, echo_service.service)
        drain = asyncio.create_task(first.gateway.drain())
        await client.client.event("goodbye")
        result = await again.resume(key=client.key, received=client.received)
        assert (result["resumed"], sorted(result["in_flight"])) == (True, ["quick", "slow"])
        await first.gateway.service_mesh_manager.publish_event("lab.drained", 1)
        frames = await again.next(3)
        assert {each["payload"].get("id") for each in frames} == {"quick", "slow", None}
        await drain
    assert resumption(first).departures.count == resumption(second).arrivals.count == 1


async def test_a_call_of_a_session_that_moved_is_cancelled_where_it_is(
    two: list[RunningGateway], echo_service: ServiceProcess
) -> None:
    first, second = two
    async with resuming(first) as client:
        await client.resume()
        await client.client.request(f"{echo_service.service}.slow", {"seconds": 20}, id="slow")
        await client.client.settled()
        client.client.abort()
    async with resuming(second) as again:
        assert (await again.resume(key=client.key))["in_flight"] == ["slow"]
        await again.client.send("cancel", id="slow")
        assert (await again.client.answer("slow"))["error"]["code"] == "cancelled"
        await eventually(lambda: not first.gateway.service_mesh_manager.in_flight)


async def test_a_session_of_a_process_that_does_not_answer_is_gone(two: list[RunningGateway]) -> None:
    first, second = two
    async with resuming(first) as client:
        await client.resume()
        client.client.abort()
    mesh = first.gateway.service_mesh_manager.mesh
    assert isinstance(mesh, RabbitMQMesh)
    mesh.peers._on_message = lambda body: None
    async with resuming(second) as again:
        assert (await again.resume(key=client.key))["reason"] == "gone"


async def _publish(publish: Any, topic: str, count: int) -> None:
    for number in range(count):
        await publish(topic, {"number": number})
        if number % 5 == 0:
            await asyncio.sleep(0.001)


async def test_two_calls_with_one_idempotency_key_are_both_answered_at_another_process(
    two: list[RunningGateway], echo_service: ServiceProcess
) -> None:
    first, second = two
    async with resuming(first) as client:
        await client.resume()
        for id_ in ("a", "b"):
            await client.client.request(f"{echo_service.service}.slow", {"seconds": 1.5}, id=id_, idempotency_key="k")
        await client.client.settled()
        client.client.abort()
    async with resuming(second) as again:
        result = await again.resume(key=client.key)
        assert sorted(result["in_flight"]) == ["a", "b"]
        frames = await again.next(2)
        assert sorted(each["payload"]["id"] for each in frames) == ["a", "b"]
        assert [each["payload"]["result"] for each in frames] == [1.5, 1.5]
    for running in two:
        await eventually(functools.partial(_is_idle, running))


async def test_a_session_that_is_revoked_on_its_way_leaves_no_subscriptions(two: list[RunningGateway]) -> None:
    first, second = two
    async with resuming(first) as client:
        await client.resume()
        await client.client.ask("subscribe", topics=[f"lab.{number}" for number in range(20)])
        client.client.abort()
    await eventually(lambda: not len(first.gateway.handler_manager))
    async with resuming(second) as again:
        await again.client.send("resume", id="r", key=client.key, received=1)
        await eventually(lambda: second.gateway.service_mesh_manager.resumption.keeper.arriving)
        second.gateway.handler_manager.close_all()
        await again.client.closed()
    for running in two:
        await eventually(functools.partial(_is_idle, running))
        await eventually(functools.partial(_has_no_topics, running))


@pytest.mark.parametrize("how", ["revoke", "disconnect_session"])
async def test_a_session_that_is_ended_between_two_processes_has_ended(
    two: list[RunningGateway], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old process has it no longer, and the new one not yet."""
    first, second = two
    manager = second.gateway.service_mesh_manager
    find = manager.resumption.arrivals.find
    async with resuming(first) as client, resuming(second) as again:
        await client.resume()
        session_id = client.client.hello["session_id"]

        async def find_late(*args: Any) -> Any:
            found = await find(*args)
            await (manager.revoke if how == "revoke" else manager.disconnect_session)(session_id=session_id)
            return found

        monkeypatch.setattr(manager.resumption.arrivals, "find", find_late)
        await again.client.send("resume", id="r", key=client.key, received=client.received)
        assert (await again.client.closed()).code == (4511 if how == "revoke" else 4503)
        token = again.token
    for running in two:
        await eventually(functools.partial(_is_idle, running))
    if how == "revoke":
        assert (await refusal(second.url, token)).status == 401


def _has_no_topics(running: RunningGateway) -> bool:
    return not running.gateway.service_mesh_manager.events.topics


# --- one process, and the embedded mesh ---------------------------------------------------------------------------

Server = Literal["nuropb-gateway", "websockets-sansio", "wsproto", "hypercorn"]


class Lab:
    """A service whose calls end when they are let go."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.gate = asyncio.Event()

    async def wait(self, number: int, ctx: Any = None) -> int:
        """Return ``number`` once the gate is open."""
        self.calls.append({"number": number})
        await self.gate.wait()
        return number

    def echo(self, text: str = "") -> str:
        """Return ``text``."""
        self.calls.append({"text": text})
        return text


@contextlib.asynccontextmanager
async def small(lab: Lab, server: Server = "nuropb-gateway", **settings: Any) -> AsyncIterator[RunningGateway]:
    """Run a gateway without a broker."""
    options: dict[str, Any] = {"expose": ["lab.*"], "expose_topics": ["#"], "jwt_key": SECRET} | settings
    gateway = make_gateway(authenticator=JWTAuthenticator(SECRET), mesh=EmbeddedMesh({"lab": lab}), **options)
    async with run_gateway(gateway, server=server) as running:
        yield running


def resumption(running: RunningGateway) -> Resumption:
    return running.gateway.service_mesh_manager.resumption


async def lose(running: RunningGateway, client: ResumingClient) -> None:
    """Break a connection, and wait until the gateway has noticed."""
    before = len(running.gateway.handler_manager)
    client.client.abort()
    await eventually(lambda: len(running.gateway.handler_manager) == before - 1)


async def come_back(running: RunningGateway, key: str, received: int = 0, user: str = "alice") -> Frame:
    """Connect, resume with a key, leave, and return the result."""
    async with resuming(running, user) as client:
        return await client.resume(key=key, received=received)


@pytest.mark.parametrize("server", ["nuropb-gateway", "websockets-sansio", "wsproto", "hypercorn"])
async def test_a_session_comes_back_with_its_calls_and_its_id(server: Server) -> None:
    lab = Lab()
    async with small(lab, server) as running:
        async with resuming(running) as client:
            assert client.client.hello["resume"] is True
            first = await client.resume()
            await client.client.request("lab.wait", {"number": 1}, id="a")
            await client.client.request("lab.echo", {"text": "x"}, id="b")
            await client.next()
            await lose(running, client)
        sessions = await running.gateway.service_mesh_manager.list_sessions("alice")
        assert [(each.session_id, each.connected) for each in sessions.sessions] == [(first["session_id"], False)]
        assert not (await running.gateway.service_mesh_manager.is_online(["alice"])).online["alice"]
        lab.gate.set()
        async with resuming(running) as again:
            result = await again.resume(key=client.key, received=0)
            assert (result["resumed"], result["replay"]) == (True, 2)
            assert result["session_id"] == first["session_id"]
            assert result["key"] != client.key
            frames = await again.next(2)
            assert {frame["payload"]["id"] for frame in frames} == {"a", "b"}
            assert not await again.client.settled()
            assert await again.client.result("lab.echo", {"text": "y"}) == "y"
        assert len(lab.calls) == 3
        if server != "hypercorn":  # which does not tell the client's close code
            await eventually(lambda: resumption(running).is_idle)


async def test_an_acknowledged_frame_is_not_replayed() -> None:
    async with small(Lab()) as running:
        async with resuming(running) as client:
            await client.resume()
            for number in range(5):
                await client.client.request("lab.echo", {"text": str(number)}, id=str(number))
            await client.next(5)
            await client.client.send("ack", received=3)
            await client.client.settled()
            await lose(running, client)
        async with resuming(running) as again:
            result = await again.resume(key=client.key, received=3)
            assert result["replay"] == 2
            assert [frame["payload"]["id"] for frame in await again.next(2)] == ["3", "4"]


@pytest.mark.parametrize("received", [-1, 1, 2**63, 2**70, "1", None, 1.5])
async def test_a_number_that_cannot_be_is_a_bad_request(received: Any) -> None:
    async with small(Lab()) as running, resuming(running) as client:
        await client.resume()
        await client.client.send("ack", received=received)
        error = await client.client.error()
        assert error["code"] == "bad_request"
        assert await client.client.result("lab.echo", {"text": "y"}) == "y"


async def test_an_acknowledgement_does_not_go_back() -> None:
    async with small(Lab()) as running, resuming(running) as client:
        await client.resume()
        await client.client.request("lab.echo", id="1")
        await client.next()
        await client.client.send("ack", received=1)
        await client.client.send("ack", received=0)
        assert (await client.client.error())["code"] == "bad_request"


async def test_more_frames_than_were_sent_are_a_bad_request_and_the_key_stays_good() -> None:
    async with small(Lab()) as running:
        async with resuming(running) as client:
            await client.resume()
            await lose(running, client)
        async with resuming(running) as again:
            answer = await again.client.ask("resume", key=client.key, received=2**63)
            assert answer["error"]["code"] == "bad_request"
        assert (await come_back(running, client.key))["resumed"]


# --- every reason -------------------------------------------------------------------------------------------------


async def test_without_a_window_resume_is_off() -> None:
    async with small(Lab(), resume_window=0) as running, resuming(running) as client:
        assert "resume" not in client.client.hello
        result = await client.resume()
        assert (result["resumed"], result["reason"], result["window"]) == (False, "off", 0)
        assert await client.client.result("lab.echo", {"text": "y"}) == "y"


async def test_after_the_window_a_session_has_expired() -> None:
    lab = Lab()
    async with small(lab, resume_window=0.2) as running:
        async with resuming(running) as client:
            assert (await client.resume())["window"] == 0.2
            await client.client.request("lab.wait", {"number": 1}, id="a")
            await client.client.settled()
            await lose(running, client)
        await eventually(lambda: resumption(running).is_idle)
        assert running.gateway.service_mesh_manager.in_flight == 0
        result = await come_back(running, client.key)
        assert (result["resumed"], result["reason"], result["received"]) == (False, "expired", 0)


async def test_a_full_buffer_ends_the_session_but_not_the_connection() -> None:
    async with small(Lab(), resume_buffer=1024) as running:
        async with resuming(running) as client:
            await client.resume()
            for number in range(20):
                assert await client.client.result("lab.echo", {"text": str(number) * 50})
            await lose(running, client)
        assert (await come_back(running, client.key))["reason"] == "overflow"


@pytest.mark.parametrize("free", range(0, 400, 25))
async def test_a_buffer_that_is_almost_full_loses_nothing_when_the_policy_has_changed(free: int) -> None:
    """The gateway's own frame about the topic needs room, too, and finds little."""
    policy = ExposePolicy(["lab.*"], ["lab.{user_id}", "#"])
    async with small(Lab(), resume_buffer=2048, policy=policy) as running:
        async with resuming(running) as client:
            await client.resume()
            await client.client.ask("subscribe", topics=["lab.#"])
            await client.client.result("lab.echo", {"text": "x" * (1700 - free)})
            await lose(running, client)
        policy.may_subscribe = lambda identity, pattern: False  # type: ignore[method-assign]
        async with resuming(running) as again:
            result = await again.resume(key=client.key)
            assert (result["resumed"], result["replay"]) == (True, 2)
            frames = await again.next(3)
            assert [each["type"] for each in frames] == ["response", "response", "event"]
            assert frames[2]["payload"]["topic"] == "unsubscribed"


async def test_events_of_a_topic_that_the_new_token_does_not_allow_are_not_replayed() -> None:
    policy = ExposePolicy(["lab.*"], ["#"])
    async with small(Lab(), policy=policy) as running:
        async with resuming(running) as client:
            await client.resume()
            await client.client.ask("subscribe", topics=["pay.#", "lab.#"])
            await lose(running, client)
        for number in range(5):
            await running.gateway.service_mesh_manager.publish_event("pay.day", {"number": number})
            await running.gateway.service_mesh_manager.publish_event("lab.day", {"number": number})
        policy.may_subscribe = lambda identity, pattern: pattern != "pay.#"  # type: ignore[method-assign]
        async with resuming(running) as again:
            result = await again.resume(key=client.key)
            assert (result["replay"], result["topics"]) == (6, ["lab.#"])
            topics = [frame["payload"].get("topic") for frame in await again.next(7)]
            assert topics == [None, *["lab.day"] * 5, "unsubscribed"]
            await again.client.send("ack", received=7)
            assert not await again.client.settled()
            await lose(running, again)
        assert (await come_back(running, again.key, 7))["resumed"]


async def test_a_buffer_that_fills_while_no_client_is_there_ends_the_session() -> None:
    async with small(Lab(), resume_buffer=1024) as running:
        async with resuming(running) as client:
            await client.resume()
            await client.client.ask("subscribe", topics=["lab.#"])
            await lose(running, client)
        for number in range(20):
            await running.gateway.service_mesh_manager.publish_event("lab.a", {"text": str(number) * 50})
        await eventually(lambda: resumption(running).is_idle)
        assert (await come_back(running, client.key))["reason"] == "overflow"


async def test_sessions_without_connections_take_so_much_memory_and_no_more() -> None:
    async with small(Lab(), resume_memory=3 * 4096 + 2048) as running:
        keys = []
        for _ in range(4):
            async with resuming(running) as client:
                await client.resume()
                keys.append(client.key)
                await lose(running, client)
        assert resumption(running).store.parked == 3
        assert resumption(running).store.parked_size <= 3 * 4096 + 2048
        assert (await come_back(running, keys[0]))["reason"] == "expired"
        assert (await come_back(running, keys[3]))["resumed"]


async def test_one_users_sessions_do_not_push_out_those_of_another() -> None:
    async with small(Lab(), resume_memory=40 * 4096) as running:
        async with resuming(running, "bob") as other:
            await other.resume()
            await lose(running, other)
        for _ in range(50):
            async with resuming(running) as client:
                await client.resume()
                await lose(running, client)
        assert resumption(running).store.parked_size <= 40 * 4096
        assert (await come_back(running, other.key, user="bob"))["resumed"]


async def test_a_user_has_no_more_sessions_without_a_connection_than_connections() -> None:
    lab = Lab()
    async with small(lab, max_connections_per_user=2, max_in_flight=3) as running:
        keys = []
        for _ in range(8):
            async with resuming(running) as client:
                await client.resume()
                keys.append(client.key)
                await client.client.request("lab.wait", {"number": 1}, id="w")
                await client.client.settled()
                await lose(running, client)
        assert resumption(running).store.parked == 2
        assert len(lab.calls) == 3  # calls of sessions without a connection, and of ended ones, count for their user
        assert (await come_back(running, keys[5]))["reason"] == "expired"
        assert (await come_back(running, keys[6]))["resumed"]


@pytest.mark.parametrize("key", ["x", "nobody:" + "x" * 43, ":" * 5, "~" * 256])
async def test_a_key_that_was_never_given_is_unknown_or_of_a_process_that_has_gone(key: str) -> None:
    async with small(Lab()) as running:
        result = await come_back(running, key)
        assert (result["resumed"], result["reason"]) == (
            False,
            "gone" if key.startswith("nobody") else result["reason"],
        )
        assert result["reason"] in ("unknown", "gone")


async def test_a_guessed_key_of_this_process_is_unknown() -> None:
    async with small(Lab()) as running, resuming(running) as client:
        await client.resume()
        process, _, secret = client.key.rpartition(":")
        assert (await come_back(running, f"{process}:{secret[::-1]}"))["reason"] == "unknown"


async def test_another_users_key_is_unknown_and_stays_good_for_its_user() -> None:
    async with small(Lab()) as running:
        async with resuming(running) as client:
            await client.resume()
            await lose(running, client)
        assert (await come_back(running, client.key, user="bob"))["reason"] == "unknown"
        assert (await come_back(running, client.key))["resumed"]


async def test_a_key_is_good_once() -> None:
    async with small(Lab()) as running:
        async with resuming(running) as client:
            await client.resume()
            await lose(running, client)
        async with resuming(running) as again:
            assert (await again.resume(key=client.key))["resumed"]
            assert (await come_back(running, client.key))["reason"] == "unknown"
            await again.client.settled()
            await lose(running, again)
        assert (await come_back(running, client.key))["reason"] == "unknown"
        assert (await come_back(running, again.key))["resumed"]


async def test_a_key_is_good_again_if_the_answer_was_lost_with_the_connection() -> None:
    async with small(Lab()) as running:
        async with resuming(running) as client:
            await client.resume()
            await lose(running, client)
        async with resuming(running) as again:
            await again.client.send("resume", id="r", key=client.key)
            await eventually(lambda: resumption(running).answers["resumed"])
            await lose(running, again)
        assert (await come_back(running, client.key))["resumed"]


async def test_a_session_that_its_client_closed_has_ended() -> None:
    async with small(Lab()) as running:
        async with resuming(running) as client:
            await client.resume()
        await eventually(lambda: resumption(running).is_idle)
        assert (await come_back(running, client.key))["reason"] == "ended"


@pytest.mark.parametrize("lost", [False, True], ids=["connected", "without a connection"])
async def test_a_session_that_the_gateway_closed_for_good_has_ended(lost: bool) -> None:
    async with small(Lab()) as running:
        async with resuming(running) as client:
            session_id = (await client.resume())["session_id"]
            if lost:
                await lose(running, client)
            await running.gateway.service_mesh_manager.disconnect_session(session_id)
            await eventually(lambda: resumption(running).is_idle)
        assert (await come_back(running, client.key))["reason"] == "ended"


async def test_a_revoked_users_sessions_have_ended() -> None:
    async with small(Lab()) as running:
        async with resuming(running) as client:
            await client.resume()
            await lose(running, client)
        await running.gateway.service_mesh_manager.revoke(user_id="alice")
        await eventually(lambda: resumption(running).is_idle)


async def test_a_session_moves_to_a_new_connection_while_the_old_one_seems_to_be_alive() -> None:
    async with small(Lab()) as running, resuming(running) as client:
        await client.resume()
        await client.client.ask("subscribe", topics=["lab.#"])
        async with resuming(running) as again:
            assert (await again.resume(key=client.key, received=1))["resumed"]
            assert (await client.client.closed()).code == 4001
            await running.gateway.service_mesh_manager.publish_event("lab.a", 1)
            assert (await again.next())[0]["payload"]["event"] == 1


@pytest.mark.parametrize("first", ["resume", "call", "subscription"])
async def test_a_key_is_for_the_beginning_of_a_connection(first: str) -> None:
    async with small(Lab()) as running, resuming(running) as client:
        if first == "resume":
            await client.resume()
        elif first == "call":
            await client.client.result("lab.echo")
        else:
            await client.client.ask("subscribe", topics=["lab.#"])
        answer = await client.client.ask("resume", key="some:key")
        assert answer["error"]["code"] == "bad_request"


async def test_a_session_becomes_resumable_after_calls() -> None:
    lab = Lab()
    async with small(lab) as running:
        async with resuming(running) as client:
            await client.client.request("lab.wait", {"number": 1}, id="a")
            await client.client.ask("subscribe", topics=["lab.#"])
            await client.resume()
            await lose(running, client)
        await running.gateway.service_mesh_manager.publish_event("lab.a", 1)
        async with resuming(running) as again:
            result = await again.resume(key=client.key)
            assert (result["in_flight"], result["topics"]) == (["a"], ["lab.#"])
            lab.gate.set()
            frames = await again.next(2)
            assert [frame["type"] for frame in frames] == ["event", "response"]


async def test_the_policy_is_asked_again_and_a_cancel_works_after_a_resume() -> None:
    lab = Lab()
    async with small(lab) as running:
        async with resuming(running) as client:
            await client.resume()
            await client.client.request("lab.wait", {"number": 1}, id="a")
            await client.client.settled()
            await lose(running, client)
        async with resuming(running) as again:
            assert (await again.resume(key=client.key))["in_flight"] == ["a"]
            await again.client.send("cancel", id="a")
            assert (await again.client.answer("a"))["error"]["code"] == "cancelled"


async def test_one_execution_for_two_calls_with_the_same_idempotency_key() -> None:
    lab = Lab()
    async with small(lab) as running, resuming(running) as client:
        await client.resume()
        await client.client.request("lab.wait", {"number": 1}, id="a", idempotency_key="k")
        await client.client.request("lab.wait", {"number": 1}, id="b", idempotency_key="k")
        await client.client.settled()
        lab.gate.set()
        assert (await client.client.answer("a"))["result"] == 1
        assert (await client.client.answer("b"))["result"] == 1
        assert await client.client.result("lab.wait", {"number": 1}, idempotency_key="k") == 1
        assert len(lab.calls) == 1
        assert await client.client.error_code("lab.wait", {"number": 2}, idempotency_key="k") == "bad_request"


@pytest.mark.parametrize("key", ["", "x" * 65, "\u00e9", 7])
async def test_an_idempotency_key_is_short_and_printable(key: Any) -> None:
    async with small(Lab()) as running, resuming(running) as client:
        assert await client.client.error_code("lab.echo", idempotency_key=key) == "bad_request"


async def test_calls_of_sessions_without_a_connection_count_for_their_user() -> None:
    lab = Lab()
    async with small(lab, max_in_flight=4) as running:
        async with resuming(running) as client:
            await client.resume()
            for number in range(4):
                await client.client.request("lab.wait", {"number": number}, id=str(number))
            await client.client.settled()
            await lose(running, client)
        async with resuming(running) as other:
            assert await other.client.error_code("lab.echo") == "too_many_requests"
        async with resuming(running, "bob") as other:
            assert await other.client.result("lab.echo", {"text": "y"}) == "y"
        lab.gate.set()
        await eventually(lambda: not running.gateway.service_mesh_manager.in_flight)
        async with resuming(running) as again:
            assert (await again.resume(key=client.key))["replay"] == 4
            await again.next(4)
            assert await again.client.result("lab.echo", {"text": "y"}) == "y"


# --- other transports ---------------------------------------------------------------------------------------------


async def test_an_event_stream_goes_on_behind_the_last_event_that_it_saw() -> None:
    async with small(Lab(), http="on") as running:
        publish = running.gateway.service_mesh_manager.publish_event
        headers = {"Authorization": f"Bearer {issue_token(SECRET, 'alice', lifetime=600)}"}
        async with httpx.AsyncClient(base_url=running.site.http(), headers=headers) as http:
            first = await _listen(http, "", 2, lambda: publish("lab.a", 0))
            assert [data["topic"] for _, data in first] == ["hello", "lab.a"]
            (_, (last, _)) = first
            for number in range(1, 4):
                await publish("lab.a", number)
            second = await _listen(http, last, 4, _nothing)
            assert [data["event"] for _, data in second[1:]] == [1, 2, 3]
            third = await _listen(http, f"{last.rpartition(':')[0]}x:7", 2, _nothing)
            assert [data["topic"] for _, data in third] == ["hello", "gap"]


async def _nothing() -> None:
    pass


async def _listen(
    http: httpx.AsyncClient, last: str, count: int, do: Callable[[], Awaitable[None]]
) -> list[tuple[str, Frame]]:
    """Return the first ``count`` events of a stream, with their ids; ``do`` is called once it has begun."""
    events: list[tuple[str, Frame]] = []
    headers = {"Last-Event-ID": last} if last else {}
    async with http.stream("GET", "/events", params={"topic": "lab.#"}, headers=headers) as stream:
        id_ = ""
        async for line in stream.aiter_lines():
            if line.startswith("id: "):
                id_ = line[4:]
            elif line.startswith("data: "):
                events.append((id_, json.loads(line[6:])))
                if len(events) == 1:
                    await do()
                if len(events) == count:
                    break
    return events


async def test_a_call_over_http_that_is_repeated_with_its_key_runs_once() -> None:
    lab = Lab()
    async with small(lab, http="on") as running:
        headers = {"Authorization": f"Bearer {issue_token(SECRET, 'alice', lifetime=600)}", "Idempotency-Key": "k"}
        async with httpx.AsyncClient(base_url=running.site.http(), headers=headers) as http:
            first = asyncio.create_task(http.post("/rpc/lab/wait", json={"number": 1}))
            await eventually(lambda: lab.calls)
            first.cancel()  # its client leaves
            await asyncio.wait([first])
            again = asyncio.create_task(http.post("/rpc/lab/wait", json={"number": 1}))
            await eventually(lambda: running.occupancy[1] == 0)
            lab.gate.set()
            assert (await again).json() == 1
            assert (await http.post("/rpc/lab/wait", json={"number": 1})).json() == 1
            assert len(lab.calls) == 1
            assert (await http.post("/rpc/lab/wait", json={"number": 2})).status_code == 400
            assert (await http.post("/rpc/lab/wait", json={"number": 1}, headers={"Idempotency-Key": ""})).json() == 1


async def test_a_session_moves_between_transports() -> None:
    lab = Lab()
    async with small(lab, tcp="127.0.0.1:0") as running:
        async with resuming(running) as client:
            await client.resume()
            await client.client.ask("subscribe", topics=["lab.#"])
            await client.client.request("lab.wait", {"number": 1}, id="a")
            await client.client.settled()
            await lose(running, client)
        await running.gateway.service_mesh_manager.publish_event("lab.a", 1)
        reader, writer = await asyncio.open_connection("127.0.0.1", running.gateway.tcp_port)

        async def ask(type_: str, **payload: Any) -> Frame:
            writer.write(json.dumps({"type": type_, "payload": payload | {"id": "x"}}).encode() + b"\n")
            while True:
                frame: Frame = json.loads(await reader.readline())
                if frame["type"] == "response":
                    answer: Frame = frame["payload"]
                    return answer

        await ask("authorize", token=issue_token(SECRET, "alice", lifetime=600))
        result = (await ask("resume", key=client.key, received=1))["result"]
        assert (result["resumed"], result["in_flight"], result["replay"]) == (True, ["a"], 1)
        assert json.loads(await reader.readline())["payload"]["event"] == 1
        lab.gate.set()
        assert json.loads(await reader.readline())["payload"] | {"trace_id": ""} == {
            "id": "a",
            "trace_id": "",
            "result": 1,
            "error": None,
        }
        writer.close()

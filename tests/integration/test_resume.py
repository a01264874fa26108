"""Sessions that survive their connections: at the same process, at another one, and during a drain."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator
from typing import Any, Literal

import pytest

from nuropb_gateway_asgi import JWTAuthenticator
from nuropb_gateway_asgi.authentication import issue_token
from nuropb_gateway_asgi.mesh.embedded import EmbeddedMesh
from nuropb_gateway_asgi.sessions import Resumption
from tests.integration.test_fleet import SECRET, fleet
from tests.kit.clients import Client, Frame, connect
from tests.kit.gateways import RunningGateway, eventually, make_gateway, run_gateway
from tests.servers.processes import ServiceProcess


class ResumingClient:
    """A client that counts frames and comes back with its key."""

    def __init__(self, client: Client) -> None:
        self.client = client
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
        yield ResumingClient(client)


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


async def _publish(publish: Any, topic: str, count: int) -> None:
    for number in range(count):
        await publish(topic, {"number": number})
        if number % 5 == 0:
            await asyncio.sleep(0.001)


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

"""Events over a WebSocket: subscriptions, topics, targets."""

from __future__ import annotations

from tests.integration.websocket.conftest import publish
from tests.kit.clients import Client, connect
from tests.kit.gateways import RunningGateway, run_gateway


async def test_events_come_to_who_subscribed(client: Client, running: RunningGateway) -> None:
    answer = await client.ask("subscribe", topics=["demo.orders.*", "demo.users.#"], trace_id="t")
    assert answer["result"] == {"topics": ["demo.orders.*", "demo.users.#"]}
    assert answer["trace_id"] == "t"
    async with connect(running.url, "bob") as publisher:
        await publish(publisher, "demo.orders.created", {"n": 1})
        await publish(publisher, "demo.orders.created.twice", {"n": 2})
        await publish(publisher, "demo.users", {"n": 3})
        await publish(publisher, "demo.other", {"n": 4})
        assert await publisher.settled() == []
    events = [frame["payload"] for frame in await client.settled()]
    assert [(event["topic"], event["event"]["n"]) for event in events] == [
        ("demo.orders.created", 1),
        ("demo.users", 3),
    ]


async def test_an_event_comes_once_however_many_patterns_match(client: Client) -> None:
    await client.ask("subscribe", topics=["demo.a.#", "demo.a.*", "demo.*.b", "demo.a.b"])
    await publish(client, "demo.a.b", [])
    assert (await client.event("demo.a.b"))["event"] == []
    assert await client.settled() == []


async def test_unsubscribed_is_unsubscribed(client: Client) -> None:
    await client.ask("subscribe", topics=["demo.a", "demo.b", "demo.a"])
    assert (await client.ask("subscribe", topics=["demo.a"]))["result"] == {"topics": ["demo.a", "demo.b"]}
    answer = await client.ask("unsubscribe", topics=["demo.a", "demo.never"])
    assert answer["result"] == {"topics": ["demo.b"]}
    await publish(client, "demo.a", 1)
    await publish(client, "demo.b", 2)
    assert [frame["payload"]["event"] for frame in await client.settled()] == [2]


async def test_subscribing_is_all_or_nothing(client: Client) -> None:
    for topics in (["demo.a", "orders.a"], ["demo.a", "#"], ["demo.a", "*.a"]):
        assert (await client.ask("subscribe", topics=topics))["error"]["code"] == "permission_denied"
    for topics in (["demo.a", ""], ["demo.a", "demo.a*"], ["demo.a", "demo." + "x" * 255]):
        assert (await client.ask("subscribe", topics=topics))["error"]["code"] == "bad_request"
    too_many = [f"demo.a.{number}" for number in range(101)]
    assert (await client.ask("subscribe", topics=too_many))["error"]["code"] == "bad_request"
    assert (await client.ask("unsubscribe", topics=[]))["result"] == {"topics": []}
    await publish(client, "demo.a", 1)
    assert (await client.ask("subscribe", topics=too_many[:100]))["error"] is None
    assert (await client.ask("subscribe", topics=["demo.b"]))["error"]["code"] == "bad_request"


async def test_topics_of_a_user() -> None:
    async with run_gateway(expose_topics=["users.{user_id}.#"]) as running, connect(running.url, "al") as al:
        assert (await al.ask("subscribe", topics=["users.al.#"]))["error"] is None
        for topic in ("users.bob.#", "users.*.x", "users.#", "users.al", "users.al*", "users.alice"):
            allowed = topic == "users.al"
            assert ((await al.ask("subscribe", topics=[topic]))["error"] is None) is allowed


async def test_a_target_gets_its_event_and_nobody_else_does(client: Client, running: RunningGateway) -> None:
    async with connect(running.url, "bob") as bob, connect(running.url, "bob:2") as bob_again:
        await client.ask("subscribe", topics=["demo.private"])
        await publish(client, "demo.private", "psst", target=["bob", "carol"])
        for target in (bob, bob_again):
            assert (await target.event("demo.private"))["event"] == "psst"
        await publish(client, "demo.private", "nobody", target=[])
        assert await bob.settled() == await bob_again.settled() == []


async def test_the_demo_ticks(client: Client) -> None:
    await client.ask("subscribe", topics=["demo.tick"])
    first, second = [(await client.event("demo.tick"))["event"]["count"] for _ in range(2)]
    assert second == first + 1
    await client.ask("unsubscribe", topics=["demo.tick"])
    await client.settled()

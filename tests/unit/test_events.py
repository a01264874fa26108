"""Events of the mesh: subscriptions, fan-out, and the events of the controller."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nuropb_gateway_asgi import ServiceMeshManagerController, protocol
from nuropb_gateway_asgi.authentication import Identity
from nuropb_gateway_asgi.authorization import ExposePolicy
from nuropb_gateway_asgi.authorization.rules import Delivery
from nuropb_gateway_asgi.exceptions import SettingsError
from nuropb_gateway_asgi.protocol import MAX_SUBSCRIPTIONS
from nuropb_gateway_asgi.routing import events as events_module
from nuropb_gateway_asgi.routing import own_topics
from nuropb_gateway_asgi.routing.controller_events import MAX_CONTROLLER_EVENTS
from nuropb_gateway_asgi.routing.interest import UNBIND_AFTER
from nuropb_gateway_asgi.wire.interface import EventMessage

from .fakes import FakeGateway, FakeHandler, answers, make_gateway, running, until

# --- subscriptions --------------------------------------------------------------------------------------


def subscribe(gateway: FakeGateway, handler: FakeHandler, *topics: str, **payload: Any) -> list[dict[str, Any]]:
    return gateway.receive(handler, "subscribe", topics=list(topics), **payload)


def unsubscribe(gateway: FakeGateway, handler: FakeHandler, *topics: str, **payload: Any) -> list[dict[str, Any]]:
    return gateway.receive(handler, "unsubscribe", topics=list(topics), **payload)


async def let_go(gateway: FakeGateway) -> None:
    """Wait until topics without subscribers are unbound."""
    await gateway.sweep(UNBIND_AFTER)


async def test_a_subscription_is_answered_with_all_there_are(gateway: FakeGateway) -> None:
    handler = await gateway.connect()
    subscribe(gateway, handler, "a", "b.*", id="1", trace_id="t")
    subscribe(gateway, handler, "c", "a", "c", id="2")
    subscribe(gateway, handler, id="3")
    unsubscribe(gateway, handler, "a", "never", "a", id="4")
    unsubscribe(gateway, handler, id="5")
    assert answers(handler) == [
        ("1", {"topics": ["a", "b.*"]}, None),
        ("2", {"topics": ["a", "b.*", "c"]}, None),
        ("3", {"topics": ["a", "b.*", "c"]}, None),
        ("4", {"topics": ["b.*", "c"]}, None),
        ("5", {"topics": ["b.*", "c"]}, None),
    ]
    assert handler.frames[0]["payload"]["trace_id"] == "t"


async def test_a_subscription_is_answered_once_all_of_its_topics_are_bound(gateway: FakeGateway) -> None:
    gateway.mesh.binds_at_once = False
    handler = await gateway.connect()
    subscribe(gateway, handler, "a", "b", id="1")
    gateway.mesh.bound("b")
    assert not handler.frames
    gateway.mesh.bound("a")
    assert answers(handler) == [("1", {"topics": ["a", "b"]}, None)]


async def test_asking_again_does_not_make_it_bound(gateway: FakeGateway) -> None:
    gateway.mesh.binds_at_once = False
    handler = await gateway.connect()
    subscribe(gateway, handler, "a", id="1")
    subscribe(gateway, handler, "a", id="2")
    assert not handler.frames
    gateway.mesh.bound("a")
    assert answers(handler) == [("1", {"topics": ["a"]}, None), ("2", {"topics": ["a"]}, None)]


async def test_the_answer_tells_what_is_so_when_it_is_given(gateway: FakeGateway) -> None:
    gateway.mesh.binds_at_once = False
    handler = await gateway.connect()
    subscribe(gateway, handler, "a", "b", id="1")
    unsubscribe(gateway, handler, "a", id="2")
    gateway.mesh.bound("b")
    assert answers(handler) == [("2", {"topics": ["b"]}, None), ("1", {"topics": ["b"]}, None)]


async def test_a_second_subscriber_waits_for_the_binding_of_the_first(gateway: FakeGateway) -> None:
    gateway.mesh.binds_at_once = False
    one, two = await gateway.connect(), await gateway.connect()
    subscribe(gateway, one, "a")
    subscribe(gateway, two, "a")
    assert not two.frames
    gateway.mesh.bound("a")
    assert (len(one.frames), len(two.frames)) == (1, 1)


async def test_who_leaves_before_the_binding_is_answered_at_most_once(gateway: FakeGateway) -> None:
    gateway.mesh.binds_at_once = False
    handler = await gateway.connect()
    subscribe(gateway, handler, "a", "b")
    unsubscribe(gateway, handler, "a")
    gateway.mesh.bound("b")
    assert len(handler.frames) == 2
    subscribe(gateway, handler, "c")
    gateway.handlers.unregister(handler)
    assert len(handler.frames) <= 3
    gateway.assert_idle()


async def test_the_mesh_hears_of_the_first_and_the_last_subscriber(gateway: FakeGateway) -> None:
    one, two = await gateway.connect(), await gateway.connect()
    subscribe(gateway, one, "a")
    subscribe(gateway, two, "a")
    unsubscribe(gateway, one, "a")
    assert ("-", "a") not in gateway.mesh.bindings
    unsubscribe(gateway, two, "a")
    assert set(gateway.mesh.bindings) == {("+", "a")}
    await let_go(gateway)
    assert gateway.mesh.bindings[-1] == ("-", "a")


async def test_who_leaves_is_subscribed_to_nothing(gateway: FakeGateway) -> None:
    handler, other = await gateway.connect(), await gateway.connect()
    subscribe(gateway, handler, "a", "b")
    subscribe(gateway, other, "b")
    gateway.handlers.unregister(handler)
    await let_go(gateway)
    assert [binding for binding in gateway.mesh.bindings if binding[0] == "-"] == [("-", "a")]
    gateway.mesh.event("b")
    assert len(handler.frames) == 1
    gateway.handlers.unregister(other)
    gateway.assert_idle()


async def test_a_connection_has_only_so_many_subscriptions(gateway: FakeGateway) -> None:
    handler = await gateway.connect()
    subscribe(gateway, handler, *[f"t.{number}" for number in range(MAX_SUBSCRIPTIONS - 1)])
    await until(lambda: handler.frames)  # its topics are checked in slices
    bindings = len(gateway.mesh.bindings)
    subscribe(gateway, handler, "x", "y", id="1")
    assert answers(handler)[1] == ("1", None, "bad_request")
    assert len(gateway.mesh.bindings) == bindings
    gateway.mesh.event("x")
    assert len(handler.frames) == 2
    subscribe(gateway, handler, "x", "x", "t.1", id="2")
    assert handler.codes[-1] is None
    assert len(answers(handler)[-1][1]["topics"]) == MAX_SUBSCRIPTIONS
    unsubscribe(gateway, handler, "x")
    subscribe(gateway, handler, "y", id="3")
    assert handler.codes[-1] is None


async def test_a_subscription_that_is_refused_in_part_is_refused() -> None:
    async with running(policy=ExposePolicy([], ["orders.*"])) as gateway:
        handler = await gateway.connect()
        subscribe(gateway, handler, "orders.new", "users.new")
        assert handler.codes == ["permission_denied"]
        assert not gateway.mesh.bindings
        gateway.mesh.event("orders.new")
        assert len(handler.frames) == 1


# --- subscriptions ended by the policy ------------------------------------------------------------------


async def test_a_topic_that_the_broker_refuses_fails_its_whole_subscription(gateway: FakeGateway) -> None:
    gateway.mesh.refused = {"b"}
    handler, other = await gateway.connect(), await gateway.connect("bob")
    subscribe(gateway, other, "a", id="0")
    subscribe(gateway, handler, "a", id="1")
    subscribe(gateway, handler, "b", "c", id="2")
    assert answers(handler)[1] == ("2", None, "permission_denied")
    assert handler.frames[1]["payload"]["error"]["description"] == "Subscribing to b is not allowed by the broker"
    subscribe(gateway, handler, "a", id="3")
    assert answers(handler)[2] == ("3", {"topics": ["a"]}, None)
    gateway.mesh.event("c")
    assert len(handler.frames) == 3


async def test_a_topic_that_is_refused_after_its_client_has_gone_concerns_nobody(gateway: FakeGateway) -> None:
    gateway.mesh.binds_at_once, gateway.mesh.refused = False, {"b"}
    handler = await gateway.connect()
    subscribe(gateway, handler, "b")
    gateway.manager.on_handler_unregistered(handler)
    assert not gateway.mesh.waiting
    assert gateway.manager.events.subscriptions == 0


async def test_a_topic_that_the_broker_refuses_later_ends_its_subscriptions(gateway: FakeGateway) -> None:
    one, two, three = await gateway.connect(), await gateway.connect("bob"), await gateway.connect("carol")
    subscribe(gateway, one, "a", "b")
    subscribe(gateway, two, "a")
    subscribe(gateway, three, "b")
    gateway.mesh.told.on_topic_refused("a")
    expected = {"topic": "unsubscribed", "event": {"topics": ["a"], "reason": "broker"}}
    assert [handler.frames[-1]["payload"] for handler in (one, two)] == [expected] * 2
    assert len(three.frames) == 1
    assert gateway.manager.events.topics == {"b"}
    assert gateway.manager.statistics.denied_subscriptions == 2
    assert gateway.manager.warnings == []


async def test_refused_topics_of_the_gateway_itself_are_warnings_before_any_client_comes() -> None:
    async with running(targeted_topics=["users.#", "news"]) as gateway:
        assert gateway.manager.warnings == []
        gateway.mesh.refused = {"users.#"}
        gateway.mesh.lose()
        gateway.mesh.find()
        (warning,) = gateway.manager.warnings
        assert warning.startswith("events of the topic users.# do not come")
        await gateway.connect()  # who is not kept waiting
        gateway.mesh.refused = set()
        gateway.mesh.lose()
        await gateway.sweep(UNBIND_AFTER)


def unsubscribed(*topics: str) -> dict[str, Any]:
    event = {"topics": list(topics), "reason": "policy"}
    return {"type": "event", "payload": {"topic": "unsubscribed", "event": event}}


async def test_subscriptions_that_new_rules_do_not_allow_end_and_the_client_is_told() -> None:
    policy = ExposePolicy([], ["orders.#", "users.{user_id}.#"])
    async with running(policy=policy) as gateway:
        alice, bob, carol = [await gateway.connect(name) for name in ("alice", "bob", "carol")]
        subscribe(gateway, alice, "orders.new", "users.alice.#", "orders.*")
        subscribe(gateway, bob, "orders.new")
        subscribe(gateway, carol, "users.carol.#")
        for handler in (alice, bob, carol):
            handler.take()
        policy.replace(ExposePolicy([], ["users.{user_id}.#", "orders.secret"]).rules)
        await gateway.manager.on_policy_changed()
        assert alice.take() == [unsubscribed("orders.new", "orders.*")]
        assert bob.take() == [unsubscribed("orders.new")]
        assert carol.take() == []
        await let_go(gateway)
        assert sorted(gateway.mesh.bindings[-2:]) == [("-", "orders.*"), ("-", "orders.new")]
        gateway.mesh.event("orders.new")
        gateway.mesh.event("users.alice.x")
        assert [frame["payload"]["topic"] for frame in alice.take()] == ["users.alice.x"]
        assert bob.take() == []
        assert gateway.manager.statistics.denied_subscriptions == 3
        unsubscribe(gateway, alice)
        assert answers(alice)[-1][1] == {"topics": ["users.alice.#"]}
        await gateway.manager.on_policy_changed()
        assert len(alice.frames) == 1


async def test_while_subscriptions_are_looked_at_connections_may_come_and_go() -> None:
    policy = ExposePolicy([], ["#"])
    async with running(policy=policy) as gateway:
        handlers = [await gateway.connect() for _ in range(20)]
        for handler in handlers:
            subscribe(gateway, handler, "orders.new")
        policy.replace([])
        task = asyncio.create_task(gateway.manager.on_policy_changed())
        await until(lambda: len(handlers[0].frames) == 2)
        for handler in handlers[10:]:
            gateway.handlers.unregister(handler)
        late = await gateway.connect()
        subscribe(gateway, late, "orders.new")
        await task
        assert [len(handler.frames) for handler in handlers[:10]] == [2] * 10
        assert all(len(handler.frames) <= 2 for handler in handlers)
        assert late.codes == ["permission_denied"]
        gateway.mesh.event("orders.new")
        assert [len(handler.frames) for handler in handlers[:10]] == [2] * 10


async def test_a_policy_that_breaks_ends_the_subscription_and_not_the_look_at_the_others() -> None:
    class Broken(ExposePolicy):
        broken = False

        def may_subscribe(self, identity: Identity, pattern: str) -> bool:
            assert not (self.broken and identity.user_id == "alice")
            return super().may_subscribe(identity, pattern)

    policy = Broken([], ["#"])
    async with running(policy=policy) as gateway:
        alice, bob = await gateway.connect("alice"), await gateway.connect("bob")
        subscribe(gateway, alice, "orders.new")
        subscribe(gateway, bob, "orders.new")
        policy.broken = True
        await gateway.manager.on_policy_changed()
        assert alice.frames[1:] == [unsubscribed("orders.new")]
        assert len(bob.frames) == 1


async def test_a_topic_that_waits_for_its_binding_is_not_in_the_answer_once_it_is_denied() -> None:
    policy = ExposePolicy([], ["#"])
    async with running(policy=policy) as gateway:
        handler = await gateway.connect()
        gateway.mesh.binds_at_once = False
        subscribe(gateway, handler, "orders.new", "users.new", id="1")
        policy.replace(ExposePolicy([], ["users.#"]).rules)
        gateway.manager.on_handler_refreshed(handler)
        assert handler.take() == [unsubscribed("orders.new")]
        gateway.mesh.bound("users.new")
        assert answers(handler) == [("1", {"topics": ["users.new"]}, None)]


async def test_a_newer_token_that_allows_less_ends_subscriptions_after_its_answer() -> None:
    class Tokens(ExposePolicy):
        def may_subscribe(self, identity: Identity, pattern: str) -> bool:
            return identity.token == "alice/more" or pattern == "orders.new"

    async with running(policy=Tokens([], [])) as gateway:
        handler = await gateway.connect("alice/more")
        subscribe(gateway, handler, "orders.new", "orders.secret", "users.new")
        handler.take()
        gateway.receive(handler, "authorize", token="alice/less", id="1")
        await handler.finish()
        first, second = handler.take()
        assert first["payload"]["id"] == "1"
        assert second == unsubscribed("orders.secret", "users.new")
        gateway.receive(handler, "authorize", token="alice/same", id="2")
        gateway.receive(handler, "authorize", token="bad", id="3")
        await handler.finish()
        assert all(frame["type"] == "response" for frame in handler.take())


async def test_a_newer_token_is_charged_for_the_subscriptions_that_are_checked_again_in_slices() -> None:
    topics = [f"t{number}" for number in range(100)]

    class Tokens(ExposePolicy):
        def may_subscribe(self, identity: Identity, pattern: str) -> bool:
            return identity.token == "alice/more"

    async with running(policy=Tokens([], []), rate_limit="1/s burst 250") as gateway:
        handler = await gateway.connect("alice/more")
        gateway.receive(handler, "subscribe", topics=topics)
        await until(lambda: len(gateway.manager.events.topics) == 100)
        slices = gateway.handlers.slices.count
        gateway.receive(handler, "authorize", token="alice/less", id="1")
        await until(lambda: not gateway.manager.events.topics)
        assert gateway.handlers.slices.count == slices + 13
        handler.take()
        for _ in range(50):
            gateway.receive(handler, "ping")
        assert gateway.handlers.statistics.limited == {}
        gateway.receive(handler, "ping")
        assert gateway.handlers.statistics.limited == {"connection": 1}


async def test_a_connection_without_subscriptions_is_not_told_anything(gateway: FakeGateway) -> None:
    handler = await gateway.connect()
    gateway.manager.on_handler_refreshed(handler)
    gateway.manager.on_handler_refreshed(FakeHandler())
    assert handler.frames == []


async def test_a_topic_of_the_controller_stays_bound_when_clients_lose_it() -> None:
    policy = ExposePolicy([], ["#"])
    controller = ServiceMeshManagerController(event_topic_subscriptions=["orders.new"])
    async with running(controller, policy=policy) as gateway:
        handler = await gateway.connect()
        subscribe(gateway, handler, "orders.new")
        policy.replace([])
        await gateway.manager.on_policy_changed()
        assert handler.frames[1:] == [unsubscribed("orders.new")]
        assert ("-", "orders.new") not in gateway.mesh.bindings


# --- events ---------------------------------------------------------------------------------------------


async def test_an_event_goes_to_who_subscribed_to_its_topic_once(gateway: FakeGateway) -> None:
    one, two, three = [await gateway.connect() for _ in range(3)]
    subscribe(gateway, one, "orders.*", "orders.#", "#")
    subscribe(gateway, two, "orders.new")
    subscribe(gateway, three, "users.*")
    for handler in (one, two, three):
        handler.take()
    gateway.mesh.event("orders.new", {"id": 7}, trace_id="t")
    event = {"type": "event", "payload": {"topic": "orders.new", "event": {"id": 7}, "trace_id": "t"}}
    assert (one.frames, two.frames, three.frames) == ([event], [event], [])
    assert gateway.manager.statistics.events == 1


@pytest.mark.parametrize("topic", ["hello", "goodbye", "unsubscribed", "gap", "dropped", "closed"])
async def test_an_event_of_the_mesh_never_has_a_topic_of_the_gateway(gateway: FakeGateway, topic: str) -> None:
    handler = await gateway.connect()
    subscribe(gateway, handler, "*", topic)
    handler.take()
    gateway.mesh.event(topic, {"retry_after_ms": 86_400_000})
    gateway.mesh.event(topic, {}, target=["alice"])
    gateway.mesh.event(f"{topic}s", {})
    assert [frame["payload"]["topic"] for frame in handler.take()] == [f"{topic}s"]
    assert gateway.manager.statistics.reserved_events == 2


async def test_an_event_is_encoded_once(gateway: FakeGateway) -> None:
    handlers = [await gateway.connect() for _ in range(20)]
    for handler in handlers:
        subscribe(gateway, handler, "#")
        handler.take()
    gateway.mesh.event("orders.new", {})
    assert len({id(handler.texts[0]) for handler in handlers}) == 1


async def test_an_event_with_targets_goes_to_their_connections_alone(gateway: FakeGateway) -> None:
    handlers = {token: await gateway.connect(token) for token in ("alice/1", "alice/2", "bob", "carol")}
    subscribe(gateway, handlers["carol"], "#")
    handlers["carol"].take()
    gateway.mesh.event("orders.new", {}, target=["alice", "bob", "alice", "nobody"])
    assert [len(handler.frames) for handler in handlers.values()] == [1, 1, 1, 0]
    gateway.mesh.event("orders.new", {}, target=[])
    assert [len(handler.frames) for handler in handlers.values()] == [1, 1, 1, 0]


async def test_an_event_for_nobody_here_is_not_encoded(gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []
    original = protocol.encode_event

    def encode_event(topic: str, *rest: Any) -> str:
        encoded.append(topic)
        return original(topic, *rest)

    monkeypatch.setattr(events_module, "encode_event", encode_event)
    subscribe(gateway, await gateway.connect("alice"), "orders.*")
    for topic, target in (("orders.new", ["bob", "carol"]), ("users.new", None), ("orders.old", [])):
        gateway.mesh.event(topic, {}, target=target)
    assert (encoded, gateway.manager.statistics.events) == ([], 3)
    gateway.mesh.event("users.new", {}, target=["bob", "alice"])
    assert encoded == ["users.new"]


async def test_subscribers_may_leave_while_an_event_is_handed_out(gateway: FakeGateway) -> None:
    handlers = [await gateway.connect() for _ in range(5)]
    for handler in handlers:
        subscribe(gateway, handler, "#")
        handler.take()

    def leave_all() -> None:
        for handler in handlers:
            gateway.handlers.unregister(handler)

    for handler in handlers:
        handler.on_send = leave_all
    gateway.mesh.event("a")
    assert len(gateway.handlers) == 0
    gateway.assert_idle()


class Deliveries(ExposePolicy):
    """A policy whose delivery is the first word of the subscription, ``close`` for any other word."""

    def delivery(self, identity: Identity, pattern: str) -> Delivery:
        first = pattern.partition(".")[0]
        return first if first in ("drop_oldest", "latest") else "close"  # type: ignore[return-value]


async def test_what_becomes_of_events_for_a_slow_client_is_for_the_policy_to_say() -> None:
    async with running(policy=Deliveries([], ["#"])) as gateway:
        one, two = await gateway.connect(), await gateway.connect()
        subscribe(gateway, one, "drop_oldest.*", "latest.#", "news")
        subscribe(gateway, two, "latest.price")
        one.take(), two.take()
        for topic in ("drop_oldest.a", "latest.price", "news", "nothing"):
            gateway.mesh.event(topic)
        assert one.lossy == [("drop_oldest.a", "drop_oldest"), ("latest.price", "latest")]
        assert two.lossy == [("latest.price", "latest")]
        assert (len(one.frames), len(two.frames)) == (3, 1)
        unsubscribe(gateway, one, "latest.#", "drop_oldest.*")
        one.take()
        gateway.mesh.event("latest.price")
        assert one.frames == []
        for handler in (one, two):
            gateway.handlers.unregister(handler)
        gateway.assert_idle()


@pytest.mark.parametrize(
    ("topics", "lossy"),
    [
        (["latest.#", "drop_oldest.x", "#"], []),
        (["*.x", "latest.x"], []),
        (["latest.x", "latest.*"], ["latest"]),
        (["latest.*", "drop_oldest.#", "latest.x"], ["latest"]),
    ],
)
async def test_an_event_comes_once_and_in_the_way_that_loses_least(topics: list[str], lossy: list[str]) -> None:
    async with running(policy=Deliveries([], ["#"])) as gateway:
        handler = await gateway.connect()
        subscribe(gateway, handler, *topics)
        handler.take()
        gateway.mesh.event("latest.x")
        assert len(handler.frames) == 1
        assert [delivery for _, delivery in handler.lossy] == lossy


# --- topics of targeted events --------------------------------------------------------------------------


async def test_a_process_asks_for_targeted_events_as_long_as_it_has_connections() -> None:
    async with running(targeted_topics=["users.#", "news"]) as gateway:
        assert gateway.mesh.bindings == []
        one, two = await gateway.connect(), await gateway.connect()
        assert gateway.mesh.bindings == [("+", "users.#"), ("+", "news")]
        gateway.handlers.unregister(one)
        await let_go(gateway)
        gateway.handlers.unregister(two)
        assert len(gateway.mesh.bindings) == 2
        await let_go(gateway)
        assert gateway.mesh.bindings[2:] == [("-", "users.#"), ("-", "news")]
        await gateway.connect()
        assert gateway.mesh.bindings[4:] == [("+", "users.#"), ("+", "news")]


async def test_connections_wait_until_targeted_events_come() -> None:
    async with running(targeted_topics=["#"]) as gateway:
        gateway.mesh.binds_at_once = False
        connecting = [asyncio.create_task(gateway.connect()) for _ in range(2)]
        await until(lambda: gateway.mesh.waiting)
        await asyncio.sleep(0)
        assert len(gateway.handlers) == 0
        gateway.mesh.bound("#")
        await asyncio.gather(*connecting)
        assert gateway.mesh.bindings == [("+", "#")]
        await gateway.connect()
        assert gateway.mesh.bindings == [("+", "#")]


async def test_a_broker_that_binds_slowly_keeps_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_topics, "BINDING_TIMEOUT", 0.01)
    async with running(targeted_topics=["#"]) as gateway:
        gateway.mesh.binds_at_once = False
        await gateway.connect()
        assert len(gateway.handlers) == 1


async def test_who_waits_while_the_last_connection_leaves_is_not_forgotten() -> None:
    async with running(targeted_topics=["#"]) as gateway:
        first = await gateway.connect()
        gateway.mesh.binds_at_once = False
        gateway.handlers.unregister(first)
        second = asyncio.create_task(gateway.connect())
        await until(lambda: gateway.mesh.waiting)
        gateway.mesh.bound("#")
        await second
        await let_go(gateway)
        assert ("-", "#") not in gateway.mesh.bindings


def test_targeted_topics_have_to_be_patterns() -> None:
    with pytest.raises(SettingsError, match=r"^NUROPB_GATEWAY_TARGETED_TOPICS: 'a\*' is not a topic pattern: a word"):
        make_gateway(targeted_topics=["users.#", "a*"])


# --- gaps -----------------------------------------------------------------------------------------------


async def test_who_subscribed_is_told_that_events_may_have_been_missed(gateway: FakeGateway) -> None:
    one, two = await gateway.connect(), await gateway.connect()
    subscribe(gateway, one, "orders.#", "news")
    subscribe(gateway, two, "news")
    unsubscribe(gateway, two, "news")
    one.take(), two.take()
    gateway.mesh.told.on_gap("overflow")
    event = {"topic": "gap", "event": {"reason": "overflow", "topics": ["orders.#", "news"]}}
    assert one.frames == [{"type": "event", "payload": event}]
    assert two.frames == []


# --- the controller -------------------------------------------------------------------------------------


class Controller(ServiceMeshManagerController):
    """A controller that keeps its events."""

    def __init__(self, *topics: str, service_name: str | None = None, instance_id: str | None = None) -> None:
        super().__init__(service_name, instance_id, topics)
        self.heard: list[tuple[str, Any, Any, Any]] = []

    @property
    def managers(self) -> tuple[object, object]:
        """The managers that a subclass can use."""
        return self._service_mesh_manager, self._handler_manager

    def _handle_event_(self, topic: str, event: Any, target: list[str] | None, context: dict[str, Any]) -> None:
        self.heard.append((topic, event, target, context))


class AsyncController(Controller):
    """A controller whose handler of events is a coroutine."""

    async def _handle_event_(  # type: ignore[override]
        self, topic: str, event: Any, target: list[str] | None, context: dict[str, Any]
    ) -> None:
        await asyncio.sleep(0)
        super()._handle_event_(topic, event, target, context)


class RaisingController(Controller):
    """A controller that keeps its events and then raises."""

    def _handle_event_(self, topic: str, event: Any, target: list[str] | None, context: dict[str, Any]) -> None:
        super()._handle_event_(topic, event, target, context)
        raise ValueError("a bad day")


class CancellingController(Controller):
    """A controller that keeps its events and then waits for a cancelled future."""

    async def _handle_event_(  # type: ignore[override]
        self, topic: str, event: Any, target: list[str] | None, context: dict[str, Any]
    ) -> None:
        super()._handle_event_(topic, event, target, context)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.cancel()
        await future


def test_a_controller_has_the_name_of_the_gateway_unless_it_has_its_own() -> None:
    gateway = make_gateway(controller := Controller(), service_name="gw", instance_id="i1")
    assert (controller.service_name, controller.instance_id) == ("gw", "i1")
    assert gateway.mesh.controller is controller
    assert controller.managers == (gateway.manager, gateway.handlers)
    make_gateway(controller := Controller("a.#", service_name="mine", instance_id="i2"), service_name="gw")
    assert (controller.service_name, controller.instance_id) == ("mine", "i2")
    assert controller.event_topic_subscriptions == ("a.#",)


@pytest.mark.parametrize("kind", [Controller, AsyncController, RaisingController, CancellingController])
async def test_events_of_its_topics_come_to_the_controller_in_order(kind: type[Controller]) -> None:
    controller = kind("orders.*", "orders.new")
    async with running(controller) as gateway:
        assert gateway.mesh.bindings == [("+", "orders.*"), ("+", "orders.new")]
        gateway.mesh.event("users.new", 0)
        gateway.mesh.event("orders.new", {"id": 1}, context=b'{"user_id":"alice"}')
        gateway.mesh.event("orders.old", [2], target=["bob"], context=b"null")
        await until(lambda: len(controller.heard) == 2)
        gateway.mesh.event("orders.last", 3)
        await until(lambda: len(controller.heard) == 3)
    assert controller.heard == [
        ("orders.new", {"id": 1}, None, {"user_id": "alice"}),
        ("orders.old", [2], ["bob"], {}),
        ("orders.last", 3, None, {}),
    ]


async def test_the_controllers_default_is_to_do_nothing() -> None:
    results: list[object] = []

    class Default(ServiceMeshManagerController):
        def _handle_event_(self, *event: Any) -> None:
            results.append(super()._handle_event_(*event))

    async with running(Default(event_topic_subscriptions=["a"])) as gateway:
        gateway.mesh.event("a")
        await until(lambda: results)
    assert results == [None]


@pytest.mark.parametrize("event", [b"1e999", b"NaN", b"{", b"[" * 100_000, b'"\\ud800"', b'"\xff"'])
async def test_an_event_that_cannot_be_read_ends_nothing(event: bytes) -> None:
    controller = Controller("a")
    async with running(controller) as gateway:
        gateway.mesh.told.on_event(EventMessage("a", event))
        gateway.mesh.event("a", 2)
        await until(lambda: any(event[1] == 2 for event in controller.heard))


async def test_events_that_the_controller_cannot_keep_up_with_are_dropped_and_counted() -> None:
    async with running(Controller("a")) as gateway:
        for number in range(MAX_CONTROLLER_EVENTS + 5):
            gateway.mesh.event("a", number)
        assert gateway.manager.statistics.dropped_controller_events == 5
        handler = await gateway.connect()
        subscribe(gateway, handler, "a")
        gateway.mesh.event("a", "still")
        assert handler.frames[-1]["payload"]["event"] == "still"


async def test_a_topic_of_the_controller_stays_when_its_last_subscriber_leaves() -> None:
    controller = Controller("a")
    async with running(controller) as gateway:
        handler = await gateway.connect()
        subscribe(gateway, handler, "a", "b")
        unsubscribe(gateway, handler, "a", "b")
        await let_go(gateway)
        assert [binding for binding in gateway.mesh.bindings if binding[0] == "-"] == [("-", "b")]

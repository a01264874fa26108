"""The HandlerManager: registration of connections, messages to them, and periodic checks."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import anyio
import pytest

from nuropb_gateway_asgi.authentication import Identity
from nuropb_gateway_asgi.authentication.revocation import Revocation
from nuropb_gateway_asgi.authorization import ExposePolicy
from nuropb_gateway_asgi.exceptions import AuthenticationFailed, AuthenticationUnavailable, ConnectionLimitReached
from nuropb_gateway_asgi.handler_manager import HandlerManager, SendCount
from nuropb_gateway_asgi.limits.shared import SharedLimits
from nuropb_gateway_asgi.protocol import CloseCode, Request
from nuropb_gateway_asgi.settings import Settings

from .fakes import FakeAuthenticator, FakeHandler, FakeReceiver, HandlerHarness, request_frame, until

HOUR = 3600.0


# --- binding --------------------------------------------------------------------------------------------


def test_a_manager_has_one_receiver_for_ever(harness: HandlerHarness) -> None:
    with pytest.raises(RuntimeError, match="one ServiceMeshManager"):
        harness.manager.bind_receiver(FakeReceiver())


async def test_without_a_receiver_a_call_is_answered_with_internal() -> None:
    manager = HandlerManager(Settings(), FakeAuthenticator(), ExposePolicy(["*.*"], []))
    handler = FakeHandler()
    await manager.register(handler, "alice")
    manager.on_handler_message(handler, json.dumps(request_frame(id="1")))
    assert handler.codes == ["internal"]
    manager.unregister(handler)
    assert len(manager) == 0


def test_what_was_given_on_construction_can_be_asked_for(harness: HandlerHarness) -> None:
    assert harness.manager.decoder.max_size == Settings().max_message_size


# --- connections ----------------------------------------------------------------------------------------


async def test_registering_makes_a_connection_somebodys(harness: HandlerHarness) -> None:
    handler = FakeHandler()
    identity = await harness.manager.register(handler, "alice/1")
    assert (identity.user_id, identity.token) == ("alice", "alice/1")
    assert handler.identity is identity
    assert handler.registered == [identity]
    assert harness.manager.get_handler(handler.session_id) is handler
    assert harness.manager.handlers == (handler,)
    assert harness.manager.get_user_handlers(["alice"]) == [handler]
    assert len(harness.manager) == 1


async def test_a_token_is_looked_at_when_registering_and_at_no_other_time(harness: HandlerHarness) -> None:
    handler = await harness.connect("alice/1")
    harness.receive(handler, request_frame(id="1"))
    harness.receive(handler, {"type": "ping"})
    harness.manager.send_message_to_all({})
    harness.manager.close(handler.session_id)
    harness.manager.unregister(handler)
    assert harness.authenticator.tokens == ["alice/1"]


async def test_nothing_runs_between_registration_and_the_return(harness: HandlerHarness) -> None:
    handler = FakeHandler()
    others: list[str] = []

    async def other() -> None:
        while len(harness.manager) == 0:
            await asyncio.sleep(0)
        others.append("ran")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other)
        harness.authenticator.gate = asyncio.Event()
        asyncio.get_running_loop().call_soon(harness.authenticator.gate.set)
        await harness.manager.register(handler, "alice")
        assert not others


@pytest.mark.parametrize(
    ("token", "expires_in"),
    [("bad", None), ("alice", 0.0), ("alice", -1.0), ("alice", -HOUR)],
)
async def test_a_token_that_identifies_nobody_registers_nothing(
    harness: HandlerHarness, token: str, expires_in: float | None
) -> None:
    if expires_in is not None:
        harness.authenticator.expires_at[token] = time.time() + expires_in
    handler = FakeHandler()
    with pytest.raises(AuthenticationFailed) as caught:
        await harness.manager.register(handler, token)
    assert token not in str(caught.value)
    assert handler.identity is None
    assert not handler.registered
    harness.assert_empty()


@pytest.mark.parametrize(("leeway", "expected"), [(HOUR + 60, True), (HOUR - 60, False), (0.0, False)])
async def test_a_token_is_good_until_its_leeway_is_over(leeway: float, expected: bool) -> None:
    harness = HandlerHarness()
    harness.authenticator.expires_at["alice"] = time.time() - HOUR
    harness.authenticator.leeway = leeway
    if expected:
        await harness.connect("alice")
    else:
        with pytest.raises(AuthenticationFailed, match="has expired"):
            await harness.manager.register(FakeHandler(), "alice")
    assert len(harness.manager) == expected


async def test_a_token_for_another_hour_is_good(harness: HandlerHarness) -> None:
    harness.authenticator.expires_at["alice"] = time.time() + HOUR
    await harness.connect("alice")
    assert len(harness.manager) == 1


async def test_an_authenticator_that_hangs_is_waited_for_no_longer_than_auth_timeout(
    caplog: pytest.LogCaptureFixture,
) -> None:
    harness = HandlerHarness(auth_timeout=0.01)
    harness.authenticator.gate = asyncio.Event()
    with pytest.raises(AuthenticationUnavailable):  # not AuthenticationFailed: the token may be valid
        await harness.manager.register(FakeHandler(), "alice")
    assert "the authenticator took longer than AUTH_TIMEOUT (0.01 s)" in caplog.text
    harness.assert_empty()


async def test_the_exception_of_an_authenticator_passes_and_nothing_is_registered(harness: HandlerHarness) -> None:
    harness.authenticator.error = OSError("the database is away")
    with pytest.raises(OSError, match="away"):
        await harness.manager.register(FakeHandler(), "alice")
    harness.assert_empty()


async def test_a_registration_that_is_cancelled_registers_nothing(harness: HandlerHarness) -> None:
    harness.authenticator.gate = asyncio.Event()
    task = asyncio.create_task(harness.manager.register(FakeHandler(), "alice"))
    await until(lambda: harness.authenticator.tokens)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    harness.assert_empty()


async def test_a_connection_is_registered_once(harness: HandlerHarness) -> None:
    handler = await harness.connect("alice")
    with pytest.raises(RuntimeError, match="is registered"):
        await harness.manager.register(handler, "bob")
    assert handler.identity is not None
    assert handler.identity.user_id == "alice"
    harness.manager.unregister(handler)
    harness.assert_empty()


async def test_a_user_has_only_so_many_connections() -> None:
    harness = HandlerHarness(max_connections_per_user=2)
    first, _ = await harness.connect("alice/1"), await harness.connect("alice/2")
    refused = FakeHandler()
    with pytest.raises(ConnectionLimitReached) as caught:
        await harness.manager.register(refused, "alice/3")
    assert caught.value.per_user
    assert refused.identity is None
    assert not refused.registered
    await harness.connect("bob")
    harness.manager.unregister(first)
    await harness.manager.register(refused, "alice/3")
    assert len(harness.manager) == 3


async def test_the_last_place_of_a_user_is_given_once() -> None:
    harness = HandlerHarness(max_connections_per_user=1)
    harness.authenticator.gate = asyncio.Event()
    registering = [asyncio.create_task(harness.manager.register(FakeHandler(), "alice")) for _ in range(5)]
    await until(lambda: len(harness.authenticator.tokens) == 5)
    harness.authenticator.gate.set()
    results = await asyncio.gather(*registering, return_exceptions=True)
    assert sum(isinstance(result, ConnectionLimitReached) for result in results) == 4
    assert len(harness.manager) == 1


async def test_who_does_not_listen_is_heard_and_never_spoken_to(harness: HandlerHarness) -> None:
    caller, listener = FakeHandler(), await harness.connect("alice")
    await harness.manager.register(caller, "alice", listens=False)
    assert isinstance(harness.receive(caller, request_frame(id="1")), Request)
    assert [handler for handler, _ in harness.receiver.frames] == [caller]
    assert harness.manager.handlers == (listener,)
    assert harness.manager.get_handler(caller.session_id) is None
    assert harness.manager.get_session(caller.session_id) is caller
    assert harness.manager.send_message_to_all("1") == harness.manager.send_message_to_user_ids(["alice"], "2") == 1
    assert not caller.texts
    with pytest.raises(RuntimeError, match="is registered"):
        await harness.manager.register(caller, "alice")
    for handler in (caller, listener):
        harness.manager.unregister(handler)
    assert harness.receiver.gone == [caller, listener]
    harness.assert_empty()


async def test_who_does_not_listen_is_hung_up_on_as_others_are(harness: HandlerHarness) -> None:
    caller, other = FakeHandler(), FakeHandler()
    await harness.manager.register(caller, "alice", listens=False)
    await harness.manager.register(other, "bob", listens=False)
    assert harness.manager.close_user_ids(["alice"], 4000, "a") == 1
    assert harness.manager.close(caller.session_id, 4001, "b") == 1
    now = time.time()
    harness.manager.revocations.add(Revocation(user_id="bob", issued_before=now, until=now + HOUR), now)
    sessions = harness.manager.tokens.sessions(("user", "bob"))
    assert harness.manager.close_revoked([*sessions, "gone"]) == 1
    assert harness.manager.close_all(4002, "c") == 2
    assert [code for code, _ in caller.closes] == [4000, 4001, 4002]
    assert [code for code, _ in other.closes] == [CloseCode.TOKEN_REVOKED, 4002]


async def test_kinds_of_connections_share_the_limits_of_a_process() -> None:
    settings = Settings(max_connections_per_user=2, rate_limit_user="1/s burst 2")
    process = SharedLimits.of(settings)
    policy = ExposePolicy(["*.*"], ["#"])
    one, two = (HandlerManager(settings, FakeAuthenticator(), policy, process) for _ in range(2))
    handlers = [FakeHandler(), FakeHandler(), FakeHandler()]
    await one.register(handlers[0], "alice")
    await two.register(handlers[1], "alice", listens=False)
    for manager in (one, two):
        with pytest.raises(ConnectionLimitReached):
            await manager.register(handlers[2], "alice")
        manager.bind_receiver(FakeReceiver())
    for manager, handler in ((one, handlers[0]), (two, handlers[1]), (two, handlers[1])):
        manager.on_handler_message(handler, json.dumps(request_frame(id="1")))
    assert handlers[0].frames == []
    assert handlers[1].frames[0]["payload"]["error"]["code"] == "too_many_requests"


async def test_a_connection_is_registered_once_all_is_prepared_for_it() -> None:
    harness, gate = HandlerHarness(), asyncio.Event()
    harness.receiver.gate = gate
    handler = FakeHandler()
    registering = asyncio.create_task(harness.manager.register(handler, "alice"))
    await until(lambda: harness.receiver.arrived)
    assert (len(harness.manager), handler.registered) == (0, [])
    gate.set()
    await registering
    assert len(harness.manager) == 1
    with pytest.raises(AuthenticationFailed):
        await harness.manager.register(FakeHandler(), "bad")
    assert harness.receiver.arrived == 1


async def test_a_string_is_not_a_list_of_users(harness: HandlerHarness) -> None:
    handlers = [await harness.connect(token) for token in ("a", "b", "ab")]
    for action in (
        lambda: harness.manager.send_message_to_user_ids("ab", {}),
        lambda: harness.manager.close_user_ids("ab"),
        lambda: harness.manager.get_user_handlers("ab"),
    ):
        with pytest.raises(TypeError, match="user_ids"):
            action()
    assert not any(handler.frames or handler.closes for handler in handlers)


async def test_unregistering_leaves_nothing(harness: HandlerHarness) -> None:
    handlers = [await harness.connect(token) for token in ("alice/1", "alice/2", "bob")]
    harness.receive(handlers[0], "{")
    for handler in handlers:
        harness.manager.unregister(handler)
    assert harness.receiver.gone == handlers
    harness.assert_empty()
    assert harness.manager.get_handler(handlers[0].session_id) is None
    assert harness.manager.get_user_handlers(["alice", "bob"]) == []


async def test_unregistering_leaves_the_other_connections_of_the_user(harness: HandlerHarness) -> None:
    one, two = await harness.connect("alice/1"), await harness.connect("alice/2")
    harness.manager.unregister(one)
    assert harness.manager.get_user_handlers(["alice"]) == [two]


async def test_unregistering_again_changes_nothing(harness: HandlerHarness) -> None:
    handler = await harness.connect()
    other = await harness.connect()
    harness.manager.unregister(handler)
    harness.manager.unregister(handler)
    assert harness.receiver.gone == [handler]
    assert harness.manager.handlers == (other,)


async def test_unregistering_who_never_was_registered_changes_nothing(harness: HandlerHarness) -> None:
    handler = await harness.connect()
    harness.manager.unregister(FakeHandler())
    harness.manager.unregister(FakeHandler(handler.session_id))
    assert harness.manager.handlers == (handler,)
    assert not harness.receiver.gone


# --- messages to clients, and closing -------------------------------------------------------------------


async def test_a_message_goes_to_one_connection(harness: HandlerHarness) -> None:
    one, two = await harness.connect("alice"), await harness.connect("alice")
    assert harness.manager.send_message(one.session_id, {"type": "note"}) == 1
    assert one.frames == [{"type": "note"}]
    assert not two.frames
    assert harness.manager.send_message("nobody", {}) == 0


async def test_a_message_goes_to_all_connections_of_users(harness: HandlerHarness) -> None:
    handlers = [await harness.connect(token) for token in ("alice/1", "alice/2", "bob", "carol")]
    assert harness.manager.send_message_to_user_ids(["alice", "bob", "alice", "nobody"], {"type": "note"}) == 3
    assert [len(handler.frames) for handler in handlers] == [1, 1, 1, 0]


async def test_a_message_goes_to_everybody(harness: HandlerHarness) -> None:
    assert harness.manager.send_message_to_all({}) == 0
    handlers = [await harness.connect(token) for token in ("alice", "bob")]
    assert harness.manager.send_message_to_all({"type": "note"}) == 2
    assert [handler.frames for handler in handlers] == [[{"type": "note"}]] * 2
    assert handlers[0].texts[0] is handlers[1].texts[0]


@pytest.mark.parametrize(
    ("message", "text"),
    [('{"a": 1}', '{"a": 1}'), ({"a": [1, "é"]}, '{"a":[1,"é"]}'), ([None], "[null]"), (1, "1")],
)
async def test_a_text_is_sent_as_it_is_and_anything_else_as_json(
    harness: HandlerHarness, message: Any, text: str
) -> None:
    handler = await harness.connect()
    harness.manager.send_message(handler.session_id, message)
    assert handler.texts == [text]


async def test_what_json_does_not_have_is_sent_to_nobody(harness: HandlerHarness) -> None:
    handler = await harness.connect()
    with pytest.raises(TypeError):
        harness.manager.send_message_to_all(object())
    assert not handler.frames


async def test_a_count_may_be_awaited() -> None:
    count = SendCount(3)
    awaited = await count
    assert awaited == count == 3
    assert type(awaited) is int


async def test_connections_are_closed_by_session_by_user_and_all(harness: HandlerHarness) -> None:
    handlers = [await harness.connect(token) for token in ("alice/1", "alice/2", "bob")]
    assert harness.manager.close("nobody") == 0
    assert harness.manager.close(handlers[0].session_id) == 1
    assert harness.manager.close_user_ids(["alice", "alice"], CloseCode.TOKEN_REVOKED, "revoked") == 2
    assert harness.manager.close_all(CloseCode.SERVICE_RESTART) == 3
    default, revoked, restart = (4503, "disconnected"), (4511, "revoked"), (1012, "disconnected")
    assert [handler.closes for handler in handlers] == [[default, revoked, restart], [revoked, restart], [restart]]


@pytest.mark.parametrize("action", ["unregister myself", "unregister all", "close all", "send to all"])
async def test_connections_may_do_anything_while_they_are_gone_through(harness: HandlerHarness, action: str) -> None:
    manager = harness.manager
    handlers = [await harness.connect(f"alice/{number}") for number in range(5)]

    def act(handler: FakeHandler) -> None:
        handler.on_send = None  # act once: the action itself sends and closes
        if action == "unregister myself":
            manager.unregister(handler)
        elif action == "unregister all":
            for each in manager.handlers:
                manager.unregister(each)
        elif action == "close all":
            manager.close_all()
        else:
            manager.send_message_to_user_ids(["alice"], {"type": "echo"})

    for handler in handlers:
        handler.on_send = lambda handler=handler: act(handler)
    assert manager.send_message_to_all({"type": "note"}) == 5
    assert all({"type": "note"} in handler.frames for handler in handlers)
    left = len(manager)
    assert manager.send_message_to_user_ids(["alice"], {}) == left
    assert manager.close_all() == left
    for each in manager.handlers:
        manager.unregister(each)
    harness.assert_empty()


async def test_closing_may_unregister(harness: HandlerHarness) -> None:
    handlers = [await harness.connect() for _ in range(3)]
    for handler in handlers:
        handler.on_send = lambda handler=handler: harness.manager.unregister(handler)
    assert harness.manager.close_user_ids(["alice"]) == 3
    harness.assert_empty()


# --- periodic checks ------------------------------------------------------------------------------------


async def test_every_connection_is_looked_after_until_it_is_cancelled() -> None:
    harness = HandlerHarness(ping_interval=0.01)
    handlers = [await harness.connect() for _ in range(2)]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(harness.manager.sweep)
        await until(lambda: all(len(handler.checks) > 1 for handler in handlers))
        harness.manager.unregister(handlers[0])
        seen = len(handlers[1].checks)
        await until(lambda: len(handlers[1].checks) > seen + 1)
        tasks.cancel_scope.cancel()
    assert len(handlers[0].checks) < len(handlers[1].checks)
    assert not handlers[1].closes


async def test_a_connection_whose_token_expires_is_closed_and_still_looked_after() -> None:
    # Its close may hang in a write, and only check() ends it then.
    harness = HandlerHarness(write_timeout=0.01)
    harness.authenticator.expires_at["bob"] = time.time() + HOUR
    alice, bob, carol = [await harness.connect(token) for token in ("alice", "bob", "carol")]
    now = time.time()
    alice.identity = Identity(user_id="alice", username="Alice", token="alice", expires_at=now - HOUR, leeway=HOUR)
    carol.identity = Identity(user_id="carol", username="Carol", token="carol", expires_at=now - HOUR, leeway=2 * HOUR)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(harness.manager.sweep)
        await until(lambda: alice.closes)
        seen = len(alice.checks)
        await until(lambda: len(alice.checks) > seen)
        tasks.cancel_scope.cancel()
    assert set(alice.closes) == {(CloseCode.TOKEN_EXPIRED, "token expired")}
    assert not bob.closes
    assert not carol.closes

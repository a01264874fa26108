from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from nuropb_gateway_asgi.authentication import Identity
from nuropb_gateway_asgi.authentication.revocation import Revocation
from nuropb_gateway_asgi.authorization import ExposePolicy
from nuropb_gateway_asgi.exceptions import AuthenticationFailed, AuthenticationUnavailable, ConnectionLimitReached
from nuropb_gateway_asgi.handler_manager import MAX_MALFORMED_FRAMES, Handler, HandlerManager, SendCount
from nuropb_gateway_asgi.limits.buckets import REFUSALS_ALLOWED
from nuropb_gateway_asgi.limits.shared import SharedLimits
from nuropb_gateway_asgi.protocol import (
    Cancel,
    ClientFrame,
    CloseCode,
    Command,
    Describe,
    Request,
    Subscribe,
    Unsubscribe,
)
from nuropb_gateway_asgi.rates import CallRate, Rate
from nuropb_gateway_asgi.settings import Settings

from .fakes import Clock, FakeAuthenticator, FakeHandler, until

HOUR = 3600.0


class Receiver:
    """Where the frames go, and the news of who left."""

    def __init__(self) -> None:
        self.frames: list[tuple[Handler, ClientFrame]] = []
        self.gone: list[Handler] = []
        self.error: Exception | None = None

        #: Awaited by handlers that arrive, once it is set.
        self.gate: asyncio.Event | None = None
        self.arrived = 0
        self.on_refreshed: Callable[[Handler], None] | None = None

    def on_handler_message_received(self, handler: Handler, frame: ClientFrame) -> None:
        self.frames.append((handler, frame))
        if self.error is not None:
            raise self.error

    async def on_handler_arriving(self) -> None:
        self.arrived += 1
        if self.gate is not None:
            await self.gate.wait()

    def on_handler_registered(self, handler: Handler) -> None:
        """Nothing."""

    def on_handler_unregistered(self, handler: Handler) -> None:
        self.gone.append(handler)

    def on_handler_refreshed(self, handler: Handler) -> None:
        if self.on_refreshed is not None:
            self.on_refreshed(handler)

    def calls_in_flight(self, handler: Handler) -> int:
        return 0


class Office:
    """A HandlerManager with all that it needs."""

    def __init__(
        self,
        *,
        expose: list[str] | None = None,
        topics: list[str] | None = None,
        policy: ExposePolicy | None = None,
        **settings: Any,
    ) -> None:
        self.authenticator = FakeAuthenticator()
        self.receiver = Receiver()
        self.clock = Clock(1000.0)
        policy = policy or ExposePolicy(["*.*"] if expose is None else expose, ["#"] if topics is None else topics)
        self.manager = HandlerManager(Settings(**settings), self.authenticator, policy, clock=self.clock)
        self.manager.bind_receiver(self.receiver)

    async def connect(self, token: str = "alice") -> FakeHandler:
        handler = FakeHandler()
        await self.manager.register(handler, token)
        return handler

    def receive(self, handler: FakeHandler, frame: Any) -> ClientFrame | None:
        return self.manager.on_handler_message(handler, frame if isinstance(frame, str) else json.dumps(frame))

    def assert_empty(self) -> None:
        assert len(self.manager) == 0
        assert self.manager.handlers == ()
        assert self.manager.is_idle
        assert self.manager.admission.is_idle


@pytest.fixture
def office() -> Office:
    return Office()


def request(**payload: Any) -> dict[str, Any]:
    return {"type": "request", "payload": {"service": "orders", "method": "get", **payload}}


# --- binding --------------------------------------------------------------------------------------------


def test_a_manager_has_one_receiver_for_ever(office: Office) -> None:
    with pytest.raises(RuntimeError, match="one ServiceMeshManager"):
        office.manager.bind_receiver(Receiver())


async def test_without_a_receiver_a_call_is_answered_with_internal() -> None:
    manager = HandlerManager(Settings(), FakeAuthenticator(), ExposePolicy(["*.*"], []))
    handler = FakeHandler()
    await manager.register(handler, "alice")
    manager.on_handler_message(handler, json.dumps(request(id="1")))
    assert handler.codes == ["internal"]
    manager.unregister(handler)
    assert len(manager) == 0


def test_what_was_given_on_construction_can_be_asked_for(office: Office) -> None:
    assert office.manager.decoder.max_size == Settings().max_message_size


# --- connections ----------------------------------------------------------------------------------------


async def test_registering_makes_a_connection_somebodys(office: Office) -> None:
    handler = FakeHandler()
    identity = await office.manager.register(handler, "alice/1")
    assert (identity.user_id, identity.token) == ("alice", "alice/1")
    assert handler.identity is identity
    assert handler.registered == [identity]
    assert office.manager.get_handler(handler.session_id) is handler
    assert office.manager.handlers == (handler,)
    assert office.manager.get_user_handlers(["alice"]) == [handler]
    assert len(office.manager) == 1


async def test_a_token_is_looked_at_when_registering_and_at_no_other_time(office: Office) -> None:
    handler = await office.connect("alice/1")
    office.receive(handler, request(id="1"))
    office.receive(handler, {"type": "ping"})
    office.manager.send_message_to_all({})
    office.manager.close(handler.session_id)
    office.manager.unregister(handler)
    assert office.authenticator.tokens == ["alice/1"]


async def test_nothing_runs_between_registration_and_the_return(office: Office) -> None:
    handler = FakeHandler()
    others: list[str] = []

    async def other() -> None:
        while len(office.manager) == 0:
            await asyncio.sleep(0)
        others.append("ran")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other)
        office.authenticator.gate = asyncio.Event()
        asyncio.get_running_loop().call_soon(office.authenticator.gate.set)
        await office.manager.register(handler, "alice")
        assert not others


@pytest.mark.parametrize(
    ("token", "expires_in"),
    [("bad", None), ("alice", 0.0), ("alice", -1.0), ("alice", -HOUR)],
)
async def test_a_token_that_identifies_nobody_registers_nothing(
    office: Office, token: str, expires_in: float | None
) -> None:
    if expires_in is not None:
        office.authenticator.expires_at[token] = time.time() + expires_in
    handler = FakeHandler()
    with pytest.raises(AuthenticationFailed) as caught:
        await office.manager.register(handler, token)
    assert token not in str(caught.value)
    assert handler.identity is None
    assert not handler.registered
    office.assert_empty()


async def test_a_token_for_another_hour_is_good(office: Office) -> None:
    office.authenticator.expires_at["alice"] = time.time() + HOUR
    await office.connect("alice")
    assert len(office.manager) == 1


async def test_an_authenticator_that_hangs_is_waited_for_no_longer_than_auth_timeout(
    caplog: pytest.LogCaptureFixture,
) -> None:
    office = Office(auth_timeout=0.01)
    office.authenticator.gate = asyncio.Event()
    with pytest.raises(AuthenticationUnavailable):  # its token may be good
        await office.manager.register(FakeHandler(), "alice")
    assert "the authenticator took longer than AUTH_TIMEOUT (0.01 s)" in caplog.text
    office.assert_empty()


async def test_the_exception_of_an_authenticator_passes_and_nothing_is_registered(office: Office) -> None:
    office.authenticator.error = OSError("the database is away")
    with pytest.raises(OSError, match="away"):
        await office.manager.register(FakeHandler(), "alice")
    office.assert_empty()


async def test_a_registration_that_is_cancelled_registers_nothing(office: Office) -> None:
    office.authenticator.gate = asyncio.Event()
    task = asyncio.create_task(office.manager.register(FakeHandler(), "alice"))
    await until(lambda: office.authenticator.tokens)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    office.assert_empty()


async def test_a_connection_is_registered_once(office: Office) -> None:
    handler = await office.connect("alice")
    with pytest.raises(RuntimeError, match="is registered"):
        await office.manager.register(handler, "bob")
    assert handler.identity is not None
    assert handler.identity.user_id == "alice"
    office.manager.unregister(handler)
    office.assert_empty()


async def test_a_user_has_only_so_many_connections() -> None:
    office = Office(max_connections_per_user=2)
    first, _ = await office.connect("alice/1"), await office.connect("alice/2")
    refused = FakeHandler()
    with pytest.raises(ConnectionLimitReached) as caught:
        await office.manager.register(refused, "alice/3")
    assert caught.value.per_user
    assert refused.identity is None
    assert not refused.registered
    await office.connect("bob")
    office.manager.unregister(first)
    await office.manager.register(refused, "alice/3")
    assert len(office.manager) == 3


async def test_the_last_place_of_a_user_is_given_once() -> None:
    office = Office(max_connections_per_user=1)
    office.authenticator.gate = asyncio.Event()
    registering = [asyncio.create_task(office.manager.register(FakeHandler(), "alice")) for _ in range(5)]
    await until(lambda: len(office.authenticator.tokens) == 5)
    office.authenticator.gate.set()
    results = await asyncio.gather(*registering, return_exceptions=True)
    assert sum(isinstance(result, ConnectionLimitReached) for result in results) == 4
    assert len(office.manager) == 1


async def test_who_does_not_listen_is_heard_and_never_spoken_to(office: Office) -> None:
    caller, listener = FakeHandler(), await office.connect("alice")
    await office.manager.register(caller, "alice", listens=False)
    assert isinstance(office.receive(caller, request(id="1")), Request)
    assert [handler for handler, _ in office.receiver.frames] == [caller]
    assert office.manager.handlers == (listener,)
    assert office.manager.get_handler(caller.session_id) is None
    assert office.manager.get_session(caller.session_id) is caller
    assert office.manager.send_message_to_all("1") == office.manager.send_message_to_user_ids(["alice"], "2") == 1
    assert not caller.texts
    with pytest.raises(RuntimeError, match="is registered"):
        await office.manager.register(caller, "alice")
    for handler in (caller, listener):
        office.manager.unregister(handler)
    assert office.receiver.gone == [caller, listener]
    office.assert_empty()


async def test_who_does_not_listen_is_hung_up_on_as_others_are(office: Office) -> None:
    caller, other = FakeHandler(), FakeHandler()
    await office.manager.register(caller, "alice", listens=False)
    await office.manager.register(other, "bob", listens=False)
    assert office.manager.close_user_ids(["alice"], 4000, "a") == 1
    assert office.manager.close(caller.session_id, 4001, "b") == 1
    now = time.time()
    office.manager.revocations.add(Revocation(user_id="bob", issued_before=now, until=now + HOUR), now)
    assert office.manager.close_revoked() == 1
    assert office.manager.close_all(4002, "c") == 2
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
        manager.bind_receiver(Receiver())
    for manager, handler in ((one, handlers[0]), (two, handlers[1]), (two, handlers[1])):
        manager.on_handler_message(handler, json.dumps(request(id="1")))
    assert handlers[0].frames == []
    assert handlers[1].frames[0]["payload"]["error"]["code"] == "too_many_requests"


async def test_a_connection_is_registered_once_all_is_prepared_for_it() -> None:
    office, gate = Office(), asyncio.Event()
    office.receiver.gate = gate
    handler = FakeHandler()
    registering = asyncio.create_task(office.manager.register(handler, "alice"))
    await until(lambda: office.receiver.arrived)
    assert (len(office.manager), handler.registered) == (0, [])
    gate.set()
    await registering
    assert len(office.manager) == 1
    with pytest.raises(AuthenticationFailed):
        await office.manager.register(FakeHandler(), "bad")
    assert office.receiver.arrived == 1


async def test_a_string_is_not_a_list_of_users(office: Office) -> None:
    handlers = [await office.connect(token) for token in ("a", "b", "ab")]
    for action in (
        lambda: office.manager.send_message_to_user_ids("ab", {}),
        lambda: office.manager.close_user_ids("ab"),
        lambda: office.manager.get_user_handlers("ab"),
    ):
        with pytest.raises(TypeError, match="user_ids"):
            action()
    assert not any(handler.frames or handler.closes for handler in handlers)


async def test_unregistering_leaves_nothing(office: Office) -> None:
    handlers = [await office.connect(token) for token in ("alice/1", "alice/2", "bob")]
    office.receive(handlers[0], "{")
    for handler in handlers:
        office.manager.unregister(handler)
    assert office.receiver.gone == handlers
    office.assert_empty()
    assert office.manager.get_handler(handlers[0].session_id) is None
    assert office.manager.get_user_handlers(["alice", "bob"]) == []


async def test_unregistering_leaves_the_other_connections_of_the_user(office: Office) -> None:
    one, two = await office.connect("alice/1"), await office.connect("alice/2")
    office.manager.unregister(one)
    assert office.manager.get_user_handlers(["alice"]) == [two]


async def test_unregistering_again_changes_nothing(office: Office) -> None:
    handler = await office.connect()
    other = await office.connect()
    office.manager.unregister(handler)
    office.manager.unregister(handler)
    assert office.receiver.gone == [handler]
    assert office.manager.handlers == (other,)


async def test_unregistering_who_never_was_registered_changes_nothing(office: Office) -> None:
    handler = await office.connect()
    office.manager.unregister(FakeHandler())
    office.manager.unregister(FakeHandler(handler.session_id))
    assert office.manager.handlers == (handler,)
    assert not office.receiver.gone


# --- messages -------------------------------------------------------------------------------------------

PASSED = [
    # frame, what the receiver gets
    (request(id="1", trace_id="t"), Request),
    ({"type": "command", "payload": {"service": "orders", "method": "put"}}, Command),
    ({"type": "describe"}, Describe),
    ({"type": "subscribe", "payload": {"topics": ["orders.#"]}}, Subscribe),
    ({"type": "unsubscribe", "payload": {"topics": ["orders.#"]}}, Unsubscribe),
    ({"type": "cancel", "payload": {"id": "1"}}, Cancel),
]


@pytest.mark.parametrize(("frame", "kind"), PASSED)
async def test_what_is_for_the_mesh_is_passed_on(office: Office, frame: dict[str, Any], kind: type) -> None:
    handler = await office.connect()
    returned = office.receive(handler, frame)
    assert type(returned) is kind
    assert office.receiver.frames == [(handler, returned)]
    assert not handler.frames


ANSWERED = [
    ('{"type":"ping"}', ['{"type":"pong"}']),
    ('{"type":"ping","payload":null}', ['{"type":"pong","payload":null}']),
    ('{"type":"ping","payload":{"at": 1.50}}', ['{"type":"pong","payload":{"at": 1.50}}']),
    ('{"type":"pong"}', []),
    ('{"type":"pong","payload":[1]}', []),
]


@pytest.mark.parametrize(("text", "answers"), ANSWERED)
async def test_pings_are_answered_and_pongs_are_not(office: Office, text: str, answers: list[str]) -> None:
    handler = await office.connect()
    assert office.receive(handler, text) is not None
    assert handler.texts == answers
    assert not office.receiver.frames


async def test_bytes_are_read_as_text_is(office: Office) -> None:
    handler = await office.connect()
    assert office.manager.on_handler_message(handler, json.dumps(request(id="1")).encode()) is not None
    assert len(office.receiver.frames) == 1


async def test_who_is_not_registered_is_not_listened_to(office: Office) -> None:
    stranger, handler = FakeHandler(), await office.connect()
    office.manager.unregister(handler)
    for each in (stranger, handler):
        assert office.receive(each, {"type": "ping"}) is None
        assert office.receive(each, "{") is None
        assert not each.frames
    office.assert_empty()


@pytest.mark.parametrize("data", ["x" * 257, b"x" * 257, "é" * 129, '{"type":"ping"}' + " " * 256])
async def test_a_message_that_is_too_big_ends_the_connection(data: str | bytes) -> None:
    office = Office(max_message_size=256)
    handler = await office.connect()
    assert office.manager.on_handler_message(handler, data) is None
    assert handler.codes == ["payload_too_large"]
    assert handler.closes == [(CloseCode.MESSAGE_TOO_BIG, "message too big")]


MALFORMED = [
    # text, type of the answer, ids in it, class of the error
    ("{", "error", {}, "JSONDecodeError"),
    ("[1]", "error", {}, "NuropbMessageError"),
    ('{"type":"dance"}', "error", {}, "NuropbMessageError"),
    ('{"type":"request"}', "error", {}, "NuropbMessageError"),
    ('{"type":"request","payload":{"id":"7"}}', "response", {"id": "7"}, "NuropbMessageError"),
    ('{"type":"request","payload":{"trace_id":"t"}}', "response", {"trace_id": "t"}, "NuropbMessageError"),
    ('{"type":"request","payload":{"id":7}}', "error", {}, "NuropbMessageError"),
    (json.dumps(request(method="_private", id="7")), "response", {"id": "7"}, "NuropbMessageError"),
    ('{"type":"ping","payload":' + "[" * 40 + "]" * 40 + "}", "error", {}, "JSONDecodeError"),
    ('{"type":"ping","payload":NaN}', "error", {}, "JSONDecodeError"),
]


@pytest.mark.parametrize(("text", "kind", "ids", "error"), MALFORMED)
async def test_what_is_no_frame_is_answered_once_and_the_connection_stays(
    office: Office, text: str, kind: str, ids: dict[str, str], error: str
) -> None:
    handler = await office.connect()
    assert office.receive(handler, text) is None
    (answer,) = handler.frames
    assert answer["type"] == kind
    assert handler.codes == ["bad_request"]
    if kind == "error":
        assert answer["error"] == error
    else:
        assert {name: answer["payload"][name] for name in answer["payload"] if name in ("id", "trace_id")} == ids
        assert answer["payload"]["error"]["error"] == error
    assert not handler.closes
    assert not office.receiver.frames


async def test_too_many_malformed_frames_in_a_row_end_the_connection(office: Office) -> None:
    handler = await office.connect()
    for _ in range(MAX_MALFORMED_FRAMES - 1):
        office.receive(handler, "{")
    assert not handler.closes
    office.receive(handler, "{")
    assert [code for code, _ in handler.closes] == [4501]
    assert handler.codes == ["bad_request"] * MAX_MALFORMED_FRAMES


async def test_a_good_frame_makes_up_for_malformed_ones(office: Office) -> None:
    handler = await office.connect()
    for text in (["{"] * (MAX_MALFORMED_FRAMES - 1) + ['{"type":"pong"}']) * 3:
        office.receive(handler, text)
    assert not handler.closes
    assert not office.manager._malformed


async def test_malformed_frames_are_counted_for_each_connection(office: Office) -> None:
    one, two = await office.connect(), await office.connect()
    for _ in range(MAX_MALFORMED_FRAMES - 1):
        office.receive(one, "{")
        office.receive(two, "{")
    assert not one.closes
    assert not two.closes


FORBIDDEN = [
    # frame, answer
    (request(service="users", id="1"), {"id": "1"}),
    (request(method="put", trace_id="t"), {"trace_id": "t"}),
    (request(method="nuropb_describe", id="1", trace_id="t"), {"id": "1", "trace_id": "t"}),
    ({"type": "command", "payload": {"service": "orders", "method": "put", "id": "1"}}, {"id": "1"}),
    ({"type": "subscribe", "payload": {"topics": ["orders.new", "users.new"], "id": "1"}}, {"id": "1"}),
    ({"type": "subscribe", "payload": {"topics": ["#"], "trace_id": "t"}}, {"trace_id": "t"}),
]


@pytest.mark.parametrize(("frame", "ids"), FORBIDDEN)
async def test_what_the_policy_forbids_is_refused(frame: dict[str, Any], ids: dict[str, str]) -> None:
    office = Office(expose=["orders.get"], topics=["orders.*"])
    handler = await office.connect()
    office.receive(handler, frame)
    (answer,) = handler.frames
    assert handler.codes == ["permission_denied"]
    assert {name: value for name, value in answer["payload"].items() if name in ("id", "trace_id")} == ids
    assert not office.receiver.frames
    assert not handler.closes


async def test_without_ids_a_refusal_is_a_flat_error() -> None:
    office = Office(expose=[])
    handler = await office.connect()
    office.receive(handler, request())
    assert [frame["type"] for frame in handler.frames] == ["error"]
    assert handler.codes == ["permission_denied"]


@pytest.mark.parametrize(
    ("frame", "kind"),
    [
        (request(id="1", trace_id="t"), "response"),
        (request(trace_id="t"), "response"),
        (request(), "error"),
        ({"type": "describe"}, "error"),
        # The id is that of the request, which has an answer of its own.
        ({"type": "cancel", "payload": {"id": "1"}}, "error"),
    ],
)
async def test_an_exception_in_the_receiver_becomes_one_internal_answer(
    office: Office, frame: dict[str, Any], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    handler = await office.connect()
    office.receiver.error = ValueError("a secret of the house")
    assert office.receive(handler, frame) is not None
    assert [answer["type"] for answer in handler.frames] == [kind]
    assert handler.codes == ["internal"]
    assert "secret" not in handler.texts[0]
    assert "secret" in caplog.text
    assert not handler.closes


# --- newer tokens ---------------------------------------------------------------------------------------


def authorize(token: str, **payload: Any) -> dict[str, Any]:
    return {"type": "authorize", "payload": {"token": token, **payload}}


async def test_a_newer_token_of_the_same_user_takes_the_place_of_the_older(office: Office) -> None:
    handler = await office.connect("alice/1")
    office.authenticator.expires_at["alice/2"] = expires_at = int(time.time()) + HOUR
    office.receive(handler, authorize("alice/2", id="a"))
    await handler.finish()
    (answer,) = handler.frames
    assert answer["payload"] == {"id": "a", "result": {"expires_at": expires_at}, "error": None}
    assert handler.identity is not None
    assert handler.identity.token == "alice/2"
    assert not office.receiver.frames
    office.manager.unregister(handler)
    office.assert_empty()


REFUSED = [
    # token, its end in seconds from now, code
    ("bad", None, "unauthenticated"),
    ("alice/2", -1.0, "unauthenticated"),
    ("bob", None, "permission_denied"),
]


@pytest.mark.parametrize(("token", "expires_in", "code"), REFUSED)
async def test_a_newer_token_that_is_refused_leaves_everything_as_it_is(
    office: Office, token: str, expires_in: float | None, code: str
) -> None:
    handler = await office.connect("alice/1")
    if expires_in is not None:
        office.authenticator.expires_at[token] = time.time() + expires_in
    office.receive(handler, authorize(token, id="a", trace_id="t"))
    await handler.finish()
    assert handler.codes == [code]
    assert (handler.frames[0]["payload"]["id"], handler.frames[0]["payload"]["trace_id"]) == ("a", "t")
    assert handler.identity is not None
    assert handler.identity.token == "alice/1"
    assert office.manager.get_user_handlers(["bob"]) == []
    assert not handler.closes


async def test_an_authenticator_that_hangs_puts_a_newer_token_off() -> None:
    office = Office(auth_timeout=0.01)
    handler = await office.connect("alice/1")
    office.authenticator.gate = asyncio.Event()
    office.receive(handler, authorize("alice/2"))
    await handler.finish()
    assert handler.codes == ["mesh_unavailable"]


async def test_an_authenticator_that_cannot_tell_puts_a_newer_token_off_and_changes_nothing(office: Office) -> None:
    handler = await office.connect("alice/1")
    office.authenticator.error = AuthenticationUnavailable("keys: they cannot be had")
    office.receive(handler, authorize("alice/2", id="a"))
    await handler.finish()
    (answer,) = handler.take()
    assert answer["payload"]["error"] | {"error": ""} == {
        "error": "",
        "description": "Tokens cannot be checked at the moment",
        "code": "mesh_unavailable",
        "retryable": True,
        "retry_after_ms": 5000,
    }
    assert handler.identity is not None
    assert handler.identity.token == "alice/1"
    assert handler.closes == []
    office.authenticator.error = None
    office.receive(handler, authorize("alice/2", id="b"))
    await handler.finish()
    assert handler.codes == [None]


async def test_an_authenticator_that_fails_refuses_a_newer_token_with_internal(
    office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    handler = await office.connect("alice/1")
    office.authenticator.error = OSError("the database is away")
    office.receive(handler, authorize("alice/2", id="a"))
    await handler.finish()
    assert handler.codes == ["internal"]
    # What it says may quote the token.
    assert "OSError" in caplog.text
    assert "database" not in caplog.text + handler.texts[0]


async def test_one_newer_token_is_looked_at_at_a_time(office: Office) -> None:
    handler, other = await office.connect("alice/1"), await office.connect("alice/1")
    office.authenticator.gate = asyncio.Event()
    for number in range(2, 5):
        office.receive(handler, authorize(f"alice/{number}", id=str(number)))
    office.receive(other, authorize("alice/9"))
    assert handler.codes == ["too_many_requests"] * 2
    assert handler.frames[0]["payload"]["error"]["retry_after_ms"] > 0
    await until(lambda: len(office.authenticator.tokens) == 4)
    office.authenticator.gate.set()
    await handler.finish()
    await other.finish()
    assert handler.codes == ["too_many_requests"] * 2 + [None]
    assert other.codes == [None]
    assert office.authenticator.tokens == ["alice/1", "alice/1", "alice/2", "alice/9"]
    office.receive(handler, authorize("alice/5"))
    await handler.finish()
    assert handler.codes[-1] is None


async def test_a_connection_that_ends_while_its_newer_token_is_looked_at_leaves_nothing(office: Office) -> None:
    handler = await office.connect("alice/1")
    office.authenticator.gate = asyncio.Event()
    office.receive(handler, authorize("alice/2"))
    await until(lambda: len(office.authenticator.tokens) == 2)
    (task,) = handler.tasks
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    office.manager.unregister(handler)
    assert not handler.frames
    office.assert_empty()


# --- rates ----------------------------------------------------------------------------------------------


class Calm(ExposePolicy):
    """``orders.create`` once a second for each user."""

    limit = CallRate(Rate(1, "s", 1))

    def rate(self, identity: Identity, service: str, method: str) -> CallRate | None:
        return self.limit if (service, method) == ("orders", "create") else None


def limited(*, policy: ExposePolicy | None = None, **settings: Any) -> Office:
    """An office with a clock that only the test moves."""
    return Office(policy=policy, **{"rate_limit": "off", "rate_limit_user": "off", **settings})


def refusal(frame: dict[str, Any]) -> tuple[str, int]:
    """Code and hint of an answer."""
    error = frame if frame["type"] == "error" else frame["payload"]["error"]
    return error["code"], error["retry_after_ms"]


async def test_a_connection_may_send_so_many_frames_and_is_told_when_to_go_on() -> None:
    office = limited(rate_limit="2/s burst 3")
    one, other = await office.connect("alice"), await office.connect("alice")
    for number in range(5):
        office.receive(one, request(id=str(number), trace_id="t"))
    assert len(office.receiver.frames) == 3
    assert [refusal(frame) for frame in one.frames] == [("too_many_requests", 500)] * 2
    assert [frame["payload"]["id"] for frame in one.frames] == ["3", "4"]
    assert [frame["payload"]["trace_id"] for frame in one.frames] == ["t", "t"]
    assert one.frames[0]["payload"]["error"]["retryable"] is True
    office.receive(other, request(id="1"))
    assert len(office.receiver.frames) == 4
    office.clock.now += 0.25
    office.receive(one, request(id="5"))
    assert refusal(one.frames[-1]) == ("too_many_requests", 250)
    office.clock.now += 0.25
    office.receive(one, request(id="6"))
    assert len(office.receiver.frames) == 5
    assert office.manager.statistics.limited == {"connection": 3}


async def test_a_user_has_one_limit_for_all_connections_and_keeps_it_when_these_end() -> None:
    office = limited(rate_limit_user="1/s burst 3")
    one, two, bob = await office.connect("alice"), await office.connect("alice"), await office.connect("bob")
    for handler in (one, two, one, two, bob):
        office.receive(handler, request(id="1"))
    assert [len(handler.frames) for handler in (one, two, bob)] == [0, 1, 0]
    office.manager.unregister(one)
    office.manager.unregister(two)
    again = await office.connect("alice")
    office.receive(again, request(id="2"))
    assert refusal(again.frames[0]) == ("too_many_requests", 1000)
    assert office.manager.statistics.limited == {"user": 2}


async def test_the_calls_of_a_rule_have_a_rate_of_their_own() -> None:
    office = limited(policy=Calm(["orders.*"], []))
    alice, bob = await office.connect("alice"), await office.connect("bob")
    for handler in (alice, bob):
        office.receive(handler, request(method="create", id="1"))
        office.receive(handler, {"type": "command", "payload": {"service": "orders", "method": "create", "id": "2"}})
        office.receive(handler, request(method="get", id="3"))
    assert len(office.receiver.frames) == 4
    for handler in (alice, bob):
        assert [(frame["payload"]["id"], *refusal(frame)) for frame in handler.frames] == [
            ("2", "too_many_requests", 1000)
        ]
    office.clock.now += 1
    office.receive(alice, request(method="create", id="4"))
    assert len(office.receiver.frames) == 5
    assert office.manager.statistics.limited == {"rule": 2}


async def test_what_the_policy_forbids_takes_nothing_from_the_rate_of_a_rule() -> None:
    office = limited(policy=Calm([], []))
    handler = await office.connect()
    for _ in range(3):
        office.receive(handler, request(method="create", id="1"))
    assert handler.codes == ["permission_denied"] * 3


LIMITED = [
    # frame, type of its one answer (None: there is none), ids of that
    (request(id="1", trace_id="t"), "response", {"id": "1", "trace_id": "t"}),
    (request(id="1"), "response", {"id": "1"}),
    (request(trace_id="t"), "response", {"trace_id": "t"}),
    (request(), "error", {}),
    (request(id=5, trace_id=["t"]), "error", {}),
    (request(id="x" * 65, trace_id="t"), "response", {"trace_id": "t"}),
    (request(id="1", params={"id": "2"}, more={"trace_id": "t"}), "response", {"id": "1"}),
    ({"type": "describe"}, "error", {}),
    ({"type": "describe", "payload": {"id": "1"}}, "response", {"id": "1"}),
    ({"type": "subscribe", "payload": {"topics": ["a"], "id": "1"}}, "response", {"id": "1"}),
    ({"type": "authorize", "payload": {"token": "alice/2", "id": "1"}}, "response", {"id": "1"}),
    # The id of a cancel is that of a request, which has an answer of its own.
    ({"type": "cancel", "payload": {"id": "1"}}, "error", {}),
    ({"type": "ping", "payload": 5}, "error", {}),
    ({"type": "pong"}, None, {}),
    ({"type": "pong", "payload": {"id": "1"}}, None, {}),
    # What is no frame counts, too.
    ({"type": "unheard", "payload": {"id": "1"}}, "response", {"id": "1"}),
    ({"type": ["cancel"], "payload": {"id": "1"}}, "response", {"id": "1"}),
    ({"payload": {"id": "1", "trace_id": "t"}}, "response", {"id": "1", "trace_id": "t"}),
    ({"payload": [{"id": "1"}]}, "error", {}),
    ("{}", "error", {}),
    ("[]", "error", {}),
    ("", "error", {}),
    ("nonsense", "error", {}),
    ('{"type":"request","payload":{"id":"1"}} x', "error", {}),
    ("\ud800", "error", {}),
    ("[" * 5000, "error", {}),
    ('{"payload":{"id":' + "[" * 5000, "error", {}),
]


@pytest.mark.parametrize(("frame", "kind", "ids"), LIMITED)
async def test_every_frame_counts_and_is_refused_once_with_its_ids(
    frame: dict[str, Any] | str, kind: str | None, ids: dict[str, str]
) -> None:
    office = limited(rate_limit="1/h")
    handler = await office.connect()
    office.receive(handler, {"type": "pong"})
    assert office.receive(handler, frame) is None
    assert [answer["type"] for answer in handler.frames] == ([] if kind is None else [kind])
    for answer in handler.frames:
        assert refusal(answer)[0] == "too_many_requests"
        payload = answer.get("payload", {})
        assert {name: payload[name] for name in ("id", "trace_id") if name in payload} == ids
    assert office.manager.statistics.limited == {"connection": 1}
    assert not office.receiver.frames
    assert not handler.tasks
    assert not office.manager._malformed


async def test_a_frame_over_the_limit_may_come_as_bytes() -> None:
    office = limited(rate_limit="1/h")
    handler = await office.connect()
    office.manager.on_handler_message(handler, b"{")
    office.manager.on_handler_message(handler, json.dumps(request(id="1")).encode())
    office.manager.on_handler_message(handler, b'{"payload":{"id":"\xff"}}')
    assert handler.codes == ["bad_request", "too_many_requests", "too_many_requests"]
    assert handler.frames[1]["payload"]["id"] == "1"


async def test_a_message_that_is_too_big_is_answered_as_such_and_does_not_count() -> None:
    office = limited(rate_limit="1/h", max_message_size=256)
    handler = await office.connect()
    for _ in range(2):
        office.receive(handler, "x" * 257)
    assert handler.codes == ["payload_too_large"] * 2
    assert office.manager.statistics.limited == {}


@pytest.mark.parametrize("frame", [request(id="1"), {"type": "pong"}, "nonsense"])
async def test_who_goes_on_in_spite_of_refusals_is_hung_up_on_after_the_last_answer(frame: Any) -> None:
    office = limited(rate_limit="1/h")
    handler, other = await office.connect("alice"), await office.connect("alice")
    for each in (handler, other):
        office.receive(each, {"type": "pong"})
    order: list[tuple[int, int]] = []
    handler.on_send = lambda: order.append((len(handler.frames), len(handler.closes)))
    for _ in range(REFUSALS_ALLOWED):
        office.receive(handler, frame)
    assert not handler.closes
    office.receive(handler, frame)
    assert handler.closes == [(CloseCode.TOO_MANY_REQUESTS, "too many requests")]
    assert len(handler.frames) in (0, REFUSALS_ALLOWED + 1)
    assert order[-1] == (len(handler.frames), 1)
    office.receive(other, frame)
    assert not other.closes
    office.manager.unregister(handler)
    office.manager.unregister(other)
    assert not len(office.manager.shared_limits.rates)


async def test_refusals_of_a_rule_count_as_well() -> None:
    office = limited(policy=Calm(["orders.*"], []))
    handler = await office.connect()
    for _ in range(REFUSALS_ALLOWED + 2):
        office.receive(handler, request(method="create", id="1"))
    assert handler.closes == [(CloseCode.TOO_MANY_REQUESTS, "too many requests")]


async def test_a_few_refusals_a_minute_are_nobodys_end() -> None:
    office = limited(rate_limit="1/s")
    handler = await office.connect()
    for _ in range(REFUSALS_ALLOWED * 3):
        office.receive(handler, {"type": "pong"})
        office.receive(handler, {"type": "pong"})
        office.clock.now += 1
    assert office.manager.statistics.limited["connection"] == REFUSALS_ALLOWED * 3
    assert not handler.closes


async def test_a_connection_that_is_not_registered_any_more_is_not_counted() -> None:
    office = limited(rate_limit="1/h")
    handler = await office.connect()
    office.manager.unregister(handler)
    for _ in range(5):
        office.receive(handler, request())
    assert office.manager.statistics.limited == {}
    assert handler.frames == []


async def test_with_the_defaults_an_eager_client_is_not_limited() -> None:
    office = Office()
    handler = await office.connect()
    for number in range(400):
        office.receive(handler, request(id=str(number)))
    assert handler.frames == []


@pytest.mark.parametrize("name", ["nuropb_describe", "_x"])
async def test_no_policy_lets_a_client_ask_a_service_itself_to_describe_itself(name: str) -> None:
    class Everything(ExposePolicy):
        def may_call(self, identity: Identity, service: str, method: str) -> bool:
            return True

    office = Office(policy=Everything([], []))
    handler = await office.connect()
    for kind in ("request", "command"):
        office.receive(handler, {"type": kind, "payload": {"service": "orders", "method": name, "id": "1"}})
    assert handler.codes == ["permission_denied" if name == "nuropb_describe" else "bad_request"] * 2
    assert not office.receiver.frames


async def test_who_bound_itself_is_told_of_a_newer_token_after_the_answer() -> None:
    office = Office()
    handler = await office.connect("alice/1")
    told: list[tuple[str, int]] = []

    def on_refreshed(refreshed: Handler) -> None:
        assert refreshed.identity is not None
        told.append((refreshed.identity.token, len(handler.frames)))

    office.receiver.on_refreshed = on_refreshed
    office.receive(handler, authorize("alice/2", id="1"))
    await handler.finish()
    office.receive(handler, authorize("bob/3", id="2"))
    await handler.finish()
    assert told == [("alice/2", 1)]


# --- messages to clients --------------------------------------------------------------------------------


async def test_a_message_goes_to_one_connection(office: Office) -> None:
    one, two = await office.connect("alice"), await office.connect("alice")
    assert office.manager.send_message(one.session_id, {"type": "note"}) == 1
    assert one.frames == [{"type": "note"}]
    assert not two.frames
    assert office.manager.send_message("nobody", {}) == 0


async def test_a_message_goes_to_all_connections_of_users(office: Office) -> None:
    handlers = [await office.connect(token) for token in ("alice/1", "alice/2", "bob", "carol")]
    assert office.manager.send_message_to_user_ids(["alice", "bob", "alice", "nobody"], {"type": "note"}) == 3
    assert [len(handler.frames) for handler in handlers] == [1, 1, 1, 0]


async def test_a_message_goes_to_everybody(office: Office) -> None:
    assert office.manager.send_message_to_all({}) == 0
    handlers = [await office.connect(token) for token in ("alice", "bob")]
    assert office.manager.send_message_to_all({"type": "note"}) == 2
    assert [handler.frames for handler in handlers] == [[{"type": "note"}]] * 2
    assert handlers[0].texts[0] is handlers[1].texts[0]


@pytest.mark.parametrize(
    ("message", "text"),
    [('{"a": 1}', '{"a": 1}'), ({"a": [1, "é"]}, '{"a":[1,"é"]}'), ([None], "[null]"), (1, "1")],
)
async def test_a_text_is_sent_as_it_is_and_anything_else_as_json(office: Office, message: Any, text: str) -> None:
    handler = await office.connect()
    office.manager.send_message(handler.session_id, message)
    assert handler.texts == [text]


async def test_what_json_does_not_have_is_sent_to_nobody(office: Office) -> None:
    handler = await office.connect()
    with pytest.raises(TypeError):
        office.manager.send_message_to_all(object())
    assert not handler.frames


async def test_a_count_may_be_awaited() -> None:
    count = SendCount(3)
    awaited = await count
    assert awaited == count == 3
    assert type(awaited) is int


async def test_connections_are_closed_by_session_by_user_and_all(office: Office) -> None:
    handlers = [await office.connect(token) for token in ("alice/1", "alice/2", "bob")]
    assert office.manager.close("nobody") == 0
    assert office.manager.close(handlers[0].session_id) == 1
    assert office.manager.close_user_ids(["alice", "alice"], CloseCode.TOKEN_REVOKED, "revoked") == 2
    assert office.manager.close_all(CloseCode.SERVICE_RESTART) == 3
    default, revoked, restart = (4503, "disconnected"), (4511, "revoked"), (1012, "disconnected")
    assert [handler.closes for handler in handlers] == [[default, revoked, restart], [revoked, restart], [restart]]


@pytest.mark.parametrize("action", ["unregister myself", "unregister all", "close all", "send to all"])
async def test_connections_may_do_anything_while_they_are_gone_through(office: Office, action: str) -> None:
    manager = office.manager
    handlers = [await office.connect(f"alice/{number}") for number in range(5)]

    def act(handler: FakeHandler) -> None:
        handler.on_send = None  # once, or it would go round in circles
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
    office.assert_empty()


async def test_closing_may_unregister(office: Office) -> None:
    handlers = [await office.connect() for _ in range(3)]
    for handler in handlers:
        handler.on_send = lambda handler=handler: office.manager.unregister(handler)
    assert office.manager.close_user_ids(["alice"]) == 3
    office.assert_empty()


# --- time -----------------------------------------------------------------------------------------------


async def test_every_connection_is_looked_after_until_it_is_cancelled() -> None:
    office = Office(ping_interval=0.01)
    handlers = [await office.connect() for _ in range(2)]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(office.manager.sweep)
        await until(lambda: all(len(handler.checks) > 1 for handler in handlers))
        office.manager.unregister(handlers[0])
        seen = len(handlers[1].checks)
        await until(lambda: len(handlers[1].checks) > seen + 1)
        tasks.cancel_scope.cancel()
    assert len(handlers[0].checks) < len(handlers[1].checks)
    assert not handlers[1].closes


async def test_a_connection_whose_token_expires_is_closed_and_still_looked_after() -> None:
    # It may hang in a write; nobody else would end it then.
    office = Office(write_timeout=0.01)
    office.authenticator.expires_at["bob"] = time.time() + HOUR
    alice, bob, carol = [await office.connect(token) for token in ("alice", "bob", "carol")]
    alice.identity = Identity(user_id="alice", username="Alice", token="alice", expires_at=time.time())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(office.manager.sweep)
        await until(lambda: alice.closes)
        seen = len(alice.checks)
        await until(lambda: len(alice.checks) > seen)
        tasks.cancel_scope.cancel()
    assert set(alice.closes) == {(CloseCode.TOKEN_EXPIRED, "token expired")}
    assert not bob.closes
    assert not carol.closes


async def test_a_refusal_is_not_logged_with_the_token(caplog: pytest.LogCaptureFixture) -> None:
    office = Office()
    caplog.set_level(logging.DEBUG)
    handler = await office.connect("alice/c0ffee")
    office.receive(handler, authorize("bad/c0ffee"))
    await handler.finish()
    office.manager.unregister(handler)
    assert "refused" in caplog.text
    assert "c0ffee" not in caplog.text

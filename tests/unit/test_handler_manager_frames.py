"""The HandlerManager: frames of clients, malformed and forbidden ones, and newer tokens."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Any

import pytest

from nuropb_gateway_asgi.authentication import Identity
from nuropb_gateway_asgi.authorization import ExposePolicy
from nuropb_gateway_asgi.exceptions import AuthenticationUnavailable, ConnectionLimitReached
from nuropb_gateway_asgi.handler_manager import MAX_MALFORMED_FRAMES, Handler
from nuropb_gateway_asgi.limits.admission import Arrival
from nuropb_gateway_asgi.protocol import Cancel, CloseCode, Command, Describe, Request, Subscribe, Unsubscribe

from .fakes import FakeHandler, HandlerHarness, authorize_frame, request_frame, until

HOUR = 3600.0


# --- frames ---------------------------------------------------------------------------------------------

PASSED = [
    # frame, type that the receiver gets
    (request_frame(id="1", trace_id="t"), Request),
    ({"type": "command", "payload": {"service": "orders", "method": "put"}}, Command),
    ({"type": "describe"}, Describe),
    ({"type": "subscribe", "payload": {"topics": ["orders.#"]}}, Subscribe),
    ({"type": "unsubscribe", "payload": {"topics": ["orders.#"]}}, Unsubscribe),
    ({"type": "cancel", "payload": {"id": "1"}}, Cancel),
]


@pytest.mark.parametrize(("frame", "kind"), PASSED)
async def test_what_is_for_the_mesh_is_passed_on(harness: HandlerHarness, frame: dict[str, Any], kind: type) -> None:
    handler = await harness.connect()
    returned = harness.receive(handler, frame)
    assert type(returned) is kind
    assert harness.receiver.frames == [(handler, returned)]
    assert not handler.frames


ANSWERED = [
    ('{"type":"ping"}', ['{"type":"pong"}']),
    ('{"type":"ping","payload":null}', ['{"type":"pong","payload":null}']),
    ('{"type":"ping","payload":{"at": 1.50}}', ['{"type":"pong","payload":{"at": 1.50}}']),
    ('{"type":"pong"}', []),
    ('{"type":"pong","payload":[1]}', []),
]


@pytest.mark.parametrize(("text", "answers"), ANSWERED)
async def test_pings_are_answered_and_pongs_are_not(harness: HandlerHarness, text: str, answers: list[str]) -> None:
    handler = await harness.connect()
    assert harness.receive(handler, text) is not None
    assert handler.texts == answers
    assert not harness.receiver.frames


async def test_bytes_are_read_as_text_is(harness: HandlerHarness) -> None:
    handler = await harness.connect()
    assert harness.manager.on_handler_message(handler, json.dumps(request_frame(id="1")).encode()) is not None
    assert len(harness.receiver.frames) == 1


async def test_who_is_not_registered_is_not_listened_to(harness: HandlerHarness) -> None:
    stranger, handler = FakeHandler(), await harness.connect()
    harness.manager.unregister(handler)
    for each in (stranger, handler):
        assert harness.receive(each, {"type": "ping"}) is None
        assert harness.receive(each, "{") is None
        assert not each.frames
    harness.assert_empty()


@pytest.mark.parametrize("data", ["x" * 257, b"x" * 257, "é" * 129, '{"type":"ping"}' + " " * 256])
async def test_a_message_that_is_too_big_ends_the_connection(data: str | bytes) -> None:
    harness = HandlerHarness(max_message_size=256)
    handler = await harness.connect()
    assert harness.manager.on_handler_message(handler, data) is None
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
    (json.dumps(request_frame(method="_private", id="7")), "response", {"id": "7"}, "NuropbMessageError"),
    ('{"type":"ping","payload":' + "[" * 40 + "]" * 40 + "}", "error", {}, "JSONDecodeError"),
    ('{"type":"ping","payload":NaN}', "error", {}, "JSONDecodeError"),
]


@pytest.mark.parametrize(("text", "kind", "ids", "error"), MALFORMED)
async def test_what_is_no_frame_is_answered_once_and_the_connection_stays(
    harness: HandlerHarness, text: str, kind: str, ids: dict[str, str], error: str
) -> None:
    handler = await harness.connect()
    assert harness.receive(handler, text) is None
    (answer,) = handler.frames
    assert answer["type"] == kind
    assert handler.codes == ["bad_request"]
    if kind == "error":
        assert answer["error"] == error
    else:
        assert {name: answer["payload"][name] for name in answer["payload"] if name in ("id", "trace_id")} == ids
        assert answer["payload"]["error"]["error"] == error
    assert not handler.closes
    assert not harness.receiver.frames


async def test_too_many_malformed_frames_in_a_row_end_the_connection(harness: HandlerHarness) -> None:
    handler = await harness.connect()
    for _ in range(MAX_MALFORMED_FRAMES - 1):
        harness.receive(handler, "{")
    assert not handler.closes
    harness.receive(handler, "{")
    assert [code for code, _ in handler.closes] == [4501]
    assert handler.codes == ["bad_request"] * MAX_MALFORMED_FRAMES


async def test_a_malformed_frame_with_a_readable_id_ends_only_its_own_call(harness: HandlerHarness) -> None:
    handler = await harness.connect()
    for number in range(3 * MAX_MALFORMED_FRAMES):
        harness.receive(handler, request_frame(id=str(number), service="no service"))
    assert not handler.closes
    assert handler.codes == ["bad_request"] * 3 * MAX_MALFORMED_FRAMES
    assert [frame["payload"]["id"] for frame in handler.frames] == [str(n) for n in range(3 * MAX_MALFORMED_FRAMES)]


async def test_a_good_frame_makes_up_for_malformed_ones(harness: HandlerHarness) -> None:
    handler = await harness.connect()
    for text in (["{"] * (MAX_MALFORMED_FRAMES - 1) + ['{"type":"pong"}']) * 3:
        harness.receive(handler, text)
    for _ in range(MAX_MALFORMED_FRAMES - 1):
        harness.receive(handler, "{")
    assert not handler.closes
    harness.receive(handler, "{")
    assert [code for code, _ in handler.closes] == [4501]


async def test_malformed_frames_are_counted_for_each_connection(harness: HandlerHarness) -> None:
    one, two = await harness.connect(), await harness.connect()
    for _ in range(MAX_MALFORMED_FRAMES - 1):
        harness.receive(one, "{")
        harness.receive(two, "{")
    assert not one.closes
    assert not two.closes


FORBIDDEN = [
    # frame, ids in the answer
    (request_frame(service="users", id="1"), {"id": "1"}),
    (request_frame(method="put", trace_id="t"), {"trace_id": "t"}),
    (request_frame(method="nuropb_describe", id="1", trace_id="t"), {"id": "1", "trace_id": "t"}),
    ({"type": "command", "payload": {"service": "orders", "method": "put", "id": "1"}}, {"id": "1"}),
    ({"type": "subscribe", "payload": {"topics": ["orders.new", "users.new"], "id": "1"}}, {"id": "1"}),
    ({"type": "subscribe", "payload": {"topics": ["#"], "trace_id": "t"}}, {"trace_id": "t"}),
]


@pytest.mark.parametrize(("frame", "ids"), FORBIDDEN)
async def test_what_the_policy_forbids_is_refused(frame: dict[str, Any], ids: dict[str, str]) -> None:
    harness = HandlerHarness(expose=["orders.get"], topics=["orders.*"])
    handler = await harness.connect()
    harness.receive(handler, frame)
    (answer,) = handler.frames
    assert handler.codes == ["permission_denied"]
    assert {name: value for name, value in answer["payload"].items() if name in ("id", "trace_id")} == ids
    assert not harness.receiver.frames
    assert not handler.closes


async def test_without_ids_a_refusal_is_a_flat_error() -> None:
    harness = HandlerHarness(expose=[])
    handler = await harness.connect()
    harness.receive(handler, request_frame())
    assert [frame["type"] for frame in handler.frames] == ["error"]
    assert handler.codes == ["permission_denied"]


@pytest.mark.parametrize(
    ("frame", "kind"),
    [
        (request_frame(id="1", trace_id="t"), "response"),
        (request_frame(trace_id="t"), "response"),
        (request_frame(), "error"),
        ({"type": "describe"}, "error"),
        # Its id belongs to the request that it cancels, and the request has an answer of its own.
        ({"type": "cancel", "payload": {"id": "1"}}, "error"),
    ],
)
async def test_an_exception_in_the_receiver_becomes_one_internal_answer(
    harness: HandlerHarness, frame: dict[str, Any], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    handler = await harness.connect()
    harness.receiver.error = ValueError("a secret of the house")
    assert harness.receive(handler, frame) is not None
    assert [answer["type"] for answer in handler.frames] == [kind]
    assert handler.codes == ["internal"]
    assert "secret" not in handler.texts[0]
    assert "secret" in caplog.text
    assert not handler.closes


@pytest.mark.parametrize("name", ["nuropb_describe", "_x"])
async def test_no_policy_lets_a_client_ask_a_service_itself_to_describe_itself(name: str) -> None:
    class Everything(ExposePolicy):
        def may_call(self, identity: Identity, service: str, method: str) -> bool:
            return True

    harness = HandlerHarness(policy=Everything([], []))
    handler = await harness.connect()
    for kind in ("request", "command"):
        harness.receive(handler, {"type": kind, "payload": {"service": "orders", "method": name, "id": "1"}})
    assert handler.codes == ["permission_denied" if name == "nuropb_describe" else "bad_request"] * 2
    assert not harness.receiver.frames


# --- newer tokens ---------------------------------------------------------------------------------------


async def test_a_newer_token_of_the_same_user_takes_the_place_of_the_older(harness: HandlerHarness) -> None:
    handler = await harness.connect("alice/1")
    harness.authenticator.expires_at["alice/2"] = expires_at = int(time.time()) + HOUR
    harness.receive(handler, authorize_frame("alice/2", id="a"))
    await handler.finish()
    (answer,) = handler.frames
    assert answer["payload"] == {"id": "a", "result": {"expires_at": expires_at}, "error": None}
    assert handler.identity is not None
    assert handler.identity.token == "alice/2"
    assert not harness.receiver.frames
    harness.manager.unregister(handler)
    harness.assert_empty()


REFUSED = [
    # token, seconds until it expires, code
    ("bad", None, "unauthenticated"),
    ("alice/2", -1.0, "unauthenticated"),
    ("bob", None, "permission_denied"),
]


@pytest.mark.parametrize(("token", "expires_in", "code"), REFUSED)
async def test_a_newer_token_that_is_refused_leaves_everything_as_it_is(
    harness: HandlerHarness, token: str, expires_in: float | None, code: str
) -> None:
    handler = await harness.connect("alice/1")
    if expires_in is not None:
        harness.authenticator.expires_at[token] = time.time() + expires_in
    harness.receive(handler, authorize_frame(token, id="a", trace_id="t"))
    await handler.finish()
    assert handler.codes == [code]
    assert (handler.frames[0]["payload"]["id"], handler.frames[0]["payload"]["trace_id"]) == ("a", "t")
    assert handler.identity is not None
    assert handler.identity.token == "alice/1"
    assert harness.manager.get_user_handlers(["bob"]) == []
    assert not handler.closes


async def test_wrong_newer_tokens_are_answered_and_too_many_of_them_close_the_connection(
    harness: HandlerHarness,
) -> None:
    handler, other = await harness.connect("alice/1"), await harness.connect("bob/1")
    for number in range(6):
        assert not handler.closes
        harness.receive(handler, authorize_frame("bad", id=str(number)))
        await handler.finish()
    assert handler.codes == ["unauthenticated"] * 6
    assert handler.closes == [(4510, "too many wrong tokens")]
    harness.receive(other, authorize_frame("bad"))
    await other.finish()
    assert not other.closes


async def test_a_wrong_newer_token_counts_for_the_address_like_one_in_a_handshake() -> None:
    harness = HandlerHarness(handshake_rate_per_address="1/h burst 20")
    handler = await harness.connect("alice/1")
    handler.address = "192.0.2.1"
    for _ in range(2):
        harness.receive(handler, authorize_frame("bad"))
        await handler.finish()
    with pytest.raises(ConnectionLimitReached, match=r"from 192\.0\.2\.1"):
        harness.manager.admission.on_arrival("192.0.2.1", Arrival.WITH_TOKEN, harness.clock())


async def test_an_authenticator_that_hangs_puts_a_newer_token_off() -> None:
    harness = HandlerHarness(auth_timeout=0.01)
    handler = await harness.connect("alice/1")
    harness.authenticator.gate = asyncio.Event()
    harness.receive(handler, authorize_frame("alice/2"))
    await handler.finish()
    assert handler.codes == ["mesh_unavailable"]


async def test_an_authenticator_that_cannot_tell_puts_a_newer_token_off_and_changes_nothing(
    harness: HandlerHarness,
) -> None:
    handler = await harness.connect("alice/1")
    harness.authenticator.error = AuthenticationUnavailable("keys: they cannot be had")
    harness.receive(handler, authorize_frame("alice/2", id="a"))
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
    harness.authenticator.error = None
    harness.receive(handler, authorize_frame("alice/2", id="b"))
    await handler.finish()
    assert handler.codes == [None]


async def test_an_authenticator_that_fails_refuses_a_newer_token_with_internal(
    harness: HandlerHarness, caplog: pytest.LogCaptureFixture
) -> None:
    handler = await harness.connect("alice/1")
    harness.authenticator.error = OSError("the database is away")
    harness.receive(handler, authorize_frame("alice/2", id="a"))
    await handler.finish()
    assert handler.codes == ["internal"]
    # The text of the exception is logged nowhere: it may quote the token.
    assert "OSError" in caplog.text
    assert "database" not in caplog.text + handler.texts[0]


async def test_one_newer_token_is_looked_at_at_a_time(harness: HandlerHarness) -> None:
    handler, other = await harness.connect("alice/1"), await harness.connect("alice/1")
    harness.authenticator.gate = asyncio.Event()
    for number in range(2, 5):
        harness.receive(handler, authorize_frame(f"alice/{number}", id=str(number)))
    harness.receive(other, authorize_frame("alice/9"))
    assert handler.codes == ["too_many_requests"] * 2
    assert handler.frames[0]["payload"]["error"]["retry_after_ms"] > 0
    await until(lambda: len(harness.authenticator.tokens) == 4)
    harness.authenticator.gate.set()
    await handler.finish()
    await other.finish()
    assert handler.codes == ["too_many_requests"] * 2 + [None]
    assert other.codes == [None]
    assert harness.authenticator.tokens == ["alice/1", "alice/1", "alice/2", "alice/9"]
    harness.receive(handler, authorize_frame("alice/5"))
    await handler.finish()
    assert handler.codes[-1] is None


async def test_a_connection_that_ends_while_its_newer_token_is_looked_at_leaves_nothing(
    harness: HandlerHarness,
) -> None:
    handler = await harness.connect("alice/1")
    harness.authenticator.gate = asyncio.Event()
    harness.receive(handler, authorize_frame("alice/2"))
    await until(lambda: len(harness.authenticator.tokens) == 2)
    (task,) = handler.tasks
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    harness.manager.unregister(handler)
    assert not handler.frames
    harness.assert_empty()


async def test_who_bound_itself_is_told_of_a_newer_token_after_the_answer() -> None:
    harness = HandlerHarness()
    handler = await harness.connect("alice/1")
    told: list[tuple[str, int]] = []

    def on_refreshed(refreshed: Handler) -> None:
        assert refreshed.identity is not None
        told.append((refreshed.identity.token, len(handler.frames)))

    harness.receiver.on_refreshed = on_refreshed
    harness.receive(handler, authorize_frame("alice/2", id="1"))
    await handler.finish()
    harness.receive(handler, authorize_frame("bob/3", id="2"))
    await handler.finish()
    assert told == [("alice/2", 1)]


async def test_a_refusal_is_not_logged_with_the_token(caplog: pytest.LogCaptureFixture) -> None:
    harness = HandlerHarness()
    caplog.set_level(logging.DEBUG)
    handler = await harness.connect("alice/c0ffee")
    harness.receive(handler, authorize_frame("bad/c0ffee"))
    await handler.finish()
    harness.manager.unregister(handler)
    assert "refused" in caplog.text
    assert "c0ffee" not in caplog.text


async def test_a_session_gets_another_id_while_its_newer_token_is_checked() -> None:
    harness = HandlerHarness()
    handler = await harness.connect("alice/1")
    harness.authenticator.gate = asyncio.Event()
    harness.receive(handler, authorize_frame("alice/2", id="1"))
    await asyncio.sleep(0)
    harness.manager.rename(handler, "another")
    harness.receive(handler, authorize_frame("alice/3", id="2"))
    assert handler.codes == ["too_many_requests"]
    harness.authenticator.gate.set()
    await handler.finish()
    assert handler.identity is not None
    assert handler.identity.token == "alice/2"
    harness.manager.unregister(handler)
    harness.assert_empty()


async def test_a_session_that_got_another_id_without_a_connection_has_no_place_among_the_connections() -> None:
    harness = HandlerHarness()
    handler = await harness.connect()
    harness.manager.park(handler)
    harness.manager.rename(handler, "another")
    assert len(harness.manager) == 0
    assert harness.manager.is_parked(handler)
    harness.manager.unregister(handler)
    harness.assert_empty()

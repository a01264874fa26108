"""Remembered answers of calls with idempotency keys: how long they stay, and whose go first."""

from __future__ import annotations

from typing import Any

from msgspec import Raw

from nuropb_gateway_asgi import Identity
from nuropb_gateway_asgi.handlers.kept_frames import SessionOutbox
from nuropb_gateway_asgi.protocol import Request
from nuropb_gateway_asgi.routing.idempotency import HTTP_MEMORY, IdempotentCalls
from nuropb_gateway_asgi.wire.interface import CallMessage

from .fakes import FakeHandler

RESULT = b'"' + b"x" * 60_000 + b'"'


def identity(user: str) -> Identity:
    """Return the identity of a user."""
    return Identity(user_id=user, username=user, token=user)


class FakeSession(FakeHandler):
    """A session whose client reads everything at once."""

    def __init__(self) -> None:
        super().__init__("s")
        self.outbox = SessionOutbox(2_000_000, 2_000_000)
        self.outbox.begin()
        self.outbox.go_on(None)

    def send_frame(self, text: str) -> None:
        self.outbox.put(text)
        self.outbox.get_nowait()

    def may_lack(self, text: str) -> bool:
        return self.outbox.holds(text)


class FakeCall(FakeHandler):
    """A call over HTTP."""

    keys_are_the_users = True


def run(calls: IdempotentCalls, handler: Any, key: str) -> bool:
    """Answer a call with a key; return whether it joined an earlier one."""
    handler.identity = handler.identity or identity("alice")
    frame = Request(service="orders", method="get", params=Raw(b"{}"), idempotency_key=key)
    if calls.join(handler, frame, {}, key):
        return True
    message = CallMessage("request", key, "", "orders", "get", b"{}", b"{}", 0.0, 1.0)
    calls.make(message, handler, frame, "", {}).succeed(RESULT)
    return False


def test_answers_that_the_client_of_a_session_has_acknowledged_take_no_memory() -> None:
    calls, session = IdempotentCalls(60.0, lambda: 0.0), FakeSession()
    for number in range(100):
        assert not run(calls, session, str(number))
        assert session.outbox.acknowledge(number)
        assert calls.remembered <= 2


def test_answers_that_the_client_of_a_session_may_not_have_are_remembered() -> None:
    calls, session = IdempotentCalls(60.0, lambda: 0.0), FakeSession()
    for number in range(10):
        assert not run(calls, session, str(number))
    assert all(run(calls, session, str(number)) for number in range(10))


def test_one_users_answers_do_not_push_out_those_of_another() -> None:
    calls, bob = IdempotentCalls(60.0, lambda: 0.0), FakeCall()
    bob.identity = identity("bob")
    assert not run(calls, bob, "b")
    for number in range(2 * HTTP_MEMORY // len(RESULT)):
        assert not run(calls, FakeCall(), str(number))
    assert calls.remembered <= HTTP_MEMORY // len(RESULT) + 1
    assert run(calls, bob, "b")

from __future__ import annotations

import json
from typing import Any

import pytest

from nuropb_gateway_asgi.handler_manager import HandlerManager
from nuropb_gateway_asgi.handlers.exchange import FRAME_ID, Answer, failed, read_answer
from nuropb_gateway_asgi.handlers.http_calls import CallHandler
from nuropb_gateway_asgi.handlers.server_sent_events import server_sent_event
from nuropb_gateway_asgi.protocol import (
    PING,
    CloseCode,
    ErrorCode,
    Failure,
    encode_error,
    encode_event,
    encode_failure,
    encode_response,
)

from .fakes import FakeHandler


def answer_of(handler: CallHandler) -> tuple[int, Any]:
    answer = handler.answer.result()
    return answer.status, json.loads(answer.body)


@pytest.mark.parametrize("code", ErrorCode)
def test_every_error_has_a_status_and_the_members_of_a_frame(code: ErrorCode) -> None:
    failure = Failure(code, "why", retry_after_ms=1 if code is ErrorCode.TOO_MANY_REQUESTS else None)
    answer = read_answer(encode_failure(FRAME_ID, "t", failure))
    assert answer == failed(failure) == read_answer(encode_error(failure))
    assert answer is not None
    assert answer.status == code.http_status >= 400
    frame = json.loads(encode_failure(FRAME_ID, "t", failure))
    assert json.loads(answer.body) == frame["payload"]["error"]
    assert answer.headers.get("Retry-After") == ("1" if failure.retry_after_ms else None)
    assert answer.headers.get("WWW-Authenticate") == ("Bearer" if answer.status == 401 else None)


def test_the_result_is_the_body_as_it_came() -> None:
    assert read_answer(encode_response(FRAME_ID, "t", b'{ "a": 1e5 }')) == Answer(200, b'{ "a": 1e5 }', {})


@pytest.mark.parametrize(
    "text",
    [encode_event("a", b"1"), encode_response("2", "t", b"1"), PING, "not JSON", '{"type":"response"}', "[" * 5000],
)
def test_what_is_no_answer_answers_nothing(text: str) -> None:
    assert read_answer(text) is None


async def test_the_first_answer_of_a_call_is_its_answer() -> None:
    call = CallHandler("")
    call.send_frame(encode_event("hello", b"{}"))
    assert not call.answer.done()
    call.send_frame(encode_response(FRAME_ID, "t", b"1"))
    call.send_frame(encode_response(FRAME_ID, "t", b"2"))
    call.close(CloseCode.TOKEN_REVOKED)
    assert answer_of(call) == (200, 1)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (CloseCode.TOKEN_REVOKED, 401),
        (CloseCode.TOO_MANY_ERRORS, 429),
        (CloseCode.SERVICE_RESTART, 504),
        (CloseCode.DISCONNECTED, 409),
        (4321, 409),
    ],
)
async def test_a_call_that_is_hung_up_on_is_answered(code: int, status: int) -> None:
    call = CallHandler("")
    call.close(code, "a secret reason")
    call.close(4000)
    assert answer_of(call)[0] == status
    assert "secret" not in call.answer.result().body.decode()


@pytest.mark.parametrize(
    ("text", "event"),
    [
        (
            encode_event("orders.created", b'{"a":\r\n1}'),
            'id: 7\ndata: {"topic":"orders.created","event":{"a":  1}}\n\n',
        ),
        (encode_event("hello", b"{}"), 'event: hello\nid: 7\ndata: {"topic":"hello","event":{}}\n\n'),
        (encode_event("hello.x", b"{}"), 'id: 7\ndata: {"topic":"hello.x","event":{}}\n\n'),
        (
            encode_event("goodbye", b'{"reason":"r","retry_after_ms":1200}'),
            "event: goodbye\nretry: 1200\nid: 7\n"
            'data: {"topic":"goodbye","event":{"reason":"r","retry_after_ms":1200}}\n\n',
        ),
        (encode_event("goodbye", b"1"), 'event: goodbye\nid: 7\ndata: {"topic":"goodbye","event":1}\n\n'),
        ('{"any":\n1}', 'event: frame\nid: 7\ndata: {"any": 1}\n\n'),
        ("text\r\ndata: x\n\n", "event: frame\nid: 7\ndata: text  data: x  \n\n"),
    ],
)
def test_a_frame_is_one_event_of_a_stream(text: str, event: str) -> None:
    assert server_sent_event(text, 7) == event.encode()


def test_a_goodbye_of_the_manager_says_when_to_come_back() -> None:
    handler = FakeHandler()
    HandlerManager.say_goodbye(handler, "draining")
    event = server_sent_event(handler.texts[0], 1).decode()
    assert f"retry: {handler.frames[0]['payload']['event']['retry_after_ms']}\n" in event

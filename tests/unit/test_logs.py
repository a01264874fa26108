from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any, Final

import pytest

from nuropb_gateway_asgi import Settings
from nuropb_gateway_asgi.exceptions import MeshUnavailable
from nuropb_gateway_asgi.observability.logs import LogFilter, configure_logging, filtered_server_logs
from nuropb_gateway_asgi.observability.refusal_lines import LINES, SECONDS, RefusalFilter, is_of_anybody

WEBSOCKET = '%s - "WebSocket %s" [accepted]'
ACCESS = '%s - "%s %s HTTP/%s" %d'
TRACE = 5
FILTERED = ("uvicorn.error", "uvicorn.access", "uvicorn.asgi", "asyncio")


class Recorder(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter())

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """Record the filtered output of uvicorn's loggers."""
    recorder = Recorder()
    loggers = [logging.getLogger(f"uvicorn.{name}") for name in ("error", "access", "asgi")]
    before = [(logger, logger.level, logger.propagate, list(logger.filters)) for logger in loggers]
    for logger in loggers:
        logger.addHandler(recorder)
        logger.setLevel(1)
        logger.propagate = False
    yield recorder
    for logger, level, propagate, filters in before:
        logger.removeHandler(recorder)
        logger.setLevel(level)
        logger.propagate = propagate
        logger.filters = filters


@pytest.fixture
def own() -> Iterator[None]:
    """Configure logging as in a process of the gateway's own."""
    package = logging.getLogger("nuropb_gateway_asgi")
    handlers, propagate, level = package.handlers, package.propagate, package.level
    configure_logging(Settings())
    yield
    package.handlers, package.propagate = handlers, propagate
    package.setLevel(level)
    for name in FILTERED:
        logger = logging.getLogger(name)
        logger.filters = [each for each in logger.filters if not isinstance(each, LogFilter | RefusalFilter)]


def log(name: str, level: int, message: str, *args: Any, path: str = "/lib/uvicorn/server.py", **more: Any) -> None:
    logger = logging.getLogger(name)
    logger.handle(logger.makeRecord(name, level, path, 1, message, args, more.get("exc_info")))


SCOPE = {"type": "websocket", "path": "/ws", "query_string": b"token", "subprotocols": ["token"]}
SAID = [
    ("uvicorn.error", logging.INFO, WEBSOCKET, ("1.2.3.4:5", "/ws?token"), '1.2.3.4:5 - "WebSocket /ws" [accepted]'),
    (
        "uvicorn.error",
        logging.INFO,
        WEBSOCKET,
        ("\x1b[2J\r\n:0", "/ws"),
        r'\x1b[2J\x0d\x0a:0 - "WebSocket /ws" [accepted]',
    ),
    ("uvicorn.error", logging.INFO, WEBSOCKET, ("\x9b\u2028:0", "/ws"), r'\x9b\u2028:0 - "WebSocket /ws" [accepted]'),
    (
        "uvicorn.error",
        logging.INFO,
        WEBSOCKET,
        ("1.2.3.4:5", OSError("a\x85b")),
        r'1.2.3.4:5 - "WebSocket a\x85b" [accepted]',
    ),
    ("uvicorn.asgi", TRACE, "%s [%d] Started scope=%s", ("ASGI", 1, SCOPE), "ASGI [1] Started scope=websocket"),
    ("uvicorn.asgi", TRACE, "%s [%d] Send %s", ("ASGI", 1, {"type": "websocket.send"}), "ASGI [1] Send websocket.send"),
    ("uvicorn.error", logging.INFO, "Started server process [%d]", (7,), "Started server process [7]"),
]
OF_REQUESTS = [
    ("uvicorn.access", ACCESS, ("1.2.3.4:5", "GET", "/x?token", "1.1", 200), '1.2.3.4:5 - "GET /x HTTP/1.1" 200'),
    ("uvicorn.asgi", "%s [%d] Started scope=%s", ("ASGI", 1, {"type": "http"}), "ASGI [1] Started scope=http"),
]


@pytest.mark.parametrize(("name", "level", "message", "args", "line"), SAID, ids=range(len(SAID)))
def test_of_websockets_the_content_is_not_logged_whoever_the_process_belongs_to(
    recorder: Recorder, name: str, level: int, message: str, args: tuple[Any, ...], line: str
) -> None:
    with filtered_server_logs():
        log(name, level, message, *args)
    assert recorder.lines == [line]


@pytest.mark.parametrize(("name", "level", "message", "args", "line"), SAID, ids=range(len(SAID)))
@pytest.mark.usefixtures("own")
def test_of_websockets_the_content_is_not_logged_in_a_process_of_its_own(
    recorder: Recorder, name: str, level: int, message: str, args: tuple[Any, ...], line: str
) -> None:
    log(name, level, message, *args)
    assert recorder.lines == [line]


def test_what_a_client_chooses_is_cut(recorder: Recorder, own: None) -> None:
    path, address = f"/{'a' * 60_000}", "x" * 15_000
    log("uvicorn.access", logging.INFO, '%s - "%s %s HTTP/%s" %d', f"{address}:0", "GET", path, "1.1", 404)
    log("uvicorn.error", logging.INFO, WEBSOCKET, f"{address}:0", path)
    assert recorder.lines == [
        f'{"x" * 256}... (15002 characters) - "GET /{"a" * 255}... (60001 characters) HTTP/1.1" 404',
        f'{"x" * 256}... (15002 characters) - "WebSocket /{"a" * 255}... (60001 characters)" [accepted]',
    ]


@pytest.mark.parametrize("own_process", [True, False])
@pytest.mark.parametrize("path", ["/lib/websockets/server.py", "/lib/websockets/legacy/server.py"])
def test_headers_and_frames_are_not_logged(
    recorder: Recorder, path: str, own_process: bool, request: pytest.FixtureRequest
) -> None:
    if own_process:
        request.getfixturevalue("own")
    with filtered_server_logs():
        log("uvicorn.error", logging.DEBUG, "< %s: %s", "Authorization", "token", path=path)
        log("uvicorn.error", logging.DEBUG, "something else")
        log("uvicorn.error", logging.INFO, "connection open", path=path)
    assert recorder.lines == ["something else", "connection open"]


@pytest.mark.parametrize(("name", "message", "args", "line"), OF_REQUESTS, ids=range(len(OF_REQUESTS)))
def test_requests_are_told_without_their_query(
    recorder: Recorder, name: str, message: str, args: tuple[Any, ...], line: str, request: pytest.FixtureRequest
) -> None:
    with filtered_server_logs():  # in a host application, the access log is the application's
        log(name, logging.INFO, message, *args)
    request.getfixturevalue("own")
    log(name, logging.INFO, message, *args)
    assert recorder.lines == [message % args, line]


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    try:
        raise error from cause
    except Exception as caught:
        return caught


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("error", "last"),
    [
        (raised(ValueError("token")), ["ValueError"]),
        (raised(MeshUnavailable("not connected")), ["MeshUnavailable: not connected"]),
        (
            raised(ConnectionRefusedError(111, "Connection refused")),
            ["ConnectionRefusedError: [Errno 111] Connection refused"],
        ),
        (raised(KeyError("a"), raised(ValueError("b"))), ["ValueError", "KeyError"]),
        (raised(ExceptionGroup("token", [raised(ValueError("token"))])), ["ExceptionGroup", "  ValueError"]),
    ],
    ids=repr,
)
def test_an_exception_is_told_by_type_and_place(recorder: Recorder, error: Exception, last: list[str]) -> None:
    log("uvicorn.error", logging.ERROR, "It failed", exc_info=(type(error), error, error.__traceback__))
    (text,) = recorder.lines
    assert "token" not in text
    assert "in raised" in text
    lines = text.splitlines()
    assert [line for line in lines if line in last] == last


def test_an_exception_of_an_application_is_left_as_it_is(recorder: Recorder) -> None:
    error = raised(ValueError("what is wrong"))
    with filtered_server_logs():
        log("uvicorn.error", logging.ERROR, "It failed", exc_info=(type(error), error, error.__traceback__))
    assert recorder.lines[0].endswith("ValueError: what is wrong")


def test_text_that_is_not_utf8_is_no_reason_for_a_traceback(recorder: Recorder) -> None:
    error = raised(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"))
    with filtered_server_logs():
        log(
            "uvicorn.error",
            logging.ERROR,
            "Invalid UTF-8 sequence received from client.",
            exc_info=(type(error), error, error.__traceback__),
        )
    assert recorder.lines == ["Invalid UTF-8 sequence received from client."]


OWN: Final = "nuropb_gateway_asgi.handlers.refusals"


def test_refusals_are_summed_up(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    filter_ = RefusalFilter(clock=lambda: now)

    def passes(name: Any, text: Any, *args: Any) -> bool:
        return filter_.filter(logging.makeLogRecord({"name": name, "msg": text, "args": args, "levelno": logging.INFO}))

    refused = [
        (OWN, "%s refused: %s", "connection", "too many"),
        ("uvicorn.error", '%s - "WebSocket %s" 403', "a", "/ws"),
        ("uvicorn.error", "Invalid HTTP request received."),
        ("uvicorn.error", "Invalid UTF-8 sequence received from client."),
        ("uvicorn.error", "connection rejected (%d %s)", 403, "Forbidden"),
        ("uvicorn.access", '%s - "%s %s HTTP/%s" %d', "a", "GET", "/x", "1.1", 404),
    ]
    others = [
        ("uvicorn.error", '%s - "WebSocket %s" [accepted]', "a", "/ws"),
        ("uvicorn.error", "Shutting down"),
        ("uvicorn.access", '%s - "%s %s HTTP/%s" %d', "a", "GET", "/livez", "1.1", 200),
    ]
    with caplog.at_level(logging.INFO, "nuropb_gateway_asgi.observability"):
        passed = [passes(*refused[number % len(refused)]) for number in range(LINES + 7)]
        assert passed == [True] * LINES + [False] * 7
        assert all(passes(*each) for each in others)
        assert not caplog.messages
        now += SECONDS
        assert passes(*refused[0])
        assert caplog.messages == ["7 lines about refused requests are left out: more than 100 in 10 s"]
        filter_.report()
        assert len(caplog.messages) == 1


def test_lines_that_anybody_can_cause_without_a_token_are_summed_up(caplog: pytest.LogCaptureFixture) -> None:
    filter_ = RefusalFilter(is_of_anybody, "connections", clock=lambda: 100.0)

    def passes(name: Any, text: Any, *args: Any) -> bool:
        return filter_.filter(logging.makeLogRecord({"name": name, "msg": text, "args": args, "levelno": logging.INFO}))

    request = '%s - "%s %s HTTP/%s" %d'
    anybodys = [
        ("uvicorn.error", '%s - "WebSocket %s" [accepted]', "a", "/ws"),
        ("uvicorn.error", "connection open"),
        ("uvicorn.error", "connection closed"),
        ("uvicorn.access", request, "a", "GET", "/livez", "1.1", 200),
        ("uvicorn.access", request, "a", "OPTIONS", "/rpc/a/b", "1.1", 204),
    ]
    others = [
        ("uvicorn.error", "Shutting down"),
        ("uvicorn.access", request, "a", "POST", "/gateway/rpc/a/b", "1.1", 200),
        ("uvicorn.access", request, "a", "GET", "/x", "1.1", 404),
    ]
    passed = [passes(*anybodys[number % len(anybodys)]) for number in range(LINES + 7)]
    assert passed == [True] * LINES + [False] * 7
    assert all(passes(*each) for each in others)
    with caplog.at_level(logging.INFO, "nuropb_gateway_asgi.observability"):
        filter_.report()
    assert caplog.messages == ["7 lines about connections are left out: more than 100 in 10 s"]


def test_what_was_left_out_is_told_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "nuropb_gateway_asgi"), filtered_server_logs():
        for _ in range(LINES + 3):
            logging.getLogger(OWN).info("connection refused: %s", "why")
    assert caplog.messages[LINES:] == ["3 lines about refused requests are left out: more than 100 in 10 s"]
    assert not logging.getLogger(OWN).filters


def test_the_filter_goes_with_the_gateway(recorder: Recorder) -> None:
    with filtered_server_logs():
        pass
    log("uvicorn.error", logging.INFO, WEBSOCKET, "1.2.3.4:5", "/ws?page=1")
    assert recorder.lines == ['1.2.3.4:5 - "WebSocket /ws?page=1" [accepted]']


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_the_gateways_own_messages_are_lines_of_their_own(
    log_format: Any, own: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    configure_logging(Settings(log_format=log_format, log_level="debug"))
    logger = logging.getLogger("nuropb_gateway_asgi.somewhere")
    logger.info("session %s?", "a\nERROR: forged\x1b[2J")
    error = raised(ValueError("token"))
    logger.error("it failed", exc_info=(type(error), error, error.__traceback__))
    first, *rest = stderr.getvalue().splitlines()
    assert "token" not in stderr.getvalue()
    if log_format == "text":
        assert first == r"INFO:     nuropb_gateway_asgi.somewhere: session a\x0aERROR: forged\x1b[2J?"
        assert (rest[0], rest[-1]) == ("ERROR:     nuropb_gateway_asgi.somewhere: it failed", "ValueError")
    else:
        assert json.loads(first)["Body"] == r"session a\x0aERROR: forged\x1b[2J?"
        (last,) = rest
        entry = json.loads(last)
        assert (entry["SeverityText"], entry["SeverityNumber"]) == ("ERROR", 17)
        assert entry["InstrumentationScope"] == {"Name": "nuropb_gateway_asgi.somewhere"}
        assert entry["Attributes"]["exception.stacktrace"].splitlines()[-1] == "ValueError"


@pytest.mark.usefixtures("own")
def test_configuring_twice_filters_once() -> None:
    configure_logging(Settings())
    for name in FILTERED:
        assert sum(isinstance(each, LogFilter) for each in logging.getLogger(name).filters) == 1

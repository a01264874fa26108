"""The access log and the audit log: their lines, their bounds, the audit log's file, and the tables of docs/logs.md."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import signal
import stat
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from nuropb_gateway_asgi import Gateway, Settings, SettingsError
from nuropb_gateway_asgi.journal import ACCESS_LOGGER, AUDIT_LOGGER, EVENTS, Audit, Journal, LineBudget
from nuropb_gateway_asgi.journal.audit import MAX_READS
from nuropb_gateway_asgi.journal.records import MAX_TEXT, record
from nuropb_gateway_asgi.observability.audit_file import AuditFile
from nuropb_gateway_asgi.observability.logs import JSONFormatter, TextFormatter
from tests.kit.gateways import make_gateway
from tests.kit.waiting import eventually

from .fakes import Clock, FakeHandler, HandlerHarness, authorize_frame, request_frame

LOGS: Final = (Path(__file__).resolve().parents[2] / "docs" / "logs.md").read_text(encoding="utf-8")


@pytest.fixture
def lines() -> Iterator[list[dict[str, Any]]]:
    """The records of both loggers as JSON."""
    found: list[dict[str, Any]] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(json.loads(JSONFormatter().format(record)))

    keeper = Keeper()
    loggers = [logging.getLogger(name) for name in (ACCESS_LOGGER, AUDIT_LOGGER)]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.addHandler(keeper)
        each.setLevel(logging.INFO)
    yield found
    for each, level in zip(loggers, levels, strict=True):
        each.removeHandler(keeper)
        each.setLevel(level)


@contextlib.asynccontextmanager
async def running(tmp_path: Path, **settings: Any) -> AsyncIterator[Gateway]:
    settings = {"access_log": "calls", "audit_log": str(tmp_path / "audit.jsonl"), **settings}
    gateway = make_gateway(Settings(server_protocols="off", **settings))
    async with gateway.lifespan():
        await eventually(lambda: gateway.service_mesh_manager.revoker.problem is None)
        yield gateway


async def connect(gateway: Gateway, token: str = "alice") -> FakeHandler:
    handler = FakeHandler()
    handler.address = "192.0.2.7"
    await gateway.handler_manager.register(handler, token)
    return handler


async def call(gateway: Gateway, handler: FakeHandler, **payload: Any) -> None:
    frame = request_frame(service="demo", **payload)
    handler.take()
    gateway.handler_manager.on_handler_message(handler, json.dumps(frame))
    await eventually(lambda: handler.frames)


def events(lines: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [each["Attributes"] for each in lines if each["EventName"] == name]


# --- calls --------------------------------------------------------------------------------------------------------


async def test_a_call_has_a_line_with_its_outcome_its_times_its_bytes_and_its_trace(
    lines: list[dict[str, Any]], tmp_path: Path
) -> None:
    async with running(tmp_path) as gateway:
        alice = await connect(gateway)
        await call(gateway, alice, id="1", method="add", params={"a": 1, "b": 2}, trace_id="a" * 32)
        await call(gateway, alice, id="2", method="nothing", trace_id="mine")
        gateway.handler_manager.unregister(alice)
    good, bad = [each for each in lines if each["EventName"] == "nuropb.call.ended"]
    assert good["TraceId"] == "a" * 32
    assert "TraceId" not in bad
    attributes = good["Attributes"]
    assert (
        attributes.items()
        >= {
            "user.id": "alice",
            "session.id": alice.session_id,
            "nuropb.transport": "websocket",
            "rpc.service": "demo",
            "rpc.method": "add",
            "rpc.response.status_code": "ok",
            "nuropb.kind": "request",
            "nuropb.request_bytes": len('{"a": 1, "b": 2}'),
            "nuropb.response_bytes": 1,
        }.items()
    )
    total = attributes["nuropb.gateway_seconds"] + attributes["nuropb.service_seconds"]
    assert total == pytest.approx(attributes["nuropb.seconds"], abs=1e-5)
    assert bad["Attributes"]["rpc.response.status_code"] == "method_not_found"
    assert bad["Attributes"]["nuropb.trace_id"] == "mine"


async def test_a_call_that_waited_for_its_place_has_waited_in_the_gateway(
    lines: list[dict[str, Any]], tmp_path: Path
) -> None:
    async with running(tmp_path, max_in_flight_per_service=1) as gateway:
        alice = await connect(gateway)
        for number in ("1", "2"):
            frame = request_frame(service="demo", method="slow", params={"seconds": 0.05}, id=number)
            gateway.handler_manager.on_handler_message(alice, json.dumps(frame))
        await eventually(lambda: len(events(lines, "nuropb.call.ended")) == 2)
        gateway.handler_manager.unregister(alice)
    first, second = events(lines, "nuropb.call.ended")
    assert first["nuropb.gateway_seconds"] == 0
    assert second["nuropb.gateway_seconds"] > 0


async def test_a_call_whose_client_left_was_abandoned(lines: list[dict[str, Any]], tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        alice = await connect(gateway)
        frame = request_frame(service="demo", method="slow", params={"seconds": 30}, id="1")
        gateway.handler_manager.on_handler_message(alice, json.dumps(frame))
        gateway.handler_manager.unregister(alice)
    assert [each["rpc.response.status_code"] for each in events(lines, "nuropb.call.ended")] == ["abandoned"]


async def test_more_lines_than_the_rate_are_summed_up(lines: list[dict[str, Any]], tmp_path: Path) -> None:
    async with running(tmp_path, access_log_rate=2) as gateway:
        alice = await connect(gateway)
        for number in range(6):
            await call(gateway, alice, id=str(number), method="add", params={"a": 1, "b": 2})
        gateway.handler_manager.unregister(alice)
    written = len(events(lines, "nuropb.call.ended"))
    left_out = events(lines, "nuropb.access.left_out")
    assert written + sum(each["nuropb.left_out"] for each in left_out) == 6
    assert left_out[0]["nuropb.left_out_by"]["ok"] >= 1


async def test_without_the_setting_nothing_is_written_and_nothing_is_in_place(
    lines: list[dict[str, Any]], tmp_path: Path
) -> None:
    async with running(tmp_path, access_log="off", audit_log="") as gateway:
        alice = await connect(gateway)
        await call(gateway, alice, id="1", method="add", params={"a": 1, "b": 2})
        assert gateway.service_mesh_manager.calls.summarise is None
        assert gateway.handler_manager.journal.count() is None
        gateway.handler_manager.unregister(alice)
    assert lines == []


# --- bounds -------------------------------------------------------------------------------------------------------


async def test_a_budget_has_room_again_in_the_next_period() -> None:
    reports: list[Counter[str]] = []
    clock = Clock(10.0)
    budget = LineBudget(2, 1.0, reports.append, clock=clock)
    assert [budget.take("a"), budget.take("a"), budget.take("a"), budget.take("b")] == [True, True, False, False]
    clock.now = 11.0
    assert budget.take("a")
    assert reports == [Counter(a=1, b=1)]
    budget.close()
    assert len(reports) == 1


async def test_a_sum_does_not_wait_for_the_next_line() -> None:
    reports: list[Counter[str]] = []
    budget = LineBudget(1, 0.01, reports.append, clock=Clock(10.0))
    budget.take("a")
    budget.take("a")
    await eventually(lambda: reports == [Counter(a=1)])


async def test_refusals_are_bounded_and_other_audit_lines_are_not(lines: list[dict[str, Any]]) -> None:
    audit = Audit(clock=Clock(10.0))
    for _ in range(150):
        audit.refused("invalid_token", "no", "192.0.2.1", "websocket")
        audit.connected({"user.id": "alice"})
    audit.close()
    counted = Counter(each["EventName"] for each in lines)
    assert counted == {"nuropb.audit.refused": 100, "nuropb.audit.connected": 150, "nuropb.audit.left_out": 1}
    assert events(lines, "nuropb.audit.left_out")[0]["nuropb.left_out_by"] == {"invalid_token": 50}


def test_long_texts_are_cut_and_control_characters_are_escaped() -> None:
    written: list[str] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            written.extend((JSONFormatter().format(record), TextFormatter().format(record)))

    logger = logging.getLogger("test.journal")
    logger.addHandler(keeper := Keeper())
    logger.setLevel(logging.INFO)
    try:
        attributes = {"user.id": "a\nINFO: forged\x1b[2J=", "nuropb.detail": "x" * 100_000, "nuropb.until": None}
        record(logger, "nuropb.audit.refused", "refused", attributes)
    finally:
        logger.removeHandler(keeper)
    as_json, text = written
    assert len(as_json) < MAX_TEXT + 1000
    assert as_json.isprintable()
    assert text.isprintable()
    assert r'user.id="a\nINFO: forged\u001b[2J="' in text
    assert "nuropb.until" not in as_json


# --- the file -----------------------------------------------------------------------------------------------------


def entry(text: str) -> logging.LogRecord:
    return logging.LogRecord(AUDIT_LOGGER, logging.INFO, "", 0, text, None, None)


def test_the_file_is_its_users_alone_and_follows_a_rotation(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.touch(0o644)
    file = AuditFile(str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    file.handle(entry("one"))
    path.rename(tmp_path / "audit.jsonl.1")
    file.handle(entry("two"))
    file.reopen()
    file.handle(entry("three"))
    file.close()
    bodies = [
        [json.loads(line)["Body"] for line in each.read_text().splitlines()] for each in sorted(tmp_path.iterdir())
    ]
    assert bodies == [["three"], ["one", "two"]]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_cannot_be_opened_stops_the_start(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "missing" / "file", tmp_path, tmp_path / "pipe"):
        with pytest.raises(SettingsError, match="NUROPB_GATEWAY_AUDIT_LOG"):
            AuditFile(str(path))


def test_a_file_that_cannot_be_written_loses_lines_says_so_once_and_raises_nothing(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    file = AuditFile(str(tmp_path / "audit.jsonl"))
    file.close()
    for _ in range(3):
        file.emit(entry("lost"))
    assert file.lost == 3
    assert [each.getMessage().partition(":")[0] for each in caplog.records] == ["the audit log cannot be written"]


def test_a_file_that_cannot_be_opened_again_stays_in_use(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    (folder := tmp_path / "log").mkdir()
    file = AuditFile(str(folder / "audit.jsonl"))
    folder.rename(tmp_path / "moved")
    file.reopen()
    file.handle(entry("kept"))
    file.close()
    assert "kept" in (tmp_path / "moved" / "audit.jsonl").read_text()
    assert "its former file is in use" in caplog.text


def test_standard_output_may_be_the_audit_log(capsys: pytest.CaptureFixture[str]) -> None:
    file = AuditFile("-")
    file.handle(entry("one"))
    file.reopen()
    file.close()
    assert json.loads(capsys.readouterr().out)["Body"] == "one"


async def test_a_hangup_opens_the_file_again(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    async with running(tmp_path) as gateway:
        path.rename(tmp_path / "audit.jsonl.1")
        os.kill(os.getpid(), signal.SIGHUP)
        await eventually(path.exists)
        gateway.handler_manager.unregister(await connect(gateway))
        assert "nuropb.audit.connected" in path.read_text()


# --- the documents ------------------------------------------------------------------------------------------------


def test_the_same_read_of_an_operator_has_a_line_once_in_a_while(lines: list[dict[str, Any]]) -> None:
    clock = Clock(0.0)
    audit = Audit(clock=clock)
    for now in (0.0, 2.0, 299.0, 300.0, 301.0):
        clock.now = now
        audit.admin_read("127.0.0.1", "connections", "{}", "ok")
    audit.admin_read("127.0.0.1", "connections", '{"user_id":"alice"}', "ok")
    audit.admin_read("127.0.0.2", "connections", "{}", "ok")
    found = events(lines, "nuropb.audit.admin_action")
    assert [(each["client.address"], each["nuropb.parameters"]) for each in found] == [
        ("127.0.0.1", "{}"),
        ("127.0.0.1", "{}"),
        ("127.0.0.1", '{"user_id":"alice"}'),
        ("127.0.0.2", "{}"),
    ]


def test_reads_beyond_the_bound_are_forgotten_and_noted_again(lines: list[dict[str, Any]]) -> None:
    audit = Audit(clock=Clock(0.0))
    for user in [*range(MAX_READS + 1), 0]:
        audit.admin_read("unix", "connections", str(user), "ok")
    found = events(lines, "nuropb.audit.admin_action")
    assert [each["nuropb.parameters"] for each in found[-2:]] == [str(MAX_READS), "0"]


async def test_newer_tokens_that_are_refused_are_audited_and_no_token_is(
    lines: list[dict[str, Any]], tmp_path: Path
) -> None:
    async with running(tmp_path) as gateway:
        alice = await connect(gateway, "alice:hunter1")
        gateway.handler_manager.on_handler_message(alice, json.dumps(authorize_frame("bad:hunter2", id="1")))
        await alice.finish()
        gateway.handler_manager.unregister(alice)
    (refused,) = events(lines, "nuropb.audit.refused")
    assert (refused["nuropb.reason"], refused["user.id"]) == ("newer_token", "alice")
    assert "hunter" not in json.dumps(lines)


async def test_every_event_and_attribute_is_in_the_documents_and_is_written(
    lines: list[dict[str, Any]], tmp_path: Path
) -> None:
    async with running(tmp_path, access_log_rate=1) as gateway:
        alice = await connect(gateway)
        manager, journal = gateway.service_mesh_manager, gateway.handler_manager.journal
        journal.on_ended(alice, (4503, "disconnected"), None, journal.count())
        await call(gateway, alice, id="1", method="add", params={"a": 1, "b": 2})
        await manager.disconnect_users(["alice"])
        await manager.disconnect_session(alice.session_id)
        for tokens in ({"user_id": "bob", "issued_before": 1.0}, {"token_id": "7"}):
            await manager.revoke(**tokens)
            await manager.unrevoke(**tokens)
        gateway.handler_manager.unregister(alice)
    audit = Audit(clock=Clock(0.0))
    for _ in range(101):
        audit.refused("invalid_token", "no", "192.0.2.1", "websocket", "alice")
    audit.close()
    audit = Audit(clock=Clock(0.0))
    audit.revoked({"session_id": "s"}, 4e9)
    audit.taken_back({"session_id": "s"})
    audit.admin_action("unix", "reset", "{}", "ok")
    audit.admin_refused("127.0.0.1", "token")
    Journal(audit=audit, transport="tcp").on_connected(alice)
    async with running(tmp_path) as gateway:
        alice = await connect(gateway)
        await call(gateway, alice, id="1", method="add", params={"a": 1, "b": 2})
        gateway.handler_manager.unregister(alice)
    written: dict[str, set[str]] = {}
    for line in lines:
        written.setdefault(line["EventName"], set()).update(line["Attributes"])
    assert written == {name: set(attributes) for name, attributes in EVENTS.items()}
    assert documented_events() == {name: list(attributes) for name, attributes in EVENTS.items()}
    told = {name for row in re.findall(r"^\| (`[^|]+) \|", attributes_part(), re.MULTILINE) for name in codes(row)}
    assert told == {name for attributes in EVENTS.values() for name in attributes}


def codes(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def documented_events() -> dict[str, list[str]]:
    rows = re.findall(r"^\| `(nuropb\.[a-z_.]+)` \| (`[^|]+) \|$", LOGS.partition("## Attributes")[0], re.MULTILINE)
    return {name: codes(attributes) for name, attributes in rows}


def attributes_part() -> str:
    return LOGS.partition("## Attributes")[2]


def test_every_field_of_a_line_is_in_the_documents() -> None:
    made = entry("text")
    made.event_name, made.attributes, made.trace_id = "nuropb.call.ended", {"a": 1}, "a" * 32
    table = LOGS.partition("| Field | Meaning |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(json.loads(JSONFormatter().format(made)))


def test_an_exception_and_a_foreign_trace_id_are_attributes() -> None:
    made = entry("text")
    made.trace_id, made.exc_text = "mine", "ValueError"
    line = json.loads(JSONFormatter().format(made))
    assert line["Attributes"] == {"nuropb.trace_id": "mine", "exception.stacktrace": "ValueError"}
    assert "TraceId" not in line


def test_a_manager_of_its_own_writes_no_journal(harness: HandlerHarness, lines: list[dict[str, Any]]) -> None:
    asyncio.run(harness.connect())
    assert lines == []

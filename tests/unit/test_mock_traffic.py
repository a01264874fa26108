from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from nuropb_gateway_asgi.cli.record.relay import relaying
from nuropb_gateway_asgi.client import ConnectionClosed, InvalidParams, connect
from nuropb_gateway_asgi.mocks import MockFileError
from nuropb_gateway_asgi.mocks import recording as recordings
from nuropb_gateway_asgi.mocks.recording import Recorder, Recording
from nuropb_gateway_asgi.mocks.replay import Replay
from nuropb_gateway_asgi.mocks.traffic import REDACTED, CallRecord, EventRecord, Redaction, read_traffic
from nuropb_gateway_asgi.testing import TestGateway
from nuropb_gateway_asgi.wire.errors import NuropbValidationError
from nuropb_gateway_asgi.wire.services import Outcome, call_service

HEAD = '{"kind":"head","format":"nuropb-traffic/1","redacted":["token","email"]}\n'


def written(folder: Path, *records: dict[str, Any], first: str = HEAD) -> Path:
    path = folder / "traffic.jsonl"
    path.write_text(first + "".join(json.dumps(each) + "\n" for each in records))
    return path


def recorded(result: Any = None, *, method: str = "get", **params: Any) -> dict[str, Any]:
    return {"kind": "call", "at": 0.0, "service": "orders", "method": method, "params": params, "result": result}


async def outcome(replay: Replay, method: str = "get", **params: Any) -> Outcome:
    service = replay.services()["orders"]
    return await call_service(service, service="orders", method=method, params=params, context={})


async def answer(replay: Replay, **params: Any) -> Any:
    found = await outcome(replay, **params)
    assert found.error is None, found.error
    return json.loads(found.result)


# --- replay -------------------------------------------------------------------------------------------------------


async def test_equal_calls_are_answered_in_order_and_then_by_the_last(tmp_path: Path) -> None:
    replay = Replay(written(tmp_path, recorded(1, number=7), recorded(2, number=7), recorded(3, number=8)))
    assert [await answer(replay, number=n) for n in (7, 8, 7, 7)] == [1, 3, 2, 2]
    assert replay.report() == []


async def test_another_call_is_answered_by_the_most_similar_one_and_told(tmp_path: Path) -> None:
    replay = Replay(written(tmp_path, recorded("a", number=7, page=1), recorded("b", number=8, page=2)))
    assert await answer(replay, number=8, page=3) == "b"
    assert await answer(replay, number=9, page=1) == "a"
    assert replay.report() == ["answered by a similar call: orders.get: 2 times"]


async def test_a_call_with_no_match_fails_and_is_listed(tmp_path: Path) -> None:
    replay = Replay(written(tmp_path, recorded("a", number=7)))
    found = await outcome(replay, colour="red")
    assert found.error is not None
    assert "no call of orders.get with such parameters" in found.error["description"]
    assert replay.report() == ["no match for orders.get: once"]


async def test_errors_are_replayed(tmp_path: Path) -> None:
    record = {**recorded(), "error": {"code": "invalid_params", "description": "too many"}}
    found = await outcome(Replay(written(tmp_path, record)))
    assert found.error == {"error": "NuropbValidationError", "description": "too many"}


async def test_events_are_replayed_in_their_order_to_their_users(tmp_path: Path) -> None:
    events = [
        {"kind": "event", "at": 7.02, "topic": "orders.shipped", "event": 2, "users": ["alice"]},
        {"kind": "event", "at": 7.01, "topic": "orders.created", "event": 1},
    ]
    replay = Replay(written(tmp_path, {**recorded(), "at": 7.0}, *events))
    emitted: list[tuple[Any, ...]] = []
    await replay.play(lambda *event: emitted.append(event))
    assert emitted == [("orders.created", 1, None), ("orders.shipped", 2, ["alice"])]


async def test_redacted_parameters_match(tmp_path: Path) -> None:
    replay = Replay(written(tmp_path, recorded(1, email=REDACTED, n=1), recorded(2, email=REDACTED, n=2)))
    assert await answer(replay, email="alice@example.com", n=2) == 2
    assert replay.report() == []


@pytest.mark.parametrize(
    ("first", "line", "reason"),
    [
        ("", 1, "the file is empty"),
        ('{"kind":"head","format":"nuropb-traffic/9"}\n', 1, "another format"),
        ('{"kind":"event","at":1,"topic":"a"}\n', 1, "a head with nuropb-traffic/1 first"),
        (HEAD + HEAD, 2, "a second head"),
        (HEAD + "\n{}\n", 3, "no record"),
        (HEAD + '{"kind":"call","at":0,"service":"a","method":"b","params":1}\n', 2, "no record"),
        (HEAD + "[" * 100_000 + "\n", 2, "no record"),
        (HEAD + "x" * (4 << 20) + "yy\n", 2, "too long"),
        (HEAD + '{"kind":"event","at":0,"topic":"' + "a" * 300 + '"}\n', 0, "an event of no valid topic"),
        (HEAD + '{"kind":"call","at":0,"service":"a b","method":"_b","params":{}}\n', 0, "no valid service and method"),
    ],
)
def test_another_file_is_refused_with_its_line(tmp_path: Path, first: str, line: int, reason: str) -> None:
    path = written(tmp_path, first=first)
    with pytest.raises(MockFileError, match=reason) as refused:
        Replay(path)
    assert str(refused.value).startswith(f"{path}:{line}:" if line else f"{path}: ")


# --- recording ----------------------------------------------------------------------------------------------------


def test_secrets_are_redacted_at_any_depth() -> None:
    jwt = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl"
    redact = Redaction(["Email"])
    value = {"a": [{"PASSWORD": "x", "email": {"b": 1}, "text": f"Bearer {jwt}."}], "token": None, "n": 1}
    assert redact(value) == {
        "a": [{"PASSWORD": REDACTED, "email": REDACTED, "text": f"Bearer {REDACTED}."}],
        "token": None,
        "n": 1,
    }


def test_a_value_that_is_too_deep_to_look_through_is_redacted() -> None:
    value: Any = []
    for _ in range(100_000):
        value = [value]
    assert Redaction()({"value": value}) == REDACTED


def records_of(path: Path) -> list[CallRecord | EventRecord]:
    return read_traffic(path)[1]


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[Recording]:
    recording = Recording(tmp_path / "traffic.jsonl")
    with recording.opened():
        yield recording


def event_frame(number: int, trace_id: str = "t") -> str:
    payload = {"topic": "orders.created", "event": {"number": number}, "trace_id": trace_id}
    return json.dumps({"type": "event", "payload": payload})


def test_frames_that_are_no_calls_are_not_recorded(recording: Recording) -> None:
    recorder = Recorder(recording)
    for text in (
        "",
        "[1]",
        "[" * 100_000,
        '{"type":"authorize","payload":{"token":"x"}}',
        '{"type":"request","payload":{}}',
        '{"type":"request","payload":{"id":"1","service":"orders","method":"_private"}}',
        '{"type":"request","payload":{"id":"1","service":"orders","method":"no name"}}',
        '{"type":"request","payload":{"id":"1","service":"orders","method":"nuropb_describe"}}',
    ):
        recorder.on_client(text)
        recorder.on_gateway(text)
    recorder.on_gateway('{"type":"event","payload":{"topic":"hello","event":{"session_id":"s"}}}')
    recorder.on_gateway('{"type":"response","payload":{"id":"1","result":1}}')
    assert records_of(recording.path) == []


def test_an_event_that_two_clients_get_is_recorded_once(recording: Recording) -> None:
    one, other = Recorder(recording), Recorder(recording)
    for number in (1, 2):
        one.on_gateway(event_frame(number))
        other.on_gateway(event_frame(number))
    assert [each.event["number"] for each in records_of(recording.path) if isinstance(each, EventRecord)] == [1, 2]


def test_equal_events_one_after_the_other_are_all_recorded(recording: Recording) -> None:
    one, other = Recorder(recording), Recorder(recording)
    for each in (one, one, other, other, other):
        each.on_gateway(event_frame(1))
    assert len(records_of(recording.path)) == 3


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such modes")
def test_a_recording_is_readable_by_its_owner_alone(recording: Recording) -> None:
    assert recording.path.stat().st_mode & 0o777 == 0o600


def test_a_recording_ends_with_one_warning_at_the_size_that_a_replay_reads(
    recording: Recording, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recordings, "MAX_LINES", 3)
    recorder = Recorder(recording)
    for number in range(10):
        recorder.on_gateway(event_frame(number))
    assert len(records_of(recording.path)) == 2
    (warning,) = caplog.messages
    assert warning.startswith(f"the recording ends, and all else goes on: {recording.path}: it has the size")


def test_a_recording_ends_with_a_whole_line_where_the_disk_is_full(
    recording: Recording, caplog: pytest.LogCaptureFixture
) -> None:
    resource = pytest.importorskip("resource")
    recorder = Recorder(recording)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    recorder.on_gateway(event_frame(1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (recording.path.stat().st_size + 5, limits[1]))
    try:
        recorder.on_gateway(event_frame(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    recorder.on_gateway(event_frame(3))
    assert len(records_of(recording.path)) == 1
    assert [text for text in caplog.messages if "the recording ends" in text] == caplog.messages
    assert len(caplog.messages) == 1


async def test_a_relay_records_a_client_and_its_recording_answers(nuropb_gateway: TestGateway, tmp_path: Path) -> None:
    mesh, token = nuropb_gateway.mesh, nuropb_gateway.token()

    def create(item: str, password: str = "") -> dict[str, Any]:
        if item == "beer":
            raise NuropbValidationError("sold out")
        return {"item": item, "secret": "s"}

    mesh.mock("orders", create=create)
    recording = Recording(path := tmp_path / "traffic.jsonl", ["email"])
    with recording.opened():
        recorder = lambda: Recorder(recording)  # noqa: E731
        async with (
            relaying(nuropb_gateway.url, "127.0.0.1", 0, recorder) as url,
            connect(url, token=token, proxy=None) as client,
        ):
            async with client.subscribe("orders.*") as events:
                assert (await client.request("orders", "create", {"item": "tea", "password": "hunter2"}))[
                    "item"
                ] == "tea"
                mesh.publish("orders.created", {"item": "tea", "email": "a@example.com"})
                await anext(events)
            with pytest.raises(InvalidParams):
                await client.request("orders", "create", {"item": "beer"})
            async with httpx.AsyncClient() as http:
                script = await http.get(f"http{url.removeprefix('ws').removesuffix('/ws')}/client.js")
            assert "connect" in script.text
            assert script.headers["content-type"] == "text/javascript"
    text = path.read_text()
    for secret in (token, "hunter2", "a@example.com", '"s"'):
        assert secret not in text
    _, records = read_traffic(path)
    assert [type(each).__name__ for each in records] == ["CallRecord", "EventRecord", "CallRecord"]
    replay = Replay(path)
    service = replay.services()["orders"]
    nuropb_gateway.mesh.add(service)
    again = nuropb_gateway.async_client()
    assert await again.request("orders", "create", {"item": "tea", "password": "other"}) == {
        "item": "tea",
        "secret": REDACTED,
    }
    with pytest.raises(InvalidParams, match="sold out"):
        await again.request("orders", "create", {"item": "beer"})
    assert replay.report() == []


async def test_a_refused_token_is_refused_through_the_relay(nuropb_gateway: TestGateway, tmp_path: Path) -> None:
    recorder = lambda: Recorder(Recording(tmp_path / "traffic.jsonl"))  # noqa: E731
    async with relaying(nuropb_gateway.url, "127.0.0.1", 0, recorder) as url:
        with pytest.raises(ConnectionClosed) as refused:
            async with connect(url, token="nonsense", proxy=None):
                pass
    assert refused.value.close_code == 4510

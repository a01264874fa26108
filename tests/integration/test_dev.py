"""The command ``dev``: the gateway on mocked services, in a process."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from nuropb_gateway_asgi.client import MethodNotFound, ServiceUnavailable, connect
from nuropb_gateway_asgi.mocks.traffic import CallRecord, EventRecord, read_traffic
from tests.kit.processes import SECRET, run_forked, token_of
from tests.servers.processes import ServiceProcess

MOCKS = """\
services:
  orders:
    methods:
      create:
        parameters: {item: string}
        answer: {number: "{{ count }}"}
        events: [{topic: orders.created, event: {number: "{{ count }}"}}]
"""
TRAFFIC = """\
{"kind":"head","format":"nuropb-traffic/1","redacted":[]}
{"kind":"call","at":0,"service":"old","method":"get","params":{"n":1},"result":"recorded"}
"""
SERVICE = """\
from shop_names import NAME


class Users:
    _service_name = "users"

    def me(self):
        \"\"\"Answer with a name.\"\"\"
        return NAME
"""


def write(path: Path, text: str, number: int) -> None:
    """Write a file whose change a watcher sees, however coarse the file system's clock is."""
    path.write_text(text)
    os.utime(path, (number, number))


async def test_a_page_has_its_mocks_its_tokens_and_every_change_of_a_file(tmp_path: Path) -> None:
    mocks, names = tmp_path / "services.yaml", tmp_path / "shop_names.py"
    write(mocks, MOCKS, 1)
    write(names, "NAME = 'one'", 1)
    (tmp_path / "shop_users.py").write_text(SERVICE)
    (tmp_path / "traffic.jsonl").write_text(TRAFFIC)
    arguments = (
        "dev",
        "--replay",
        "traffic.jsonl",
        "--mock",
        str(mocks),
        "--service",
        "shop_users:Users",
        "--user",
        "carol",
        "--port",
        "0",
    )
    async with run_forked("nuropb_gateway_asgi", *arguments, cwd=tmp_path) as process:
        url = (await process.line(r"The gateway is at (ws://\S+)"))[1]
        await process.line(r"http://127.0.0.1:\d+/#token=ey")
        await process.line(r"orders\.create +an answer, with events: orders\.created +.*services\.yaml")
        await process.line(r"users\.me +Answer with a name\. +shop_users:Users")
        await process.line("Token of carol")
        token = (await process.line(r"^(ey\S+)$"))[1]
        async with connect(url, token=token, proxy=None) as client:
            async with client.subscribe("orders.*") as events:
                assert await client.request("orders", "create", {"item": "tea"}) == {"number": 1}
                assert (await anext(events)).event == {"number": 1}
            with pytest.raises(ServiceUnavailable):
                await client.request("ordes", "create")
            await process.line("no service ordes is mocked; there are: old, orders, users")
            with pytest.raises(MethodNotFound):
                await client.request("orders", "destroy")
            await process.line("orders has no method destroy; there are: create")
            write(mocks, MOCKS.replace("string", "strin"), 2)
            await process.line(r"nothing was loaded, as before: .*services\.yaml:5: 'strin' is no type")
            assert await client.request("orders", "create", {"item": "tea"}) == {"number": 2}
            write(mocks, MOCKS.replace("{{ count }}", "new"), 3)
            write(names, "NAME = 'two'", 3)
            await process.line("loaded again: orders, old, users")
            assert await client.request("orders", "create", {"item": "tea"}) == {"number": "new"}
            assert await client.request("old", "get", {"n": 2}) == "recorded"
            while await client.request("users", "me") != "two":  # both files may not be seen at once
                pass
        process.signal(signal.SIGTERM)
        assert await process.wait() in (0, -signal.SIGTERM)
        assert "answered by a similar call: old.get: once" in process.output


async def test_recorded_events_come_after_the_first_subscription_and_again_after_a_change(tmp_path: Path) -> None:
    traffic = tmp_path / "traffic.jsonl"
    event = '{"kind":"event","at":%s,"topic":"old.changed","event":%d}\n'
    write(traffic, TRAFFIC + event % (0.1, 1) + event % (0.2, 2), 1)
    arguments = ("dev", "--replay", "traffic.jsonl", "--user", "carol", "--port", "0")
    async with run_forked("nuropb_gateway_asgi", *arguments, cwd=tmp_path) as process:
        url = (await process.line(r"The gateway is at (ws://\S+)"))[1]
        token = (await process.line(r"^(ey\S+)$"))[1]
        async with connect(url, token=token, proxy=None) as client, client.subscribe("old.*") as events:
            assert [(await anext(events)).event for _ in range(2)] == [1, 2]
            await process.line("traffic.jsonl: 2 recorded events are published now")
            write(traffic, TRAFFIC + event % (0.1, 3), 2)
            await process.line("loaded again: old")
            assert await client.request("old", "get", {"n": 1}) == "recorded"
            assert (await anext(events)).event == 3
        process.signal(signal.SIGTERM)
        await process.wait()


async def test_record_writes_the_calls_and_events_of_a_client(tmp_path: Path) -> None:
    (tmp_path / "services.yaml").write_text(MOCKS)
    dev = ("dev", "--mock", "services.yaml", "--user", "carol", "--port", "0")
    async with run_forked("nuropb_gateway_asgi", *dev, cwd=tmp_path) as gateway:
        url = (await gateway.line(r"The gateway is at (ws://\S+)"))[1]
        token = (await gateway.line(r"^(ey\S+)$"))[1]
        record = ("record", "--url", url, "-o", "traffic.jsonl", "--redact", "item", "--port", "0")
        async with run_forked("nuropb_gateway_asgi", *record, cwd=tmp_path) as process:
            relay = (await process.line(r"Connect clients to (ws://\S+) in place of"))[1]
            async with connect(relay, token=token, proxy=None) as client, client.subscribe("orders.*") as events:
                await client.request("orders", "create", {"item": "tea"})
                await anext(events)
            process.signal(signal.SIGTERM)
            assert await process.wait() == 0
        gateway.signal(signal.SIGTERM)
        await gateway.wait()
    call, event = sorted(read_traffic(tmp_path / "traffic.jsonl")[1], key=lambda each: isinstance(each, EventRecord))
    assert isinstance(call, CallRecord)
    assert (call.params, call.result) == ({"item": "(redacted)"}, {"number": 1})
    assert isinstance(event, EventRecord)
    assert (event.topic, event.event) == ("orders.created", {"number": 1})


@pytest.mark.parametrize("mesh", ["embedded", "rabbitmq"])
async def test_serve_records_the_side_of_the_mesh_and_dev_replays_it(
    mesh: str, amqp_url: str, echo_service: ServiceProcess, tmp_path: Path
) -> None:
    service, method, settings = "demo", "add", {"MESH_URL": "embedded://demo"}
    params: dict[str, Any] = {"a": 2, "b": 3}
    if mesh == "rabbitmq":
        service, method, params = echo_service.service, "echo", {"text": "hello"}
        settings = {"MESH_URL": amqp_url, "EXPOSE": f"{service}.*"}
    path = tmp_path / "traffic.jsonl"
    settings["JWT_KEY"] = SECRET
    recording = ("serve", "--port", "0", "--record", "traffic.jsonl")
    async with run_forked("nuropb_gateway_asgi", *recording, cwd=tmp_path, settings=settings) as process:
        url = (await process.line(r"The gateway is at (ws://\S+)"))[1]
        await process.line("are recorded in traffic.jsonl")
        async with connect(url, token=token_of("alice"), proxy=None) as client:
            answer = await client.request(service, method, params, retries=100, timeout=30)
        process.signal(signal.SIGTERM)
        await process.wait()
    assert "eyJ" not in path.read_text()  # no token
    arguments = ("dev", "--replay", "traffic.jsonl", "--user", "carol", "--port", "0")
    async with run_forked("nuropb_gateway_asgi", *arguments, cwd=tmp_path) as process:
        url = (await process.line(r"The gateway is at (ws://\S+)"))[1]
        token = (await process.line(r"^(ey\S+)$"))[1]
        async with connect(url, token=token, proxy=None) as client:
            again = await client.request(service, method, params)
        process.signal(signal.SIGTERM)
        await process.wait()
    assert again == answer


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--record", "new.jsonl", "--workers", "2"), "--record needs one process"),
        (("--record", "new.jsonl", "--reload"), "--record needs one process"),
        (("--redact", "email"), "--redact is for --record"),
        (("--record", "there.jsonl"), "there.jsonl: the file exists; expected a new one"),
        (("--record", "nowhere/new.jsonl"), "nowhere/new.jsonl: No such file or directory; expected a place"),
    ],
)
async def test_a_recording_that_cannot_be_made_is_refused(
    arguments: tuple[str, ...], text: str, tmp_path: Path
) -> None:
    (tmp_path / "there.jsonl").write_text("")
    async with run_forked("nuropb_gateway_asgi", "serve", "--port", "0", *arguments, cwd=tmp_path) as process:
        assert await process.wait() == 2
        assert text in process.output


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "nothing to serve; give --mock, --service, --openapi or --replay"),
        (("--service", "json"), "no class; expected module:Class"),
        (("--service", "json:JSONDecoder"), "the service has no name; set _service_name"),
        (("--service", "nothing_there:X"), "ModuleNotFoundError"),
    ],
)
def test_a_command_line_without_services_is_refused(
    arguments: tuple[str, ...],
    text: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from nuropb_gateway_asgi.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("logging.root.handlers", [])
    assert main(["dev", *arguments]) == 2
    assert text in capsys.readouterr().err

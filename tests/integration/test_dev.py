"""The command ``dev``: the gateway on mocked services, in a process."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from nuropb_gateway_asgi.client import MethodNotFound, ServiceUnavailable, connect
from tests.kit.processes import run_module

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
class Users:
    _service_name = "users"

    def me(self):
        \"\"\"Answer with a name.\"\"\"
        return "NAME"
"""


def write(path: Path, text: str, number: int) -> None:
    """Write a file whose change a watcher sees, however coarse the file system's clock is."""
    path.write_text(text)
    os.utime(path, (number, number))


async def test_a_page_has_its_mocks_its_tokens_and_every_change_of_a_file(tmp_path: Path) -> None:
    mocks, service = tmp_path / "services.yaml", tmp_path / "shop_users.py"
    write(mocks, MOCKS, 1)
    write(service, SERVICE.replace("NAME", "one"), 1)
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
    async with run_module(
        "nuropb_gateway_asgi", *arguments, cwd=tmp_path, environment={"PYTHONDONTWRITEBYTECODE": "1"}
    ) as process:
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
            write(service, SERVICE.replace("NAME", "two"), 3)
            await process.line("loaded again: orders, old, users")
            assert await client.request("orders", "create", {"item": "tea"}) == {"number": "new"}
            assert await client.request("old", "get", {"n": 2}) == "recorded"
            while await client.request("users", "me") != "two":  # both files may not be seen at once
                pass
        process.signal(signal.SIGTERM)
        assert await process.wait() in (0, -signal.SIGTERM)
        assert "answered by a similar call: old.get: 1 times" in process.output


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

"""Commands in a real bash and a real terminal, with a hostile gateway: what it says must not run, nor move a cursor."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import anyio.to_thread
import pytest
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as serve_websockets
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from nuropb_gateway_asgi.__main__ import main
from tests.kit.processes import ROOT
from tests.kit.waiting import DEADLINE
from tests.servers.processes import unavailable

#: Sets the title of a window, moves the cursor, begins a line, hides text, and is one byte long.
ESCAPES: Final = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\u202e\u200b\x7f\x08"
#: Names that a shell would run, replace, or take for an option. ``OWNED`` is a file that must not come to be.
NAMES: Final = (
    "$(touch OWNED)",
    "`touch OWNED`",
    "x;touch${IFS}OWNED",
    "x\ntouch OWNED",
    "plain,x\nfile,x",
    "*",
    "--token-file",
    "~root",
    "a'b",
    'a"b',
    "a\\b",
    "a&touch OWNED&",
    ">OWNED",
    f"x{ESCAPES}",
    "x" + ESCAPES + "$(touch OWNED)",
)
GOOD: Final = {"get", "list-all", "v1.find"}


def describe() -> dict[str, Any]:
    method = {
        "description": f"{ESCAPES}says",
        "parameters": {"properties": {f"p{ESCAPES}": {"type": ESCAPES}}, "required": []},
        "requires_encryption": False,
    }
    service = {"description": ESCAPES, "version": ESCAPES, "methods": dict.fromkeys([*NAMES, *GOOD], method)}
    return {"services": dict.fromkeys(["evil", *NAMES], service), "unavailable": [ESCAPES]}


async def answer(connection: ServerConnection) -> None:
    """Be a gateway whose every text is hostile."""

    async def send(**frame: Any) -> None:
        await connection.send(json.dumps(frame))

    limits = {"max_message_size": 65536, "max_in_flight": 64, "request_timeout": 30.0, "ping_interval": 25.0}
    hello = {"protocol": "nuropb.v1", "user_id": ESCAPES, "username": ESCAPES, "session_id": ESCAPES, "limits": limits}
    await send(type="event", payload={"topic": "hello", "event": hello})
    with contextlib.suppress(ConnectionClosed):
        async for message in connection:
            frame = json.loads(message)
            payload = frame.get("payload", {})
            id_ = payload.get("id")
            if frame["type"] == "request" and payload["method"] == "fail":
                error = {"code": ESCAPES, "description": ESCAPES, "retryable": False, "retry_after_ms": None}
                failed = {"id": id_, "trace_id": ESCAPES, "result": None, "error": error}
                await send(type="response", payload=failed)
            elif frame["type"] in ("request", "describe", "subscribe"):
                result: Any = describe() if frame["type"] == "describe" else f"{ESCAPES}\n\tsecond{ESCAPES}"
                result = {"topics": payload["topics"]} if frame["type"] == "subscribe" else result
                await send(type="response", payload={"id": id_, "trace_id": "t", "result": result, "error": None})
            if frame["type"] == "subscribe":
                event = {"topic": payload["topics"][0], "event": {ESCAPES: ESCAPES}, "trace_id": ESCAPES}
                await send(type="event", payload=event)


@pytest.fixture
async def url() -> AsyncIterator[str]:
    subprotocols = [Subprotocol("nuropb.v1")]
    async with serve_websockets(answer, "127.0.0.1", 0, subprotocols=subprotocols, ping_interval=None) as server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws"


def run_in_terminal(command: list[str], environment: dict[str, str], cwd: Path) -> bytes:
    """Run a command in a terminal of its own; return everything that it printed there."""
    outer, inner = pty.openpty()
    try:
        process = subprocess.Popen(
            command, stdin=inner, stdout=inner, stderr=inner, env=environment, cwd=cwd, start_new_session=True
        )
        os.close(inner)
        printed = b""
        with contextlib.suppress(OSError):  # the end of a terminal on Linux
            while data := os.read(outer, 65536):
                printed += data
        process.wait()
        return printed
    finally:
        os.close(outer)


#: The command line, with the time that a completion takes on a busy machine, for the second that a user waits.
PATIENT_COMMAND: Final = (
    "import sys; from nuropb_gateway_asgi import __main__; from nuropb_gateway_asgi.cli import _completion; "
    f"_completion.COMPLETION_TIMEOUT = {DEADLINE}; sys.exit(__main__.main())"
)


def environment_for(url: str, tmp_path: Path) -> dict[str, str]:
    """Return an environment in which ``nuropb-gateway`` is this package, and ``url`` its gateway."""
    script = tmp_path / "bin" / "nuropb-gateway"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c \'{PATIENT_COMMAND}\' "$@"\n')
    script.chmod(0o755)
    return {
        "PATH": f"{script.parent}:/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "NUROPB_GATEWAY_URL": url,
        "NUROPB_GATEWAY_TOKEN": "alice",
    }


def bash() -> str:
    found = shutil.which("bash")
    if found is None:
        unavailable("bash is not installed")
    return found


async def test_bash_completes_only_names_that_mean_nothing_to_it(url: str, tmp_path: Path) -> None:
    script = """
    eval "$(_NUROPB_GATEWAY_COMPLETE=bash_source nuropb-gateway)"
    for words in "call " "call evil " "describe " "doctor evil " "bench evil "; do
        COMP_WORDS=(nuropb-gateway $words ""); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
        _nuropb_gateway_completion nuropb-gateway
        printf '%s|' "$words" "${COMPREPLY[@]}"; echo
    done
    """
    workplace = tmp_path / "workplace"
    workplace.mkdir()
    (workplace / "a-file-that-a-star-would-find").touch()
    environment = environment_for(url, tmp_path)
    process = await asyncio.create_subprocess_exec(
        bash(), "--norc", "-c", script, env=environment, cwd=workplace, stdout=-1, stderr=-1
    )
    output, errors = await process.communicate()
    assert errors == b""
    completed = {words: set(names) for words, *names in (line.split("|")[:-1] for line in output.decode().splitlines())}
    assert completed == {
        "call ": {"evil"},
        "call evil ": GOOD,
        "describe ": {"evil"},
        "doctor evil ": GOOD,
        "bench evil ": GOOD,
    }
    assert [each.name for each in workplace.iterdir()] == ["a-file-that-a-star-would-find"]


@pytest.mark.parametrize(
    "arguments",
    [
        "call --raw evil get",
        "call evil get",
        "call evil fail",
        "listen evil.topic --count 1",
        "describe",
        "describe evil --json",
        "doctor evil get --topic evil.topic",
        "doctor evil fail --json",
        "bench evil get --requests 3",
        "bench evil fail --requests 3",
        "bench evil fail --requests 3 --json",
    ],
)
async def test_a_terminal_obeys_no_service(url: str, arguments: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nuropb_gateway_asgi", *arguments.split()]
    environment = environment_for(url, tmp_path)
    printed = await anyio.to_thread.run_sync(run_in_terminal, command, environment, tmp_path)
    text = printed.decode().replace("\r\n", "\n")
    # Colours of doctor, and what a progress bar does, are the command's own.
    text = re.sub(r"\x1b\[(?:[0-9;]*m|\?25[hl]|[12]?K|1A)|\r", "", text)
    assert text.strip()
    assert [each for each in set(text) if not each.isprintable() and each not in "\n\t"] == [], text


async def test_a_pipe_gets_the_text_as_it_is(url: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nuropb_gateway_asgi", "call", "--raw", "evil", "get"]
    process = await asyncio.create_subprocess_exec(*command, env=environment_for(url, tmp_path), stdout=-1)
    output, _ = await process.communicate()
    assert output.decode() == f"{ESCAPES}\n\tsecond{ESCAPES}\n"


def test_an_error_about_a_document_obeys_nothing_of_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "asyncapi.json"
    path.write_text(json.dumps({"asyncapi": "3.1.0", "x-nuropb": {"services": {}}, "operations": {ESCAPES: 1}}))
    assert main(["gen-client", "--lang", "py", str(path)]) == 1
    errors = capfd.readouterr().err
    assert "missing, or not an object" in errors
    assert errors.rstrip("\n").isprintable()

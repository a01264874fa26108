"""The command ``admin`` with a gateway in the same process."""

from __future__ import annotations

import contextlib
import json
import stat
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import anyio.to_thread
import pytest

from nuropb_gateway_asgi import Gateway
from nuropb_gateway_asgi.cli import main
from nuropb_gateway_asgi.settings import ENV_PREFIX, Settings
from tests.kit.gateways import make_gateway
from tests.kit.waiting import eventually

from .fakes import FakeHandler

#: Runs the command; returns its exit code, and the text of both streams.
Run: TypeAlias = Callable[..., Awaitable[tuple[int, str, str]]]
TOKEN = "an-admin-token-of-32-characters-or-more"


@pytest.fixture
async def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gateway]:
    """A gateway whose admin API the environment names."""
    address = f"unix:{tmp_path}/admin.sock"
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    monkeypatch.setenv(f"{ENV_PREFIX}ADMIN_LISTEN", address)
    monkeypatch.setenv(f"{ENV_PREFIX}ADMIN_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.chdir(tmp_path)
    settings = Settings(admin_listen=address, admin_token=TOKEN, server_protocols="off", expose_topics=["#"])
    gateway = make_gateway(settings)
    async with gateway.lifespan():
        await eventually((tmp_path / "admin.sock").exists)
        yield gateway


@pytest.fixture
async def alice(gateway: Gateway) -> AsyncIterator[FakeHandler]:
    handler = FakeHandler()
    await gateway.handler_manager.register(handler, "alice")
    frame = {"type": "subscribe", "payload": {"id": "s", "topics": ["news.#"]}}
    gateway.handler_manager.on_handler_message(handler, json.dumps(frame))
    await eventually(lambda: handler.frames)
    handler.take()
    yield handler
    gateway.handler_manager.unregister(handler)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    async def run(*arguments: str) -> tuple[int, str, str]:
        code = await anyio.to_thread.run_sync(main, ["admin", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


async def test_every_command_says_what_it_did(gateway: Gateway, alice: FakeHandler, run: Run) -> None:
    name, session = gateway.settings.instance_id, alice.session_id
    for arguments, expected in (
        ("status", f"{name}  ready  connections: 1 websocket"),
        ("connections --user alice", f"alice  {session}  websocket"),
        ("connections", "  topics: news.#\n1 connection\n"),
        ("connections --user nobody", "0 connections"),
        ("publish news.x [1]", "published"),
        ("publish news.x 2 --target alice", "published"),
        ("circuits", "all services answer"),
        ("reset", "0 reset"),
        ("reset --service orders", "0 reset"),
        ("reload", f"{name}  no policy file"),
        ("log-level", f"{name}  "),
        (f"disconnect --session {session} --code 4100 --reason x", "1 connection closed"),
        ("disconnect --user bob --user carol", "0 connections closed"),
        ("revoke --user alice", "revoked"),
        ("unrevoke --user alice", "the revocation is taken back"),
    ):
        code, out, error = await run(*arguments.split())
        assert (code, error) == (0, ""), arguments
        assert expected in out, arguments
    await eventually(lambda: [each["payload"]["event"] for each in alice.frames] == [[1], 2])
    assert alice.closes[0] == (4100, "x")


async def test_a_bundle_is_saved_for_its_user_alone(gateway: Gateway, run: Run, tmp_path: Path) -> None:
    for arguments in (["debug-bundle"], ["debug-bundle", "--out", "here.tar.gz"]):
        code, out, _ = await run(*arguments)
        file = tmp_path / out.partition(":")[0]
        assert (code, stat.S_IMODE(file.stat().st_mode)) == (0, 0o600)
        with tarfile.open(file) as archive:
            assert archive.getnames()


async def test_the_answer_is_printed_as_json(gateway: Gateway, alice: FakeHandler, run: Run) -> None:
    code, out, _ = await run("connections", "--json")
    assert (code, json.loads(out)["connections"][0]["user_id"]) == (0, "alice")


async def test_a_failure_has_an_exit_code_and_one_line(
    gateway: Gateway, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "wrong").write_text("wrong")
    for arguments, code, expected in (
        ("revoke", 1, "exactly one"),
        ("reset --service a --user b", 1, "service or user_id"),
        ("status --token-file wrong", 5, "no valid admin token"),
        (f"status --listen unix:{tmp_path}/none", 3, "no admin API at unix:"),
        ("status --listen nowhere", 2, "expected unix:/path, or host:port"),
        ("publish news.x {", 2, "the event is no JSON"),
        ("connections --limit 0", 2, "--limit"),
    ):
        found, out, error = await run(*arguments.split())
        assert (found, out) == (code, ""), arguments
        assert expected.lower() in error.lower(), arguments
    monkeypatch.delenv(f"{ENV_PREFIX}ADMIN_LISTEN")
    assert (await run("status"))[0] == 2
    with contextlib.suppress(FileNotFoundError):
        (tmp_path / "wrong").unlink()

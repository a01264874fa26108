"""The admin API of workers on RabbitMQ, and its page in Chromium."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import re
import secrets
import signal
import socket
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from nuropb_gateway_asgi.authentication import issue_token
from nuropb_gateway_asgi.journal import EVENTS
from tests.kit.clients import connect, refusal
from tests.kit.gateways import eventually, run_gateway
from tests.kit.pages import run_pages
from tests.kit.processes import Process, run_module

SECRET = secrets.token_urlsafe(48)
#: Seconds for two workers to start on a busy machine, and for an answer of theirs.
PATIENCE = 180.0
TOKEN = "an-admin-token-of-32-characters-or-more"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class Workers:
    """Two workers with an admin API, its client, and the files that they use."""

    def __init__(self, process: Process, url: str, admin: httpx.AsyncClient, folder: Path) -> None:
        self.process = process
        self.url = url
        self.admin = admin
        self.folder = folder

    async def get(self, path: str, **query: str) -> Any:
        response = await self.admin.get(f"/v1/{path}", params=query)
        assert response.status_code == 200, response.text
        return response.json()

    async def post(self, path: str, **body: Any) -> Any:
        response = await self.admin.post(f"/v1/{path}", json=body)
        assert response.status_code == 200, response.text
        return response.json()

    def audit(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (self.folder / "audit.jsonl").read_text().splitlines()]
        return [each["Attributes"] for each in lines if each["EventName"] == f"nuropb.audit.{event}"]


@pytest.fixture(scope="module")
async def workers(amqp_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Workers]:
    folder, port = tmp_path_factory.mktemp("admin"), free_port()
    (folder / "policy.toml").write_text('[[rule]]\nallow = "subscribe"\ntopics = ["news.#"]\n')
    settings = {
        "MESH_URL": amqp_url,
        "SERVICE_NAME": f"gateway-{secrets.token_hex(4)}",
        "JWT_KEY": SECRET,
        "POLICY": str(folder / "policy.toml"),
        "ADMIN_LISTEN": f"127.0.0.1:{port}",
        "ADMIN_TOKEN": TOKEN,
        "ACCESS_LOG": "calls",
        "AUDIT_LOG": str(folder / "audit.jsonl"),
        "LOG_FORMAT": "json",
    }
    command = ("nuropb_gateway_asgi", "serve", "--port", "0", "--workers", "2")
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with run_module(*command, settings=settings) as process:
        url = (await process.line(r"The gateway is at ([^\s\"]+)"))[1]
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", headers=headers, trust_env=False, timeout=PATIENCE
        ) as admin:
            running = Workers(process, url, admin, folder)
            async with asyncio.timeout(PATIENCE):
                while True:
                    with contextlib.suppress(httpx.TransportError):
                        found = (await running.get("status"))["processes"]
                        if len(found) == 2 and all(each["ready"] for each in found):
                            break
                    await asyncio.sleep(0.1)
            yield running
        process.signal(signal.SIGTERM)
        assert await process.wait() == 0
        assert "Traceback" not in process.output
        assert TOKEN not in process.output


@contextlib.asynccontextmanager
async def clients_of_both(workers: Workers, user: str) -> AsyncIterator[dict[str, Any]]:
    """Connect until each worker has a connection of the user; yield one client of each, by instance id."""
    found: dict[str, Any] = {}
    async with contextlib.AsyncExitStack() as stack:
        while len(found) < 2:
            client = await stack.enter_async_context(connect(workers.url, issue_token(SECRET, user)))
            found.setdefault(client.hello["instance_id"], client)
        yield found


async def test_one_worker_answers_for_all(workers: Workers) -> None:
    async with clients_of_both(workers, "alice") as clients:
        found = await workers.get("connections", user_id="alice")
        assert {each["instance_id"] for each in found["connections"]} == set(clients)
        assert (found["missing"], found["total"]) == ([], len(found["connections"]))
        assert (await workers.post("disconnect", user_ids=["alice"]))["count"] == found["total"]
        for client in clients.values():
            assert (await client.closed()).code == 4503
    assert workers.audit("closed")[-1]["nuropb.count"] == found["total"]


async def test_a_revocation_reaches_both_workers_and_is_taken_back(workers: Workers) -> None:
    token = issue_token(SECRET, "bob")
    async with clients_of_both(workers, "bob") as clients:
        await workers.post("revoke", user_id="bob")
        for client in clients.values():
            assert (await client.closed()).code == 4511
    assert (await refusal(workers.url, token)).status == 401
    await workers.post("unrevoke", user_id="bob")
    async with connect(workers.url, token):
        pass
    assert [each["user.id"] for each in workers.audit("revoked")] == ["bob"]
    assert workers.audit("refused")[-1]["nuropb.reason"] == "invalid_token"


async def test_an_event_reaches_the_clients_of_both_workers(workers: Workers) -> None:
    async with clients_of_both(workers, "carol") as clients:
        for client in clients.values():
            await client.ask("subscribe", topics=["news.#"])
        await workers.post("publish", topic="news.today", event={"n": 1})
        for client in clients.values():
            assert (await client.event("news.today"))["event"] == {"n": 1}


async def test_the_policy_of_both_workers_is_read_again(workers: Workers) -> None:
    file = workers.folder / "policy.toml"
    good = file.read_text()
    file.write_text(f"{good}\n{good}")
    answer = await workers.post("reload")
    assert [each["policy"]["rules"] for each in answer["processes"]] == [2, 2]
    assert answer["missing"] == []
    file.write_text(good)
    await workers.post("reload")


async def test_the_level_of_both_workers_is_set(workers: Workers) -> None:
    assert set((await workers.post("log-level", level="debug"))["levels"].values()) == {"debug"}
    assert set((await workers.post("log-level", level="info"))["levels"].values()) == {"info"}


async def test_a_bundle_has_both_workers_and_no_secret(workers: Workers, amqp_url: str) -> None:
    response = await workers.admin.get("/v1/debug-bundle")
    with tarfile.open(fileobj=io.BytesIO(response.content)) as archive:
        texts = {each.name: archive.extractfile(each).read() for each in archive.getmembers()}  # type: ignore[union-attr]
    assert len([name for name in texts if "/processes/" in name]) == 2
    everything = b"".join(texts.values())
    password = re.search(r"://[^:]*:([^@]*)@", amqp_url)
    for secret in (SECRET, TOKEN, f":{password[1]}@" if password else SECRET):
        assert secret.encode() not in everything


async def test_every_line_is_json_with_names_of_the_table(workers: Workers) -> None:
    async with connect(workers.url, issue_token(SECRET, "dave")) as client:
        await client.call("nothing.nobody")
    process = workers.process

    def ended() -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in process.stderr if line.startswith("{")]
        return [each["Attributes"] for each in lines if each.get("EventName") == "nuropb.connection.ended"]

    await eventually(lambda: [each for each in ended() if each["user.id"] == "dave"])
    (line,) = [each for each in ended() if each["user.id"] == "dave"]
    assert set(line) <= set(EVENTS["nuropb.connection.ended"])
    assert (line["nuropb.frames_received"], line["nuropb.frames_sent"]) >= (1, 1)
    assert line["nuropb.bytes_sent"] > 100
    assert line["nuropb.ended_by"] == "client"
    assert [each["user.id"] for each in workers.audit("disconnected")].count("dave") == 1


async def test_a_hangup_opens_the_audit_log_of_both_workers_again(workers: Workers) -> None:
    file = workers.folder / "audit.jsonl"
    file.rename(workers.folder / "audit.jsonl.1")
    workers.process.signal(signal.SIGHUP)
    await eventually(file.exists)
    async with asyncio.timeout(PATIENCE):
        while True:  # the other worker may be later
            async with clients_of_both(workers, "erin") as clients:
                sessions = {each["session.id"] for each in workers.audit("connected")}
            if {each.hello["session_id"] for each in clients.values()} <= sessions:
                break
    assert os.stat(file).st_mode & 0o077 == 0


async def test_another_worker_takes_the_address_when_its_worker_dies(workers: Workers) -> None:
    lines = [json.loads(line) for line in workers.process.stderr if "the admin API is at" in line]
    os.kill(lines[0]["Resource"]["process.pid"], signal.SIGKILL)

    async def answers() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return len((await workers.get("status"))["processes"]) >= 1
        return False

    async with asyncio.timeout(PATIENCE):
        while not await answers():
            await asyncio.sleep(0.1)


async def test_the_page_shows_connections_and_disconnects() -> None:
    port = free_port()
    settings: dict[str, Any] = {"admin_listen": f"127.0.0.1:{port}", "admin_token": TOKEN, "expose_topics": ["#"]}
    async with run_gateway(**settings) as gateway, run_pages() as pages:
        async with connect(gateway.url, "alice") as client:
            await client.ask("subscribe", topics=["news.#"])
            async with pages.open(f"http://127.0.0.1:{port}/") as page:
                await page.fill("Admin token", "wrong")
                await page.click("Sign in")
                await page.sees("no valid admin token")
                await page.fill("Admin token", TOKEN)
                await page.click("Sign in")
                await page.sees("alice", within="[aria-label=Connections]")
                await page.sees("news.#")
                await page.sees("All services answer.")
                await page.click("Reset all")
                await page.run("await page.getByRole('button', { name: /^Disconnect alice/ }).click()")
                assert (await client.closed()).code == 4503
                await page.sees("Nobody is connected.")
                requests = {url for _, url, _ in await page.seen("requests")}
                assert all(url.startswith(f"http://127.0.0.1:{port}/") for url in requests)
                assert TOKEN not in json.dumps(await page.evaluate("({ ...localStorage, ...sessionStorage })"))
                problems = [each for each in await page.seen("problems") if "401" not in each]
                assert problems == []
        await gateway.is_empty()

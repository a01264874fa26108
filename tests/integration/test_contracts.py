"""Contracts as served, checked by reference validators; generated clients, checked by mypy and tsc."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import httpx
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from nuropb_gateway_asgi import Identity
from nuropb_gateway_asgi.authorization import ExposePolicy
from nuropb_gateway_asgi.cli import main
from nuropb_gateway_asgi.contracts.clients import generate_client
from nuropb_gateway_asgi.mesh.embedded import EmbeddedMesh
from tests.kit.contracts import HOSTILE, NASTY, ORDERS, asyncapi, edited
from tests.kit.gateways import RunningGateway, make_gateway, run_gateway
from tests.kit.javascript import node
from tests.kit.processes import ROOT
from tests.servers.javascript import CONSOLE
from tests.servers.processes import unavailable

DOCUMENTS = ("/asyncapi.json", "/openapi.json")


class Silent:
    """A service without descriptions of methods."""

    _service_name = "silent"


class Orders:
    """The orders of all customers."""

    _service_name = "orders"

    def get(self, number: int) -> int:
        """One order."""
        return number

    def refund(self, number: int, reason: str = "") -> int:
        """Give the money back."""
        return number


class ClerksRefund(ExposePolicy):
    """A policy: all users may get, only the clerk may refund."""

    def may_call(self, identity: Identity, service: str, method: str) -> bool:
        return super().may_call(identity, service, method) and (method != "refund" or identity.user_id == "clerk")


@pytest.fixture(scope="module")
async def gateway() -> AsyncIterator[RunningGateway]:
    """A gateway that is shared by callers with different tokens."""
    mesh = EmbeddedMesh({"orders": Orders()}, service_name="nuropb-gateway")
    policy = ClerksRefund(["orders.*", "away.*"], ["orders.#", "users.{user_id}"])
    made = make_gateway(mesh=mesh, policy=policy, allowed_origins=["https://app.example"])
    async with run_gateway(made) as running:
        yield running


@contextlib.asynccontextmanager
async def http(gateway: RunningGateway, token: str = "alice", **headers: str) -> AsyncIterator[httpx.AsyncClient]:
    given = {"Authorization": f"Bearer {token}", **headers} if token else headers
    async with httpx.AsyncClient(trust_env=False, base_url=gateway.site.http(), headers=given) as client:
        yield client


async def run(*command: str, stdin: str = "", cwd: Path | None = None) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=STDOUT, cwd=cwd)
    output, _ = await process.communicate(stdin.encode())
    return process.returncode, output.decode()


def installed(name: str) -> Path:
    """Return the directory of an npm package, or skip the test."""
    package = CONSOLE / "node_modules" / name
    if not package.is_dir():
        unavailable(f"{name} is not installed: make clients/console/.installed")
    return package


# --- permissions --------------------------------------------------------------------------------------------------


async def test_each_caller_gets_what_that_caller_may_do(gateway: RunningGateway) -> None:
    for path in DOCUMENTS:
        for _ in range(2):  # the second time from the cache
            for token, refunds in (("alice", False), ("clerk", True), ("bob:and:something", False)):
                async with http(gateway, token) as client:
                    response = await client.get(path)
                assert response.status_code == 200
                assert ("refund" in response.text) is refunds
                if path == "/asyncapi.json":
                    assert f"users.{token.partition(':')[0]}" in response.text
                assert response.json()["x-nuropb"]["unavailable"] == ["away"]
                assert response.headers["content-type"] == "application/json"


async def test_an_authenticator_that_gives_all_the_same_token_does_not_mix_them_up() -> None:
    async def authenticate(token: str) -> Identity:
        return Identity(user_id=token, username=token, token="the gateway's own")

    made = make_gateway(authenticator=authenticate, expose=["demo.*"], expose_topics=["users.{user_id}"])
    async with run_gateway(made) as gateway:
        for user in ("alice", "bob"):
            async with http(gateway, user) as client:
                assert f"users.{user}" in (await client.get("/asyncapi.json")).text


async def test_nobody_between_keeps_it_and_what_one_has_is_not_sent_again(gateway: RunningGateway) -> None:
    for path in DOCUMENTS:
        async with http(gateway) as client:
            first = await client.get(path)
            assert first.headers["cache-control"] == "private, no-cache"
            assert "Authorization" in first.headers["vary"]
            again = await client.get(path, headers={"If-None-Match": first.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
            head = await client.head(path)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["etag"] == first.headers["etag"]
        async with http(gateway, "clerk", **{"If-None-Match": first.headers["etag"]}) as client:
            assert (await client.get(path)).status_code == 200


@pytest.mark.parametrize("token", ["", "bad", "alice:for:-1", "x" * 9000])
async def test_without_a_valid_token_there_is_nothing(gateway: RunningGateway, token: str) -> None:
    for path in DOCUMENTS:
        async with http(gateway, token, **{"If-None-Match": "*"}) as client:
            response = await client.get(path)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.headers["cache-control"] == "no-store"
            assert response.json()["code"] == "unauthenticated"
            assert (await client.get(f"{path}?access_token=alice")).status_code == 401
            assert (await client.get(path, headers={"Cookie": "Authorization=alice"})).status_code == 401
            assert (await client.post(path)).status_code == 405


async def test_a_token_ends_for_the_contract_as_well(gateway: RunningGateway) -> None:
    async with http(gateway, "carol") as client:
        assert (await client.get("/asyncapi.json")).status_code == 200
        await gateway.gateway.service_mesh_manager.revoke(user_id="carol")
        assert (await client.get("/asyncapi.json")).status_code == 401


async def test_pages_that_may_connect_may_read_it_and_no_others(gateway: RunningGateway) -> None:
    asked = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
    for origin, allowed in (("https://app.example", True), ("https://evil.example", False)):
        async with http(gateway, "", Origin=origin) as client:
            preflight = await client.options("/asyncapi.json", headers=asked)
            assert preflight.is_success is allowed
            assert ("access-control-allow-origin" in preflight.headers) is allowed
            response = await client.get("/asyncapi.json", headers={"Authorization": "Bearer alice"})
            assert response.headers.get("access-control-allow-origin") == (origin if allowed else None)
            assert "access-control-allow-credentials" not in response.headers
            assert "Authorization" in response.headers["vary"]
            refused = await client.get("/asyncapi.json")
            assert ("access-control-allow-origin" in refused.headers) is allowed
            assert (await client.options("/asyncapi.json")).status_code == 204


async def test_who_guesses_tokens_is_turned_away() -> None:
    async with run_gateway(handshake_rate_per_address="1/min burst 15") as gateway, http(gateway, "bad") as client:
        statuses = [(await client.get("/openapi.json")).status_code for _ in range(3)]
        assert statuses == [401, 401, 503]


async def test_a_gateway_that_does_not_run_says_so() -> None:
    transport = httpx.ASGITransport(make_gateway().app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        response = await client.get("/asyncapi.json", headers={"Authorization": "Bearer alice"})
        assert (response.status_code, response.json()["code"]) == (503, "mesh_unavailable")
        assert "retry-after" in response.headers


# --- validity -----------------------------------------------------------------------------------------------------


async def test_what_is_served_is_valid_and_so_is_what_hostile_services_make_of_it(gateway: RunningGateway) -> None:
    installed("@asyncapi/parser")
    async with http(gateway, "clerk") as client:
        served = (await client.get("/asyncapi.json")).text
        OpenAPIV31SpecValidator((await client.get("/openapi.json")).json()).validate()
    documents = [served, json.dumps(asyncapi(*HOSTILE))]  # the parser is slow
    broken = json.loads(served)
    broken["operations"]["orders.get"]["channel"]["$ref"] = "#/channels/nowhere"
    script = str(ROOT / "tests" / "kit" / "parse_asyncapi.mjs")
    status, output = await run(*node(), script, str(CONSOLE), stdin=json.dumps([*documents, json.dumps(broken)]))
    assert status == 0, output
    *found, of_broken = json.loads(output)
    assert found == [[]] * len(documents)
    assert of_broken  # the parser detects errors


PYTHON_USER = """
from nuropb_gateway_asgi.client import connect
from made import Gateway

async def main() -> None:
    async with connect("ws://gateway.example/ws", token="t") as client:
        gateway = Gateway(client)
        await gateway.orders.get(number=1)
        await gateway.orders.search({"timeout": 1.0}, text="x", limit=3, exact=True)
        await gateway.orders.note(anything=1)
        await gateway.command("orders", "ping")
        async with gateway.subscribe("news") as events:
            async for event in events:
                print(event.topic)
"""
#: Each line is an incorrect use of the generated client.
PYTHON_MISTAKES = (
    "await gateway.orders.get()",
    'await gateway.orders.get(number="1")',
    "await gateway.orders.get(number=1, more=2)",
    'await gateway.orders.get({"nonsense": 1}, number=1)',
    "await gateway.orders.nothing()",
)
TYPESCRIPT_USER = """
import { connect } from "nuropb-gateway-client";
import { Gateway } from "./made.js";

const gateway = new Gateway(connect("ws://gateway.example/ws", { token: "t" }));
export async function main(): Promise<void> {
  const order: { total: number } = await gateway.orders.get({ number: 1 }, { timeout: 1000 });
  await gateway.orders.search({ text: "x", exact: order.total > 3 });
  await gateway.orders.note({ anything: 1 });
  await gateway.orders.ping();
  await gateway.command("orders", "get", { number: 1 });
  for await (const { topic } of gateway.subscribe(["news", "orders.created", "users.alice.mail"])) console.log(topic);
}
"""
TYPESCRIPT_MISTAKES = (
    "gateway.orders.get()",
    'gateway.orders.get({ number: "1" })',
    "gateway.orders.get({ number: 1, more: 2 })",
    "gateway.orders.nothing()",
    'gateway.command("orders", "nothing", {})',
    'gateway.subscribe("users.bob.mail")',
)


async def test_the_python_client_passes_mypy_and_a_wrong_call_does_not(tmp_path: Path) -> None:
    (tmp_path / "made.py").write_text(generate_client(asyncapi(ORDERS), "py"))
    (tmp_path / "hostile.py").write_text(generate_client(asyncapi(ORDERS, *HOSTILE), "py"))
    (tmp_path / "nasty.py").write_text(generate_client(edited(NASTY, NASTY, service=NASTY[0], topics=NASTY), "py"))
    (tmp_path / "good.py").write_text(PYTHON_USER)
    lines = "\n".join(f"    {each}" for each in PYTHON_MISTAKES)
    (tmp_path / "wrong.py").write_text(
        f"from made import Gateway\nasync def main(gateway: Gateway) -> None:\n{lines}\n"
    )
    mypy = (sys.executable, "-m", "mypy", "--no-error-summary", "--hide-error-context", "--no-pretty")
    # As strict as this project, and with its cache, which has the client already.
    cache = ("--cache-dir", str(ROOT / ".mypy_cache"))
    files = ("made.py", "hostile.py", "nasty.py", "good.py", "wrong.py")
    status, output = await run(*mypy, *cache, "--config-file", str(ROOT / "pyproject.toml"), *files, cwd=tmp_path)
    assert status == 1
    complaints = [line.partition(": ")[0] for line in output.splitlines() if ": error: " in line]
    assert list(dict.fromkeys(complaints)) == [f"wrong.py:{3 + n}" for n in range(len(PYTHON_MISTAKES))], output


async def test_the_typescript_client_passes_tsc_and_a_wrong_call_does_not(tmp_path: Path) -> None:
    tsc = installed("typescript") / "bin" / "tsc"
    (tmp_path / "made.ts").write_text(generate_client(asyncapi(ORDERS), "ts"))
    (tmp_path / "hostile.ts").write_text(generate_client(asyncapi(ORDERS, *HOSTILE), "ts"))
    (tmp_path / "nasty.ts").write_text(generate_client(edited(NASTY, NASTY, service=NASTY[0], topics=NASTY), "ts"))
    (tmp_path / "good.ts").write_text(TYPESCRIPT_USER)
    lines = "\n".join(f"void {each};" for each in TYPESCRIPT_MISTAKES)
    (tmp_path / "wrong.ts").write_text(
        f'import {{ Gateway }} from "./made.js";\ndeclare const gateway: Gateway;\n{lines}\n'
    )
    package = tmp_path / "node_modules" / "nuropb-gateway-client"
    package.mkdir(parents=True)
    shutil.copy(ROOT / "clients" / "js" / "package.json", package)
    shutil.copytree(ROOT / "clients" / "js" / "dist", package / "dist")
    options: dict[str, Any] = {
        "target": "es2022",
        "lib": ["es2022", "dom", "dom.iterable", "esnext.disposable"],
        "module": "esnext",
        "moduleResolution": "bundler",
        "strict": True,
        "noUnusedLocals": True,
        "noUncheckedIndexedAccess": True,
        "exactOptionalPropertyTypes": True,
        "verbatimModuleSyntax": True,
        "skipLibCheck": True,
        "noEmit": True,
        "types": [],
    }
    (tmp_path / "tsconfig.json").write_text(json.dumps({"compilerOptions": options, "include": ["*.ts"]}))
    status, output = await run(*node(), str(tsc), "--pretty", "false", cwd=tmp_path)
    assert status != 0
    complaints = [line.partition(",")[0] for line in output.splitlines() if ": error " in line]
    assert list(dict.fromkeys(complaints)) == [f"wrong.ts({3 + n}" for n in range(len(TYPESCRIPT_MISTAKES))], output


async def test_a_client_is_made_of_a_gateway_that_runs(
    gateway: RunningGateway, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gen_client(*arguments: str) -> tuple[int, str, str]:
        status = await anyio.to_thread.run_sync(main, ["gen-client", *arguments])
        return status, *capsys.readouterr()

    url, out = gateway.site.http(), tmp_path / "made.py"
    (tmp_path / "token").write_text("clerk\n")
    token_file = ("--token-file", str(tmp_path / "token"))
    assert await gen_client(url, "--lang", "py", "-o", str(out), *token_file) == (0, "", "")
    assert "async def refund(" in out.read_text()
    monkeypatch.setenv("NUROPB_GATEWAY_TOKEN", "alice")
    status, output, errors = await gen_client(f"{url}/asyncapi.json", "--lang", "ts")
    assert (status, errors) == (0, "")
    assert "get<Result" in output
    assert "refund" not in output
    monkeypatch.setenv("NUROPB_GATEWAY_TOKEN", "bad")
    status, output, errors = await gen_client(url, "--lang", "ts")
    assert (status, output) == (1, "")
    assert "HTTP status 401: A valid bearer token is required" in errors
    status, output, errors = await gen_client(f"{url}/livez.json", "--lang", "ts")
    assert (status, output) == (1, "")
    assert "HTTP status 404" in errors

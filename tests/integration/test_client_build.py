"""The shipped file of the JavaScript client: equal to a build of its sources, and served by the gateway."""

from __future__ import annotations

import ast
import asyncio
import itertools
import json
import re
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path

import httpx
import pytest

import nuropb_gateway_asgi
from nuropb_gateway_asgi import __version__
from nuropb_gateway_asgi.protocol import ErrorCode
from nuropb_gateway_asgi.topics import matches
from tests.kit.gateways import run_gateway
from tests.kit.javascript import node
from tests.kit.processes import ROOT
from tests.servers.javascript import CLIENT

STATIC = Path(nuropb_gateway_asgi.__file__).parent / "static"
SHIPPED = STATIC / "client.js"
SHIPPED_WORKER = STATIC / "client-worker.js"


async def run(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(*command, cwd=CLIENT, stdin=PIPE, stdout=PIPE, stderr=STDOUT)
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


async def test_what_is_shipped_is_what_the_sources_make(tmp_path: Path) -> None:
    vite = str(CLIENT / "node_modules" / "vite" / "bin" / "vite.js")
    await run(*node(), vite, "build", "--outDir", str(tmp_path), "--emptyOutDir", "--logLevel", "error")
    assert (tmp_path / "client.js").read_bytes() == SHIPPED.read_bytes(), "run make client to ship a new build"
    assert (CLIENT / "dist" / "client.js").read_bytes() == SHIPPED.read_bytes()
    assert (CLIENT / "dist" / "nuropb-gateway-worker.js").read_bytes() == SHIPPED_WORKER.read_bytes()


def test_the_client_has_the_gateways_version() -> None:
    package = json.loads((CLIENT / "package.json").read_text())
    lock = json.loads((CLIENT / "package-lock.json").read_text())
    assert {package["version"], lock["version"], lock["packages"][""]["version"]} == {__version__}
    assert f'"{__version__}"' in (CLIENT / "src" / "version.ts").read_text()
    assert "dependencies" not in package


@pytest.mark.parametrize("directory", ["clients/js", "examples/react"])
def test_the_lock_file_says_nothing_of_where_packages_come_from(directory: str) -> None:
    lock = json.loads((ROOT / directory / "package-lock.json").read_text())
    assert not [name for name, package in lock["packages"].items() if "://" in package.get("resolved", "")]


def test_both_clients_have_a_class_for_every_error_code() -> None:
    source = (CLIENT / "src" / "errors.ts").read_text()
    table = dict(re.findall(r"^  (\w+): (\w+),$", source, re.MULTILINE))
    assert set(table) == {code.value for code in ErrorCode}
    python = ast.parse((ROOT / "nuropb_gateway_asgi" / "client" / "errors.py").read_text())
    classes = {each.name for each in python.body if isinstance(each, ast.ClassDef)}
    assert set(table.values()) <= classes
    exported = (CLIENT / "src" / "index.ts").read_text()
    assert not {name for name in classes if not name.startswith("_") and f"{name}," not in exported}


async def test_the_gateway_serves_the_client_to_pages_of_any_origin() -> None:
    async with run_gateway() as gateway, httpx.AsyncClient(trust_env=False) as http:
        response = await http.get(gateway.site.http("/client.js"), headers={"Origin": "https://elsewhere.example"})
        assert (response.status_code, response.content) == (200, SHIPPED.read_bytes())
        assert response.headers["content-type"] == "text/javascript; charset=utf-8"
        assert response.headers["access-control-allow-origin"] == "*"
        assert response.headers["cache-control"] == "no-cache"
        worker = await http.get(gateway.site.http("/client-worker.js"))
        assert (worker.status_code, worker.content) == (200, SHIPPED_WORKER.read_bytes())
        assert worker.headers["content-type"] == "text/javascript; charset=utf-8"
        etag = response.headers["etag"]
        for known in (etag, f"W/{etag}", f'"other", {etag}'):
            response = await http.get(gateway.site.http("/client.js"), headers={"If-None-Match": known})
            assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", etag)
        response = await http.get(gateway.site.http("/client.js"), headers={"If-None-Match": '"other"'})
        assert response.status_code == 200
        response = await http.head(gateway.site.http("/client.js"))
        assert (response.status_code, response.content) == (200, b"")


# --- the same rules -----------------------------------------------------------------------------------------------

PATTERNS = [".".join(words) for size in range(5) for words in itertools.product(["a", "*", "#"], repeat=size)]
TOPICS = [".".join(words) for size in range(5) for words in itertools.product(["a", "b"], repeat=size)]
PAIRS = [
    *itertools.product(PATTERNS, TOPICS),
    ("a..b", "a..b"),
    ("*", ""),
    ("#", ""),
    ("*.*", "."),
    ("a.*", "a."),
    ("a*", "ab"),
]


async def test_both_clients_match_topics_as_the_gateway_does() -> None:
    program = (
        'import { matches } from "nuropb-gateway-client";'
        f"console.log(JSON.stringify({json.dumps(PAIRS)}.map(([pattern, topic]) => matches(pattern, topic))));"
    )
    answers = json.loads(await run(*node(), "--input-type=module", "--eval", program))
    assert answers == [matches(pattern, topic) for pattern, topic in PAIRS]


async def test_without_a_websocket_the_client_says_what_to_do() -> None:
    program = 'delete globalThis.WebSocket; (await import("nuropb-gateway-client")).connect("ws://127.0.0.1:1/ws")'
    explained = f"try {{ {program} }} catch (error) {{ console.log(error.name, error.message) }}"
    said = await run(*node(), "--input-type=module", "--eval", explained)
    assert said.startswith("TypeError there is no global WebSocket: use Node 22")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ('"ftp://example.com/ws"', "TypeError the URL must begin with ws://"),
        ('"/ws"', "TypeError Invalid URL"),
        ('"ws://x/ws", { token: "a", getToken: () => "b" }', "TypeError getToken and token cannot be combined"),
        ('"ws://x/ws", { shared: true }', "TypeError shared needs getToken"),
    ],
)
async def test_arguments_that_can_never_work_are_refused(arguments: str, problem: str) -> None:
    program = (
        'const { connect } = await import("nuropb-gateway-client");'
        f"try {{ connect({arguments}) }} catch (error) {{ console.log(error.name, error.message) }}"
    )
    assert (await run(*node(), "--input-type=module", "--eval", program)).startswith(problem)


async def test_a_connection_that_the_page_may_not_make_is_not_tried_again() -> None:
    program = (
        'const { connect } = await import("nuropb-gateway-client");'
        'class Forbidden { constructor() { throw new DOMException("No.", "SecurityError") } }'
        'const gateway = connect("ws://127.0.0.1:1/ws", { WebSocket: Forbidden });'
        'await gateway.request("demo", "add").catch((error) => console.log(error.code, error.cause.name));'
        "console.log(gateway.state.name)"
    )
    assert await run(*node(), "--input-type=module", "--eval", program) == "connection_closed SecurityError\nclosed\n"


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        ('request("demo", "echo", [1])', "TypeError params must be an object"),
        ('request("demo", "echo", { n: 1n })', "TypeError Do not know how to serialize a BigInt"),
        ('request("demo", "echo", {}, { timeout: 0 })', "RangeError timeout must be a number"),
        ('request("demo", "echo", {}, { timeout: Infinity })', "RangeError timeout must be a number"),
        ("command('demo', 'echo', null)", "TypeError params must be an object"),
    ],
)
async def test_a_call_that_can_never_be_sent_fails_at_once(call: str, problem: str) -> None:
    program = (
        'const { connect } = await import("nuropb-gateway-client"); const gateway = connect("ws://127.0.0.1:1/ws");'
        f"await gateway.{call}.catch((error) => console.log(error.name, error.message)); gateway.close()"
    )
    assert (await run(*node(), "--input-type=module", "--eval", program)).startswith(problem)

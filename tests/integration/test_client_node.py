"""The JavaScript client in Node, with a test in the place of its gateway."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path
from typing import Any

import pytest

from tests.kit.javascript import node
from tests.servers.javascript import CLIENT

BEGIN = """
import { connect, ConnectionLost } from "nuropb-gateway-client";
import { FakeSocket, settled } from "./tests/fakes.js";
const open = async (options = {}) => {
  const client = connect("ws://gateway/ws", { WebSocket: FakeSocket, backoff: { base: 0, cap: 0 }, ...options });
  await settled();
  FakeSocket.last.greet();
  return client;
};
const told = (value) => console.log(JSON.stringify(value));
const problem = (error) => `${error.name}: ${error.message}`;
"""

#: An application that uses the types of every entry but React's, whose types need those of React.
USE_OF_TYPES = """
import { connect, type ConnectOptions, type Position } from "nuropb-gateway-client";
import { connect as connectTabs } from "nuropb-gateway-client/shared";
import { eventSource } from "nuropb-gateway-client/event-source";
import { json } from "nuropb-gateway-client/json";
import { Failure, mockGateway, type MockCall } from "nuropb-gateway-client/testing";
import { upload } from "nuropb-gateway-client/upload";

declare const token: string | undefined;
declare const last: Position | undefined;
const options: ConnectOptions = { token, backoff: { base: 1 }, ...json({ bigint: true, bytes: true }) };
const gateway = connect("ws://gateway/ws", options);
export const sum: Promise<number> = gateway.request<number>("demo", "add", { a: 1 }, { timeout: undefined });
gateway.subscribe<{ n: number }>("a", ({ event }) => event.n.toFixed(), { buffer: undefined, since: last });
gateway.on("state", (state) => state.name === "closed" && state.error?.closeCode.toFixed());
connectTabs("/ws", { getToken: () => "a", shared: true, workerUrl: undefined }).close();
eventSource("/events", { token }).onmessage = ({ data }) => data.toUpperCase();
const memory = mockGateway({ userOf: undefined });
memory.mock("a", { b: (params: object) => params, c: new Failure("timeout") });
export const call: MockCall = memory.called("a.b", { n: 1 });
memory.connect("bob").request("a", "b").finally(() => memory.close());
export const done = upload<string>(gateway, new Blob([]), { service: "a", method: "b", params: undefined });
"""


async def run(program: str, *, begin: str = BEGIN) -> Any:
    """Run a program and return the value that it tells."""
    process = await asyncio.create_subprocess_exec(
        *node(), "--input-type=module", "--eval", begin + program, cwd=CLIENT, stdout=PIPE, stderr=STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return json.loads(output)


async def test_a_client_without_a_token_is_told_long_before_the_gateway_gives_up() -> None:
    program = """
const client = connect("ws://gateway/ws", { WebSocket: FakeSocket });
client.on("state", ({ name, error }) => name === "closed" && told([error.closeCode, error.reason.split(":")[0]]));
await settled();
FakeSocket.last.onopen({});
"""
    assert await run(program) == [4502, "no token was given"]


async def test_a_call_that_could_not_be_sent_says_why_there_is_no_connection() -> None:
    program = """
const client = connect("ws://gateway/ws", { WebSocket: FakeSocket, token: "a", backoff: { base: 1e6, cap: 1e6 } });
const call = client.request("demo", "add", {}, { timeout: 50 }).catch((error) => told(error.message));
await settled();
FakeSocket.last.onclose({ code: 1006, reason: "" });
await call;
client.close();
"""
    assert (await run(program)).startswith("The call could not be sent in time: the connection was lost (")


# --- the package --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["index.js", "client.js", "nuropb-gateway-worker.js"])
async def test_a_module_has_less_than_14_kb_with_compression(name: str) -> None:
    assert node()
    assert len(gzip.compress((CLIENT / "dist" / name).read_bytes(), 9)) < 14_000


@pytest.mark.parametrize("entry", ["index", "react", "json", "upload", "event-source", "testing"])
@pytest.mark.parametrize("folder", ["", "cjs/"])
async def test_the_modules_run_where_there_is_no_import_meta(folder: str, entry: str) -> None:
    assert node()
    module = (CLIENT / "dist" / f"{folder}{entry}.js").read_text()
    assert "import.meta" not in module
    assert "import(" not in module


async def test_commonjs_entries_share_the_main_module_beside_them() -> None:
    assert node()
    required = {
        name
        for each in (CLIENT / "dist" / "cjs").glob("*.js")
        for name in re.findall(r'require\("(\.[^"]*)"\)', each.read_text())
    }
    assert required == {"./index.js"}


async def test_no_file_of_the_package_has_a_path_of_the_machine_that_built_it() -> None:
    assert node()
    files = [each for each in (CLIENT / "dist").rglob("*") if each.is_file()]
    assert len(files) > 20
    assert [each.name for each in files if str(CLIENT) in each.read_text() or "file://" in each.read_text()] == []


async def test_commonjs_has_the_names_of_the_module() -> None:
    program = """
import { createRequire } from "node:module";
import * as module from "nuropb-gateway-client";
import * as shared from "nuropb-gateway-client/shared";
const required = createRequire(import.meta.url)("nuropb-gateway-client");
const names = (each) => Object.keys(each).sort().filter((name) => /^\\w+$/.test(name));
console.log(JSON.stringify([module, required, shared].map(names)));
"""
    module, required, shared = await run(program, begin="")
    assert module == required == shared
    assert "connect" in module


@pytest.mark.parametrize("entry", ["json", "upload", "event-source", "testing"])
async def test_an_entry_has_the_same_names_in_both_kinds_of_modules(entry: str) -> None:
    program = f"""
import {{ createRequire }} from "node:module";
import * as module from "nuropb-gateway-client/{entry}";
const required = createRequire(import.meta.url)("nuropb-gateway-client/{entry}");
console.log(JSON.stringify([module, required].map((each) => Object.keys(each).sort())));
"""
    module, required = await run(program, begin="")
    assert module == required != []


@pytest.mark.parametrize("resolution", ["node16", "nodenext", "bundler"])
async def test_the_types_pass_in_strict_applications(resolution: str, tmp_path: Path) -> None:
    assert node()
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "nuropb-gateway-client").symlink_to(CLIENT)
    (tmp_path / "module.mts").write_text(USE_OF_TYPES)
    (tmp_path / "commonjs.cts").write_text(USE_OF_TYPES.replace("/shared", ""))
    options = ["--module", "esnext" if resolution == "bundler" else resolution, "--moduleResolution", resolution]
    strict = ["--noEmit", "--strict", "--exactOptionalPropertyTypes", "--skipLibCheck", "false", "--types", ""]
    files = [str(tmp_path / name) for name in ("module.mts", "commonjs.cts")]
    tsc = str(CLIENT / "node_modules" / "typescript" / "bin" / "tsc")
    process = await asyncio.create_subprocess_exec(
        node()[0],
        tsc,
        *options,
        *strict,
        "--target",
        "es2022",
        "--ignoreConfig",
        *files,
        cwd=tmp_path,
        stdout=PIPE,
        stderr=STDOUT,
    )
    output, _ = await process.communicate()
    assert (process.returncode, output.decode()) == (0, "")


async def test_shared_says_that_it_is_an_entry_of_its_own() -> None:
    program = """
try { connect("ws://gateway/ws", { getToken: () => "a", shared: true }); } catch (error) { told(problem(error)); }
"""
    assert await run(program) == (
        'TypeError: shared is an entry of its own: import { connect } from "nuropb-gateway-client/shared"'
    )


# --- calls that can never be sent ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "problem"),
    [
        ('{ text: "ok \\ud83d\\ude00".slice(0, 4) }', "TypeError: params.text: a text with half of a character"),
        ('{ ["\\ud83d"]: 1 }', "TypeError: params: a text with half of a character"),
        ("{ a: [1, NaN] }", "TypeError: params.a[1]: JSON has no NaN"),
        ("{ a: { b: -Infinity } }", "TypeError: params.a.b: JSON has no -Infinity"),
        ("{ n: 1n }", "TypeError: Do not know how to serialize a BigInt: params.n"),
        ("{ a: () => 1 }", "TypeError: params.a: JSON has no function"),
        ("{ a: Symbol.iterator }", "TypeError: params.a: JSON has no symbol"),
        ("{ a: new Uint8Array(2) }", "TypeError: params.a: JSON has no Uint8Array"),
        ("{ a: Buffer.from('a') }", "TypeError: params.a: JSON has no Uint8Array"),
        ("{ a: new ArrayBuffer(2) }", "TypeError: params.a: JSON has no ArrayBuffer"),
        ("{ a: new Map() }", "TypeError: params.a: JSON has no Map"),
        ("{ a: new Set() }", "TypeError: params.a: JSON has no Set"),
        ("{ a: new Blob([]) }", "TypeError: params.a: JSON has no Blob"),
        ("{ a: new FormData() }", "TypeError: params.a: JSON has no FormData"),
        ("{ a: Promise.resolve() }", "TypeError: params.a: JSON has no Promise"),
        ("{ a: /a/ }", "TypeError: params.a: JSON has no RegExp"),
        ("{ a: new Date(NaN) }", "TypeError: params.a: an invalid Date"),
        ("cyclic", "TypeError: params.a.b: an object that contains itself"),
        ("deep(40)", "RangeError: params.a.a"),
        ("new Map()", "TypeError: params: JSON has no Map"),
    ],
)
async def test_parameters_that_are_not_json_fail_at_once_and_name_the_path(params: str, problem: str) -> None:
    program = f"""
const cyclic = {{ a: {{}} }};
cyclic.a.b = cyclic;
const deep = (levels) => (levels === 1 ? {{}} : {{ a: deep(levels - 1) }});
const client = await open();
await client.request("demo", "echo", {params}).catch((error) => told([problem(error), FakeSocket.last.sent.length]));
client.close();
"""
    said, sent = await run(program)
    assert said.startswith(problem)
    assert sent == 0


async def test_parameters_that_are_json_are_sent_as_they_are() -> None:
    program = """
class Point { constructor() { this.x = 1; } }
const deep = (levels) => (levels === 1 ? {} : { a: deep(levels - 1) });
const client = await open();
client.request("demo", "echo", {
  "😀": "😀", date: new Date(0), point: new Point(), none: undefined, null: null, big: 1e20, list: [[], "a"],
  deep: deep(29), bare: Object.create(null), same: [client.hello.limits, client.hello.limits], url: new URL("ws://a/"),
}).catch(() => {});
const { deep: _, same, ...params } = FakeSocket.last.sent[0].payload.params;
told([params, same.length]);
client.close();
"""
    assert await run(program) == [
        {
            "😀": "😀",
            "date": "1970-01-01T00:00:00.000Z",
            "point": {"x": 1},
            "null": None,
            "big": 1e20,
            "list": [[], "a"],
            "bare": {},
            "url": "ws://a/",
        },
        2,
    ]


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        ("request(undefined, 'add')", "TypeError: service must be"),
        ("request('', 'add')", "TypeError: service must be"),
        ("request('a b', 'add')", "TypeError: service must be"),
        ("command('demo', undefined)", "TypeError: method must be"),
        ("command('demo', 'a-b')", "TypeError: method must be"),
        ("describe(5)", "TypeError: service must be"),
        ("request('demo', 'add', {}, { traceId: 'x'.repeat(129) })", "TypeError: traceId must be"),
        ("request('demo', 'add', {}, { traceId: 'a\\n' })", "TypeError: traceId must be"),
        ("request('demo', 'add', {}, { idempotencyKey: '' })", "TypeError: idempotencyKey must be"),
        ("subscribe('lab.foo*').ready", "TypeError: topics[0]: a word that mixes * or # with other characters"),
        ("subscribe(['a', '']).ready", "TypeError: topics[1]: empty"),
        ("subscribe('#.#.#').ready", "TypeError: topics[0]: more than 2 # words"),
        ("subscribe('x'.repeat(256)).ready", "TypeError: topics[0]: longer than 255 bytes"),
        ("subscribe([undefined]).ready", "TypeError: topics[0]: not a string"),
        ("subscribe('\\ud83d').ready", "TypeError: topics[0]: empty, or with characters"),
    ],
)
async def test_names_that_no_gateway_takes_fail_at_once(call: str, problem: str) -> None:
    program = f"""
const client = await open();
try {{ await client.{call}; }} catch (error) {{ told([problem(error), FakeSocket.last.sent.length]); }}
client.close();
"""
    said, sent = await run(program)
    assert said.startswith(problem)
    assert sent == 0


async def test_a_subscription_without_an_answer_has_a_deadline() -> None:
    program = """
const client = await open();
FakeSocket.last.receive("event", { topic: "hello", event: { limits: { request_timeout: 0.02 } } });
const subscription = client.subscribe("orders.*");
await subscription.ready.catch((error) => told([error.code, error.constructor.name]));
client.close();
"""
    begin = BEGIN.replace("backoff: {", "grace: 10, backoff: {")
    assert await run(program, begin=begin) == ["timeout", "CallTimeout"]


# --- connections --------------------------------------------------------------------------------------------------


async def test_a_button_connects_again_after_a_close_for_good_with_all_subscriptions() -> None:
    program = """
const client = await open();
const events = [], gaps = [], ended = [];
const subscription = client.subscribe("orders.*", ({ event }) => events.push(event));
const other = client.subscribe("news.*", () => {});
for (const each of [subscription, other]) each.on("gap", ({ topics }) => gaps.push(...topics));
subscription.on("ended", (error) => ended.push(error?.closeCode));
for (const { payload } of FakeSocket.last.sent) FakeSocket.last.receive("response", { id: payload.id, result: null });
await Promise.all([subscription.ready, other.ready]);
FakeSocket.last.onclose({ code: 4510, reason: "invalid token" });
const state = client.state.name;
other.unsubscribe();
client.reconnect();
await settled();
FakeSocket.last.greet();
const topics = FakeSocket.last.sent.map(({ payload }) => payload.topics);
FakeSocket.last.answer("subscribe");
await subscription.ready;
FakeSocket.last.receive("event", { topic: "orders.new", event: 1 });
told([state, topics, events, gaps, ended, client.state.name, FakeSocket.all.length]);
client.close();
"""
    assert await run(program) == ["closed", [["orders.*"]], [1], ["orders.*"], [4510], "open", 2]


async def test_a_button_replaces_an_attempt_that_hangs() -> None:
    program = """
const client = connect("ws://gateway/ws", { WebSocket: FakeSocket });
await settled();
client.reconnect();
await settled();
const [first] = FakeSocket.all;
FakeSocket.last.greet();
told([FakeSocket.all.length, first.closedWith, client.state.name]);
client.close();
"""
    assert await run(program) == [2, 4000, "open"]


async def test_a_connection_that_fails_without_a_close_event_is_lost() -> None:
    program = """
const client = connect("ws://gateway/ws", { WebSocket: FakeSocket });
await settled();
FakeSocket.last.onerror({ error: new Error("certificate has expired") });
const state = await new Promise((resolve) => client.on("state", resolve));
told([state.name, state.error.code, state.error.cause.message]);
client.close();
"""
    assert await run(program) == ["reconnecting", "connection_lost", "certificate has expired"]


async def test_the_cause_of_a_refused_connection_is_the_cause_of_the_error() -> None:
    program = """
const client = connect("ws://127.0.0.1:1/ws");
const states = new Promise((resolve) => client.on("state", (state) => state.name === "reconnecting" && resolve(state)));
const { error } = await states;
told([error.code, error.cause instanceof Error]);
client.close();
"""
    assert await run(program) == ["connection_lost", True]


async def test_a_call_without_an_answer_asks_whether_the_connection_is_alive() -> None:
    program = """
let now = 0;
const reasons = [];
const timers = [];
performance.now = () => now;
globalThis.setTimeout = (run, wait) => (timers.push({ run, at: now + wait }), timers.at(-1));
globalThis.clearTimeout = (timer) => timers.includes(timer) && timers.splice(timers.indexOf(timer), 1);
const pass = (time) => {
  for (const end = now + time; ; ) {
    const next = timers.filter(({ at }) => at <= end).sort((a, b) => a.at - b.at)[0];
    if (next === undefined) { now = end; return; }
    timers.splice(timers.indexOf(next), 1);
    now = Math.max(now, next.at);
    next.run();
  }
};
const client = connect("ws://gateway/ws", { WebSocket: FakeSocket });
client.on("state", ({ name, error }) => name === "reconnecting" && reasons.push(error.reason));
for (let i = 0; i < 20; i++) await null;
const socket = FakeSocket.last;
socket.greet();
const pings = () => socket.sent.filter(({ type }) => type === "ping").length;
client.request("demo", "add", {}, { idempotent: true }).catch(() => {});
const counts = [pings()];
for (let i = 0; i < 20; i++) await null;
pass(5000);
counts.push(pings());
pass(10000);
told([counts, reasons]);
client.close();
"""
    assert await run(program) == [[0, 1], ["the gateway does not answer"]]


async def test_a_client_that_is_connected_over_http_takes_a_websocket_when_it_can() -> None:
    program = """
const later = setTimeout;
globalThis.setTimeout = (run, wait) => later(run, wait === 60000 ? 1 : wait);
let isBlocked = true;
globalThis.WebSocket = class extends FakeSocket {
  constructor() {
    super();
    if (isBlocked) later(() => this.onclose({ code: 1006, reason: "" }), 0);
    else later(() => this.greet(), 0);
  }
};
const urls = [];
globalThis.fetch = async (url) => {
  urls.push(String(url));
  return new Response(new ReadableStream({
    start(controller) {
      const hello = 'event: hello\\nid: k:0\\ndata: {"topic":"hello","event":{"session_id":"h","limits":{}}}\\n\\n';
      controller.enqueue(new TextEncoder().encode(hello));
    },
  }));
};
const client = connect("ws://gateway/a/ws", { token: "t", backoff: { base: 0, cap: 0 } });
const transports = [];
await new Promise((resolve) =>
  client.on("state", ({ name }) => {
    if (name !== "open") return;
    transports.push(client.transport);
    isBlocked = false;
    if (transports.length === 2) resolve();
  }),
);
told([transports, urls, FakeSocket.all.length]);
client.close();
"""
    transports, urls, sockets = await run(program)
    assert transports == ["sse", "websocket"]
    assert urls == ["http://gateway/a/events?"]
    assert sockets == 4


# --- tokens -------------------------------------------------------------------------------------------------------


async def test_the_application_is_asked_for_one_token_at_a_time() -> None:
    program = """
let asking = 0, most = 0;
const reasons = [];
let release;
const connecting = new Promise((resolve) => (release = resolve));
const getToken = async (reason) => {
  reasons.push(reason);
  most = Math.max(most, ++asking);
  if (reason === "refresh") await connecting;
  asking--;
  return "token";
};
const backoff = { base: 0, cap: 0 };
const client = connect("ws://gateway/ws", { WebSocket: FakeSocket, getToken, tokenIn: "frame", backoff });
while (FakeSocket.all.length === 0) await settled();
FakeSocket.last.onopen({});
FakeSocket.last.receive("event", { topic: "hello", event: { expires_at: Date.now() / 1000 + 0.5, limits: {} } });
while (reasons.length < 2) await settled();
client.on("state", ({ name }) => name === "connecting" && setTimeout(release));
FakeSocket.last.onclose({ code: 1006, reason: "" });
while (FakeSocket.all.length < 2) await settled();
told([reasons, most]);
client.close();
"""
    assert await run(program) == [["connect", "refresh"], 1]


# --- iterations ---------------------------------------------------------------------------------------------------


async def test_the_end_of_an_iteration_ends_the_subscription_and_a_pending_next_at_once() -> None:
    program = """
const client = await open();
const first = client.subscribe("a")[Symbol.asyncIterator]();
await first.return();
const second = client.subscribe("b")[Symbol.asyncIterator]();
const pending = second.next();
await second.return();
const sent = (type) => FakeSocket.last.sent.filter((frame) => frame.type === type);
const topics = (type) => sent(type).flatMap(({ payload }) => payload.topics);
told([await first.next(), await pending, topics("subscribe"), topics("unsubscribe")]);
client.close();
"""
    assert await run(program) == [{"done": True}, {"done": True}, ["a", "b"], ["a", "b"]]


async def test_a_second_iteration_beside_the_first_is_an_error() -> None:
    program = """
const client = await open();
const subscription = client.subscribe("a");
subscription[Symbol.asyncIterator]();
try { subscription[Symbol.asyncIterator](); } catch (error) { told(problem(error)); }
client.close();
"""
    assert await run(program) == "TypeError: the subscription is iterated over already: subscribe once more"


async def test_listeners_of_a_signal_are_removed_with_the_subscription() -> None:
    program = """
const client = await open();
const { signal } = new AbortController();
let count = 0;
const { addEventListener: add, removeEventListener: remove } = EventTarget.prototype;
signal.addEventListener = (...given) => (count++, add.apply(signal, given));
signal.removeEventListener = (...given) => (count--, remove.apply(signal, given));
const subscription = client.subscribe("a", () => {}, { signal });
const call = client.request("demo", "add", {}, { signal });
const counts = [count];
subscription.unsubscribe();
FakeSocket.last.answer("request");
await call;
await settled();
told([...counts, count]);
client.close();
"""
    assert await run(program) == [2, 0]


async def test_a_call_has_the_trace_context_of_its_caller() -> None:
    told = await run(
        """
        const contexts = [{ traceparent: "00-1-2-01", baggage: "a=b", other: "x" }, undefined];
        const client = await open({ trace: () => contexts.shift() });
        for (let call = 0; call < 2; call += 1) client.request("a", "b").catch(() => {});
        await settled();
        const requests = FakeSocket.last.sent.filter((each) => each.type === "request");
        told(requests.map(({ payload }) => payload.trace ?? null));
        client.close();
        """
    )
    assert told == [{"traceparent": "00-1-2-01", "baggage": "a=b"}, None]

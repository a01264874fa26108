"""The entries of the JavaScript package beside the main module, and history, in Node."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.integration.test_client_node import BEGIN, run
from tests.kit.gateways import run_gateway

# --- JSON ---------------------------------------------------------------------------------------------------------

WITH_JSON = (
    BEGIN
    + """
import { json } from "nuropb-gateway-client/json";
const both = json({ bigint: true, bytes: true });
const seen = (value) => JSON.stringify(value, (_, each) =>
  typeof each === "bigint" ? `${each}n` : each instanceof Uint8Array ? `bytes ${[...each]}` : each);
"""
)


READ = {
    "9007199254740991": "9007199254740991",
    "9007199254740993": '"9007199254740993n"',
    "-9223372036854775808": '"-9223372036854775808n"',
    "[18446744073709551615, 1]": '["18446744073709551615n",1]',
    "1e300": "1e+300",
    "12345678901234567890.5": "12345678901234567000",
    '"9007199254740993"': '"9007199254740993"',
    r'{"a\\\"9007199254740993": ["\\", 9007199254740993]}': r'{"a\\\"9007199254740993":["\\","9007199254740993n"]}',
    '{"$bytes": "AAH/"}': '"bytes 0,1,255"',
    '{"$bytes": "A"}': '{"$bytes":"A"}',
    '{"$bytes": "AAH/", "b": 1}': '{"$bytes":"AAH/","b":1}',
}


async def test_json_is_read_with_integers_of_64_bits_and_bytes() -> None:
    said = await run(f"told({json.dumps(list(READ))}.map((text) => seen(both.parse(text))));", begin=WITH_JSON)
    assert dict(zip(READ, said, strict=True)) == READ


async def test_integers_of_64_bits_and_bytes_are_written() -> None:
    program = """
told(both.stringify({
  n: [2n ** 63n, -(2n ** 63n), 5n], bytes: [new Uint8Array([0, 1, 255]), Buffer.from("a"), new ArrayBuffer(2),
  new DataView(new ArrayBuffer(4), 1, 2), new Uint16Array([1])],
  date: new Date(0), none: undefined, text: "9007199254740993",
}));
"""
    assert json.loads(await run(program, begin=WITH_JSON)) == {
        "n": [2**63, -(2**63), 5],
        "bytes": [{"$bytes": text} for text in ("AAH/", "YQ==", "AAA=", "AAA=", "AQA=")],
        "date": "1970-01-01T00:00:00.000Z",
        "text": "9007199254740993",
    }


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("{ a: [2n ** 64n] }", "RangeError: params.a[0]: an integer that does not fit 64 bits"),
        ("{ a: { b: new Map() } }", "TypeError: params.a.b: JSON has no Map"),
        ("{ a: NaN }", "TypeError: params.a: JSON has no NaN"),
        ("{ a: new Blob([]) }", "TypeError: params.a: JSON has no Blob"),
        ("cyclic", "RangeError: params.a"),
    ],
)
async def test_what_is_no_json_is_refused_with_its_path_beside_them(value: str, problem: str) -> None:
    program = f"""
const cyclic = {{}};
cyclic.a = cyclic;
try {{ both.stringify({value}); }} catch (error) {{ told(problem(error)); }}
"""
    assert (await run(program, begin=WITH_JSON)).startswith(problem)


async def test_without_options_it_is_json_as_ever() -> None:
    program = """
const { parse, stringify } = json();
const refused = [{ a: 1n }, { a: new Uint8Array(1) }].map((each) => {
  try { stringify(each); } catch (error) { return error.name; }
});
told([parse('[9007199254740993, {"$bytes": ""}]'), refused]);
"""
    assert await run(program, begin=WITH_JSON) == [[2**53, {"$bytes": ""}], ["TypeError", "TypeError"]]


async def test_a_client_uses_its_own_parse_and_stringify() -> None:
    async with run_gateway(http="on") as gateway:
        program = f"""
const answers = [];
for (const transport of ["websocket", "sse"]) {{
  const client = connect({json.dumps(gateway.site.ws())}, {{ token: "alice", transport, ...both }});
  const answer = await client.request("demo", "echo", {{ n: 2n ** 63n - 1n, bytes: new Uint8Array([1, 2]) }});
  answers.push(seen(answer));
  client.close();
}}
told(answers);
"""
        assert await run(program, begin=WITH_JSON) == ['{"n":"9223372036854775807n","bytes":"bytes 1,2"}'] * 2


async def test_what_stringify_makes_is_checked_before_it_is_sent() -> None:
    program = """
const client = await open({ stringify: () => JSON.stringify({ a: "\\ud83d" }) });
await client.request("demo", "echo", {}).catch((error) => told([problem(error), FakeSocket.last.sent.length]));
client.close();
"""
    said, sent = await run(program)
    assert (said.startswith("TypeError: params.a: a text with half"), sent) == (True, 0)


# --- uploads ------------------------------------------------------------------------------------------------------

WITH_UPLOAD = (
    BEGIN
    + """
import { upload } from "nuropb-gateway-client/upload";
const client = await open({ grace: 10 });
const file = [], calls = [];
let failing = null;
FakeSocket.last.send = function (text) {
  const { type, payload } = JSON.parse(text);
  if (type !== "request") return;
  const { params } = payload;
  calls.push(params);
  if (params.data) {
    if (params.offset !== file.length) throw new Error("a wrong offset");
    file.push(...Buffer.from(params.data.$bytes, "base64"));
  }
  const error = calls.length === failing ? { code: "service_error" } : null;
  const result = { received: file.length, result: file.length === params.size ? "kept" : undefined };
  queueMicrotask(() => this.receive("response", { id: payload.id, result: error ? null : result, error }));
};
const bytes = Uint8Array.from({ length: 1000 }, (_, index) => index);
const options = { service: "files", method: "put", id: "u", chunkSize: 300 };
"""
)


@pytest.mark.parametrize("file", ["bytes", "bytes.buffer", "new Blob([bytes])", "new DataView(bytes.buffer)"])
async def test_a_file_is_uploaded_in_calls_with_progress(file: str) -> None:
    program = f"""
const progress = [];
const onProgress = (...each) => progress.push(each);
const answer = await upload(client, {file}, {{ ...options, params: {{ name: "a" }}, onProgress }});
told([answer, progress, Buffer.compare(Buffer.from(file), Buffer.from(bytes)), calls[1].name, calls[1].upload]);
client.close();
"""
    progress = [[done, 1000] for done in (0, 300, 600, 900, 1000)]
    assert await run(program, begin=WITH_UPLOAD) == ["kept", progress, 0, "a", "u"]


async def test_an_upload_goes_on_where_the_service_is() -> None:
    program = """
failing = 4;
const code = await upload(client, bytes, options).catch((error) => error.code);
const before = calls.length;
const answer = await upload(client, bytes, options);
told([code, answer, calls.slice(before).map(({ offset }) => offset ?? null), file.length]);
client.close();
"""
    # The service had taken the bytes of the call whose answer was an error.
    assert await run(program, begin=WITH_UPLOAD) == ["service_error", "kept", [None, 900], 1000]


async def test_an_upload_can_be_aborted_and_a_service_must_say_how_much_it_has() -> None:
    program = """
const reason = await upload(client, bytes, { ...options, signal: AbortSignal.abort("enough") }).catch((error) => error);
FakeSocket.last.send = function (text) {
  const { payload } = JSON.parse(text);
  queueMicrotask(() => this.receive("response", { id: payload.id, result: null, error: null }));
};
told([reason, await upload(client, bytes, options).catch(problem)]);
client.close();
"""
    said = "RangeError: files.put must return { received }: a number of bytes from 0 to 1000"
    assert await run(program, begin=WITH_UPLOAD) == ["enough", said]


# --- event sources ------------------------------------------------------------------------------------------------

WITH_SOURCE = """
import { eventSource } from "nuropb-gateway-client/event-source";
const told = (value) => console.log(JSON.stringify(value));
const later = setTimeout;
globalThis.setTimeout = (run, wait) => later(run, wait > 20000 ? wait : 0);
const asked = [];
const answers = [];
const answer = (body, status = 200, headers = {}) => answers.push([body, status, headers]);
const fetch = async (url, { headers, credentials, signal }) => {
  asked.push([headers.Authorization ?? null, headers["Last-Event-ID"] ?? null, credentials]);
  const [parts, status, more] = answers.shift() ?? [null, 204, {}];
  if (parts === null) return new Response(null, { status });
  const body = new ReadableStream({
    async start(controller) {
      for (const part of [parts].flat()) {
        controller.enqueue(new TextEncoder().encode(part));
        await new Promise((resolve) => later(resolve, 0));
      }
      controller.close();
    },
  });
  return new Response(body, { status, headers: { "Content-Type": "text/event-stream", ...more } });
};
const closed = (source) => new Promise((resolve) => {
  source.addEventListener("error", ({ cause }) => source.readyState === 2 && resolve(cause.message));
});
"""
HELLO = 'event: hello\\nid: k:0\\ndata: {"topic":"hello","event":{}}\\n\\n'


async def test_an_event_source_reads_events_and_comes_back_behind_the_last_one() -> None:
    program = f"""
answer(["\\ufeffretry: 10\\r\\n\\r\\n", `{HELLO}`, "id: k:1\\ndata: a\\rdata: b\\r", "\\n\\nid: k:2\\n",
  ": ping\\n\\ndata:c\\n\\n"]);
answer(`{HELLO.replace("k:0", "k:9")}`);
const source = eventSource("http://gateway/events?topic=a", {{ token: "t", fetch }});
const events = [];
source.onopen = () => events.push("open");
source.onmessage = ({{ data, lastEventId }}) => events.push([data, lastEventId]);
source.addEventListener("hello", ({{ data }}) => events.push(JSON.parse(data).topic));
const reason = await closed(source);
told([events, asked, reason]);
"""
    events, asked, reason = await run(program, begin=WITH_SOURCE)
    assert events == ["open", "hello", ["a\nb", "k:1"], ["c", "k:2"], "open", "hello"]
    assert asked == [["Bearer t", None, "omit"], ["Bearer t", "k:2", "omit"], ["Bearer t", "k:9", "omit"]]
    assert reason == "the gateway answered with HTTP status 204"


async def test_an_event_source_tries_again_after_a_status_that_may_heal() -> None:
    program = f"""
for (const status of [408, 429, 500, 502, 503, 504]) {{
  answer("busy", status, {{ "Retry-After": "1", "Content-Type": "text/plain" }});
}}
answer(`{HELLO}`);
const source = eventSource("http://gateway/events", {{ fetch }});
const states = [];
source.onerror = () => states.push(source.readyState);
await new Promise((resolve) => (source.onopen = resolve));
source.close();
told([states, asked]);
"""
    assert await run(program, begin=WITH_SOURCE) == [[0] * 6, [[None, None, "include"]] * 7]


@pytest.mark.parametrize(
    "refusal",
    [
        'answer("no", 401)',
        'answer(`event: closed\\ndata: {"topic":"closed","event":{"code":4510,"reason":"no"}}\\n\\n`)',
    ],
)
async def test_an_event_source_asks_once_for_another_token(refusal: str) -> None:
    program = f"""
{refusal};
{refusal};
const reasons = [];
const getToken = async (reason) => (reasons.push(reason), reason);
await closed(eventSource("http://gateway/events", {{ getToken, fetch }}));
told([reasons, asked.map(([token]) => token)]);
"""
    reasons = ["connect", "rejected"]
    assert await run(program, begin=WITH_SOURCE) == [reasons, [f"Bearer {reason}" for reason in reasons]]


async def test_an_event_source_of_the_real_gateway() -> None:
    async with run_gateway(http="on") as gateway:
        program = f"""
import {{ eventSource }} from "nuropb-gateway-client/event-source";
const source = eventSource("{gateway.site.http("/events?topic=demo.tick")}", {{ getToken: () => "alice" }});
const {{ data }} = await new Promise((resolve) => (source.onmessage = resolve));
source.close();
console.log(data);
"""
        assert (await run(program, begin=""))["topic"] == "demo.tick"


# --- history ------------------------------------------------------------------------------------------------------

WITH_HISTORY = (
    BEGIN
    + """
const event = (event, offset, epoch = "e") =>
  FakeSocket.last.receive("event", { topic: "a.b", event, position: { epoch, offset } });
const asked = () =>
  FakeSocket.last.sent.filter(({ type }) => type === "subscribe").map(({ payload }) => payload.since ?? null);
const history = (recovered, offset, count, epoch = "e") => ({
  topics: ["a.*"], history: { "a.*": { epoch, offset, recovered, count } },
});
const comesBack = async (client) => {
  FakeSocket.last.onclose({ code: 1006, reason: "" });
  await new Promise((resolve) => setTimeout(resolve, 5));
  FakeSocket.last.greet();
};
const events = [], histories = [], gaps = [];
const follow = (client, since) => {
  const note = ({ event, position }) => events.push([event, position.offset]);
  const subscription = client.subscribe("a.*", note, { since });
  subscription.on("history", (each) => histories.push(each["a.*"].recovered));
  subscription.on("gap", ({ topics }) => gaps.push(topics));
  return subscription;
};
"""
)


async def history(program: str) -> Any:
    return await run(program, begin=WITH_HISTORY)


async def test_a_subscription_begins_with_a_part_of_the_history() -> None:
    program = """
const client = await open();
const subscription = follow(client, { last: 2 });
const first = asked();
FakeSocket.last.answer("subscribe", history(true, 7, 2));
await subscription.ready;
for (const offset of [6, 7, 8]) event("x", offset);
told([first, events, histories, gaps]);
client.close();
"""
    events = [["x", 6], ["x", 7], ["x", 8]]
    assert await history(program) == [[{"a.*": {"last": 2}}], events, [True], []]


@pytest.mark.parametrize(("recovered", "gaps"), [("true", []), ("false", [["a.*"]])])
async def test_after_a_lost_session_it_goes_on_behind_its_last_event_or_has_a_gap(recovered: str, gaps: Any) -> None:
    program = f"""
const client = await open();
const subscription = follow(client);
FakeSocket.last.answer("subscribe");
await subscription.ready;
event("x", 6);
await comesBack(client);
const again = asked();
FakeSocket.last.answer("subscribe", history({recovered}, 7, {recovered} ? 1 : 0));
await settled();
if ({recovered}) event("y", 7);
event("z", 8);
told([again, events.map(([each]) => each).join(""), histories, gaps]);
client.close();
"""
    told = await history(program)
    assert told == [
        [{"a.*": {"epoch": "e", "offset": 6}}],
        "xyz" if recovered == "true" else "xz",
        [recovered == "true"],
        gaps,
    ]


async def test_a_subscription_without_events_goes_on_where_it_began() -> None:
    program = """
const client = await open();
const subscription = follow(client, { seconds: 10 });
FakeSocket.last.answer("subscribe", history(true, 41, 0));
await subscription.ready;
await comesBack(client);
told(asked());
client.close();
"""
    assert await history(program) == [{"a.*": {"epoch": "e", "offset": 41}}]


async def test_the_history_of_one_subscription_is_not_delivered_to_another_again() -> None:
    program = """
const client = await open();
const all = [];
const first = client.subscribe("a.*", ({ event }) => all.push(event));
FakeSocket.last.answer("subscribe");
await first.ready;
event("x", 6);
const second = follow(client, { last: 9 });
event("y", 7);
FakeSocket.last.answer("subscribe", history(true, 7, 2));
await second.ready;
event("x", 6);
event("y", 7);
event("z", 8);
told([all, events.map(([each]) => each)]);
client.close();
"""
    assert await history(program) == [["x", "y", "z"], ["x", "y", "z"]]


async def test_subscriptions_with_and_without_a_history_are_asked_for_apart() -> None:
    program = """
const client = connect("ws://gateway/ws", { WebSocket: FakeSocket });
follow(client, { last: 1 });
client.subscribe("b", () => {});
client.subscribe("c", () => {});
await settled();
FakeSocket.last.greet();
await settled();
told(FakeSocket.last.sent.map(({ payload }) => [payload.topics, payload.since !== undefined]));
client.close();
"""
    assert await history(program) == [[["a.*"], True], [["b", "c"], False]]

"""The JavaScript client in Chromium: in pages without a build step, and in tabs that share one connection."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nuropb_gateway_asgi import CloseCode, Gateway
from nuropb_gateway_asgi.static.assets import read_asset
from tests.kit.browser import Browser, PageError, Profile, Tab, run_browser
from tests.kit.gateways import Site, eventually, make_gateway, serve

#: The strictest policy under which a page can use a gateway.
POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; worker-src 'self'; require-trusted-types-for 'script'"
)
PAGE = (
    '<!doctype html><title>A page</title><link rel="icon" href="data:,"><script type="module" src="/page.js"></script>'
)
#: A page as a developer writes it.
PAGE_SCRIPT = """
import { connect } from "/client.js";

const gateway = connect("/ws", { getToken: () => "alice" });
const sum = await gateway.request("demo", "add", { a: 2, b: 3 });
for await (const { topic, event } of gateway.subscribe("demo.tick")) {
  document.title = `${sum} ${topic} ${event.count > 0} ${gateway.hello.username}`;
  break;
}
"""
#: A page that only loads the client; the tests run their own code in it.
EMPTY_SCRIPT = """
import * as client from "/client.js";

globalThis.client = client;
"""


class Stage:
    """A gateway, and browser pages that use it."""

    def __init__(self, gateway: Gateway, site: Site, profile: Profile) -> None:
        self.gateway = gateway
        self.site = site
        self._profile = profile

    async def tab(self, path: str = "/empty") -> Tab:
        return await self._profile.open(self.site.http(path))

    async def client(self, user: str = "alice", tab: Tab | None = None, **options: Any) -> Tab:
        """Open a client of ``user`` in a tab. The names of its states are collected in ``states``."""
        tab = tab or await self.tab()
        await tab.evaluate(
            f"""new Promise((resolve, reject) => {{
              globalThis.reasons = [];
              const getToken = (reason) => {{ reasons.push(reason); return {json.dumps(user)}; }};
              globalThis.gateway = client.connect("/ws", {{ getToken, ...{json.dumps(options)} }});
              globalThis.states = [gateway.state.name];
              gateway.on("state", (state) => {{
                states.push(state.name);
                if (state.name === "open") resolve();
                if (state.name === "closed") reject(state.error);
              }});
            }})"""
        )
        return tab

    @property
    def connections(self) -> int:
        return len(self.gateway.handler_manager)

    @property
    def in_flight(self) -> int:
        return self.gateway.service_mesh_manager.in_flight

    @property
    def topics(self) -> set[str]:
        """The topic patterns that connections have subscribed to."""
        return set(self.gateway.service_mesh_manager.events.topics)


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with run_browser() as running:
        yield running


def page(body: str, media_type: str, policy: str = POLICY) -> Any:
    async def endpoint(request: Request) -> Response:
        return Response(body, media_type=media_type, headers={"Content-Security-Policy": policy})

    return endpoint


@contextlib.asynccontextmanager
async def stage(browser: Browser, **settings: Any) -> AsyncIterator[Stage]:
    gateway = make_gateway(**settings)
    app = Starlette(
        routes=[
            Route("/page", page(PAGE, "text/html")),
            Route("/page.js", page(PAGE_SCRIPT, "text/javascript")),
            Route("/empty", page(PAGE.replace("page.js", "empty.js"), "text/html")),
            Route("/empty.js", page(EMPTY_SCRIPT, "text/javascript")),
            Route("/open", page("<!doctype html>", "text/html", policy="")),
            Route("/bundle.js", page(read_asset("static/client.js").body.decode(), "text/javascript")),
        ],
    )
    gateway.mount(app, "")
    async with serve(app) as site, browser.profile() as profile:
        yield Stage(gateway, site, profile)


async def thrown(tab: Tab, expression: str) -> Any:
    """Return code (or name), message, close code and code of the cause of the error that ``expression`` throws."""
    return await tab.evaluate(
        f"""(async () => {{
          try {{ await ({expression}); }} catch (error) {{
            return [error.code ?? error.name, error.message, error.closeCode ?? null, error.cause?.code ?? null];
          }}
          return null;
        }})()"""
    )


# --- one tab ------------------------------------------------------------------------------------------------------


async def test_a_page_without_a_build_step_makes_a_call_and_gets_an_event(browser: Browser) -> None:
    async with stage(browser) as set_:
        tab = await set_.tab("/page")
        await tab.until("document.title !== 'A page'")
        assert await tab.evaluate("document.title") == "5 demo.tick true Alice"


@pytest.mark.parametrize(
    ("options", "protocols"),
    [
        ("{}", ["nuropb.v1", "base64url.bearer.nuropb.YWxpY2U"]),
        ("{ tokenIn: 'frame' }", ["nuropb.v1"]),
    ],
)
async def test_the_token_travels_as_a_subprotocol_unless_it_is_to_be_in_a_frame(
    browser: Browser, options: str, protocols: list[str]
) -> None:
    async with stage(browser) as set_:
        tab = await set_.tab()
        await tab.evaluate(
            f"""(async () => {{
              class Spy extends WebSocket {{
                constructor(url, protocols) {{ super(url, protocols); globalThis.protocols = protocols; }}
              }}
              const gateway = client.connect("/ws", {{ WebSocket: Spy, getToken: () => "alice", ...{options} }});
              globalThis.answer = await gateway.request("demo", "echo", {{ text: "é" }});
            }})()"""
        )
        assert await tab.evaluate("answer") == {"text": "é"}
        assert await tab.evaluate("protocols") == protocols


async def test_a_refused_token_is_seen_for_what_it_is(browser: Browser) -> None:
    async with stage(browser) as set_:
        tab = await set_.tab()
        code, message, close_code, cause = await thrown(
            tab,
            """(globalThis.gateway = client.connect("/ws", {
                 getToken: (reason) => { (globalThis.reasons ??= []).push(reason); return "bad"; },
               })).request("demo", "add", { a: 2, b: 3 })""",
        )
        assert (code, close_code, cause) == ("connection_closed", CloseCode.INVALID_TOKEN, "unauthenticated")
        assert "A valid bearer token is required" in message
        assert await tab.evaluate("reasons") == ["connect", "rejected"]
        assert await tab.evaluate("gateway.state.name") == "closed"


async def test_a_page_of_another_origin_may_import_the_client_but_not_its_worker(browser: Browser) -> None:
    async with stage(browser) as set_, stage(browser) as other:
        tab = await other.tab("/open")
        total = await tab.evaluate(
            f"""(async () => {{
              const {{ connect }} = await import("{set_.site.http("/client.js")}");
              globalThis.gateway = connect("{set_.site.http("/ws")}", {{ getToken: () => "alice", shared: true }});
              return gateway.request("demo", "add", {{ a: 2, b: 3 }});
            }})()"""
        )
        assert (total, set_.connections, other.connections) == (5, 1, 0)


async def test_an_aborted_call_is_cancelled(browser: Browser) -> None:
    async with stage(browser) as set_:
        tab = await set_.client()
        await tab.evaluate(
            """void (globalThis.call = gateway.request("demo", "slow", { seconds: 600 }, {
                 signal: (globalThis.controller = new AbortController()).signal })).catch(() => {})"""
        )
        await eventually(lambda: set_.in_flight == 1)
        await tab.evaluate("controller.abort()")
        assert (await thrown(tab, "call"))[0] == 20  # the code of an AbortError, as of every DOMException
        await eventually(lambda: set_.in_flight == 0)
        assert set_.gateway.service_mesh_manager.statistics.cancelled == 1


async def test_when_the_network_is_back_nobody_waits(browser: Browser) -> None:
    async with stage(browser) as set_:
        # So long that the test would time out, whatever the jitter.
        tab = await set_.client(backoff={"base": 1e9, "cap": 1e9})
        set_.gateway.handler_manager.close_all(CloseCode.SLOW_CONSUMER)
        await tab.until("states.at(-1) === 'reconnecting'")
        await tab.evaluate("void dispatchEvent(new Event('online'))")
        assert await tab.evaluate("gateway.request('demo', 'add', { a: 2, b: 3 })") == 5


# --- several tabs -------------------------------------------------------------------------------------------------


async def test_tabs_of_one_user_share_one_connection(browser: Browser) -> None:
    async with stage(browser) as set_:
        tabs = [await set_.client("alice", shared=True) for _ in range(2)]
        assert set_.connections == 1
        sessions = {await tab.evaluate("gateway.hello.session_id") for tab in tabs}
        assert len(sessions) == 1
        for number, tab in enumerate(tabs):
            await tab.evaluate(
                f"""globalThis.answers = Promise.all([1, 2, 3].map((each) =>
                      gateway.request("demo", "echo", {{ tab: {number}, each }})))"""
            )
        for number, tab in enumerate(tabs):
            answers = await tab.evaluate("answers")
            assert answers == [{"tab": number, "each": each} for each in (1, 2, 3)]
        assert await tabs[0].evaluate("gateway.command('demo', 'echo')") is None
        assert await tabs[1].evaluate("gateway.describe().then(({ services }) => Object.keys(services))") == ["demo"]
        assert (await thrown(tabs[0], "gateway.request('demo', 'fail', { how: 'validation' })"))[0] == "invalid_params"


async def test_every_tab_has_its_own_subscriptions(browser: Browser) -> None:
    async with stage(browser) as set_:
        first, second = [await set_.client("alice", shared=True) for _ in range(2)]
        listen = """(async () => {
          globalThis.got = [];
          globalThis.any = [];
          gateway.on("event", ({ topic }) => any.push(topic));
          globalThis.subscription = gateway.subscribe(TOPICS, ({ topic, event }) => got.push([topic, event]));
          await subscription.ready;
        })()"""
        await first.evaluate(listen.replace("TOPICS", '["demo.both.*", "demo.first"]'))
        await second.evaluate(listen.replace("TOPICS", '["demo.both.*"]'))
        assert set_.topics == {"demo.both.*", "demo.first"}

        async def publish(topic: str, event: object) -> None:
            await first.evaluate(
                f"gateway.request('demo', 'publish', {{ topic: '{topic}', event: {json.dumps(event)} }})"
            )

        async def got(tab: Tab, count: int) -> Any:
            await tab.until(f"got.length >= {count}")
            return await tab.evaluate("got")

        await publish("demo.first", 1)
        await publish("demo.both.x", 2)
        assert await got(first, 2) == [["demo.first", 1], ["demo.both.x", 2]]
        assert await got(second, 1) == [["demo.both.x", 2]]
        # The connection is shared, and so are its events.
        assert await second.evaluate("any") == ["demo.first", "demo.both.x"]

        await first.evaluate("subscription.unsubscribe()")
        await eventually(lambda: set_.topics == {"demo.both.*"})
        await publish("demo.both.y", 3)
        assert await got(second, 2) == [["demo.both.x", 2], ["demo.both.y", 3]]
        assert len(await got(first, 2)) == 2

        code, message, *_ = await thrown(second, "gateway.subscribe(['demo.both.*', 'secret.#'], () => {}).ready")
        assert (code, "secret.#" in message) == ("permission_denied", True)
        assert set_.topics == {"demo.both.*"}


async def test_what_the_gateway_says_of_events_reaches_every_tab(browser: Browser) -> None:
    async with stage(browser) as set_:
        tabs = [await set_.client("alice", shared=True) for _ in range(2)]
        for tab in tabs:
            await tab.evaluate(
                """(async () => {
                  globalThis.told = [];
                  for (const name of ["gap", "dropped", "unsubscribed", "goodbye", "warning"]) {
                    gateway.on(name, (value) => told.push([name, value.reason ?? value.count ?? value.code]));
                  }
                  globalThis.subscription = gateway.subscribe("demo.news", () => {});
                  subscription.on("ended", (error) => told.push(["ended", error.reason]));
                  await subscription.ready;
                })()"""
            )
        news: list[tuple[str, dict[str, Any]]] = [
            ("gap", {"reason": "mesh", "topics": ["demo.news"]}),
            ("dropped", {"count": 3, "topic": "demo.news"}),
            ("unsubscribed", {"reason": "policy", "topics": ["demo.news"]}),
            ("goodbye", {"reason": "draining", "retry_after_ms": 0}),
        ]
        for topic, event in news:
            set_.gateway.handler_manager.send_message_to_all(
                {"type": "event", "payload": {"topic": topic, "event": event}}
            )
        set_.gateway.handler_manager.send_message_to_all({"type": "error", "code": "internal", "description": "No."})
        for tab in tabs:
            await tab.until("told.length === 6")
            assert await tab.evaluate("told") == [
                ["gap", "mesh"],
                ["dropped", 3],
                ["unsubscribed", "policy"],
                ["ended", "policy"],
                ["goodbye", "draining"],
                ["warning", "internal"],
            ]
        await eventually(lambda: set_.topics == set())


@pytest.mark.parametrize("how", ["closed", "reloaded", "crashed", "crashed without locks", "given up"])
async def test_what_a_tab_had_ends_with_it(browser: Browser, how: str) -> None:
    async with stage(browser) as set_:
        stays = await set_.client("alice", shared=True)
        tab = await set_.tab()
        if how.endswith("without locks"):
            await tab.evaluate("Object.defineProperty(navigator, 'locks', { value: undefined })")
        goes = await set_.client("alice", tab, shared=True, pingInterval=100, pingTimeout=400)
        for each, topic in ((stays, "demo.stays"), (goes, "demo.goes")):
            await each.evaluate(
                f"""(async () => {{
                  gateway.request("demo", "slow", {{ seconds: 600 }}).catch(() => {{}});
                  await gateway.subscribe("{topic}", () => {{}}).ready;
                }})()"""
            )
        await eventually(lambda: set_.in_flight == 2)
        assert set_.topics == {"demo.stays", "demo.goes"}
        if how == "closed":
            await goes.close()
        elif how == "reloaded":
            await goes.go_to(set_.site.http("/page"))
        elif how == "given up":
            await goes.evaluate("gateway.close()")
        else:
            await goes.kill()
        await eventually(lambda: set_.in_flight == 1)
        await eventually(lambda: set_.topics == {"demo.stays"})
        assert set_.gateway.service_mesh_manager.statistics.cancelled == 1
        assert await stays.evaluate("gateway.request('demo', 'add', { a: 2, b: 3 })") == 5
        assert await stays.evaluate("states") == ["connecting", "authorising", "open"]


async def test_the_connection_ends_with_the_last_tab(browser: Browser) -> None:
    async with stage(browser) as set_:
        tabs = [await set_.client("alice", shared=True) for _ in range(2)]
        for tab in tabs:
            assert set_.connections == 1
            await tab.close()
        await eventually(lambda: set_.connections == 0)
        again = await set_.client("alice", shared=True)
        assert await again.evaluate("gateway.request('demo', 'add', { a: 2, b: 3 })") == 5


async def test_a_tab_of_another_user_has_another_connection(browser: Browser) -> None:
    async with stage(browser) as set_:
        tabs = [await set_.client(user, shared=True) for user in ("alice", "bob", "alice:another", "bob")]
        assert set_.connections == 2
        who = [await tab.evaluate("gateway.request('demo', 'whoami').then(({ user_id }) => user_id)") for tab in tabs]
        assert who == ["alice", "bob", "alice", "bob"]


async def test_tabs_of_several_users_that_open_at_once_share_one_connection_for_each_user(browser: Browser) -> None:
    async with stage(browser) as set_:
        users = ["alice", "bob", "bob", "carol", "carol", "alice", "bob"]
        tabs = [await set_.tab() for _ in users]
        await asyncio.gather(*(set_.client(user, tab, shared=True) for user, tab in zip(users, tabs, strict=True)))
        assert set_.connections == 3
        sessions = {
            (user, await tab.evaluate("gateway.hello.session_id")) for user, tab in zip(users, tabs, strict=True)
        }
        assert len(sessions) == 3


async def test_integers_of_64_bits_pass_through_a_shared_connection(browser: Browser) -> None:
    async with stage(browser) as set_:
        tab = await set_.tab()
        answer = await tab.evaluate(
            """(() => {
              const isBig = (value) => Number.isInteger(value) && !Number.isSafeInteger(value);
              const parse = (text) => JSON.parse(text, (_, value, { source }) => isBig(value) ? BigInt(source) : value);
              const stringify = (value) =>
                JSON.stringify(value, (_, each) => (typeof each === "bigint" ? JSON.rawJSON(String(each)) : each));
              const options = { getToken: () => "alice", shared: true, parse, stringify };
              globalThis.gateway = client.connect("/ws", options);
              const sent = gateway.request("demo", "echo", { n: 2n ** 63n - 1n, m: 1.5 });
              return sent.then(({ n, m }) => `${typeof n} ${n} ${m}`);
            })()"""
        )
        assert answer == f"bigint {2**63 - 1} 1.5"


async def test_the_gateways_own_module_still_serves_as_the_script_of_the_worker(browser: Browser) -> None:
    async with stage(browser) as set_:
        tabs = [await set_.client("alice", shared=True, workerUrl="/client.js") for _ in range(2)]
        assert [await tab.evaluate("gateway.request('demo', 'add', { a: 2, b: 3 })") for tab in tabs] == [5, 5]
        assert set_.connections == 1


async def test_a_tab_whose_token_is_refused_is_alone_with_that(browser: Browser) -> None:
    async with stage(browser) as set_:
        good = await set_.client("alice", shared=True)
        tab = await set_.tab()
        with pytest.raises(PageError, match="4510"):
            await set_.client("bad", tab, shared=True)
        assert await tab.evaluate("reasons") == ["connect", "rejected"]
        assert await tab.evaluate("gateway.state.error.cause.code") == "unauthenticated"
        assert await good.evaluate("gateway.request('demo', 'add', { a: 2, b: 3 })") == 5
        assert await good.evaluate("states") == ["connecting", "authorising", "open"]


async def test_tabs_come_back_together(browser: Browser) -> None:
    async with stage(browser) as set_:
        tabs = [await set_.client("alice", shared=True, backoff={"base": 50}) for _ in range(2)]
        for tab in tabs:
            await tab.evaluate("gateway.subscribe('demo.news', () => {}).ready.then(() => {})")
        set_.gateway.handler_manager.close_all(CloseCode.SLOW_CONSUMER)
        for tab in tabs:
            await tab.until("states.filter((name) => name === 'open').length === 2")
            assert await tab.evaluate("gateway.request('demo', 'add', { a: 2, b: 3 })") == 5
        assert set_.connections == 1
        await eventually(lambda: set_.topics == {"demo.news"})


async def test_each_tab_of_a_shared_connection_begins_in_the_past_where_it_asks_and_misses_nothing_later(
    browser: Browser,
) -> None:
    settings: dict[str, Any] = {"expose_topics": ["shop.#"], "history": ["shop.#:1h"], "resume_window": 0}
    async with stage(browser, **settings) as set_:
        publish = set_.gateway.service_mesh_manager.publish_event
        for number in range(5):
            await publish("shop.sold", number)
        tabs = [await set_.client("alice", shared=True, backoff={"base": 50}) for _ in range(2)]
        for tab, last in zip(tabs, (2, 4), strict=True):
            await tab.evaluate(
                f"""(() => {{
                  const [heard, told] = [globalThis.heard, globalThis.told] = [[], []];
                  const since = {{ last: {last} }};
                  const subscription = gateway.subscribe("shop.#", ({{ event }}) => heard.push(event), {{ since }});
                  subscription.on("history", (answers) => told.push(answers["shop.#"].recovered));
                  subscription.on("gap", () => heard.push("gap"));
                  return subscription.ready.then(() => {{}});
                }})()"""
            )
            await tab.until(f"heard.length === {last}")
        assert set_.connections == 1
        set_.gateway.handler_manager.close_all(CloseCode.SLOW_CONSUMER)
        await publish("shop.sold", 5)  # no session keeps it
        await eventually(lambda: set_.connections == 1)
        await publish("shop.sold", 6)
        for tab, last in zip(tabs, (2, 4), strict=True):
            await tab.until("heard.includes(6)")
            assert await tab.evaluate("heard") == list(range(5 - last, 7))
            assert await tab.evaluate("told") == [True, True]


async def test_what_is_final_is_final_for_all_tabs(browser: Browser) -> None:
    async with stage(browser) as set_:
        tabs = [await set_.client("alice", shared=True) for _ in range(2)]
        calls = [f"gateway.request('demo', 'slow', {{ seconds: {number} }})" for number in (600, 601)]
        for tab, call in zip(tabs, calls, strict=True):
            await tab.evaluate(f"void (globalThis.call = {call}).catch(() => {{}})")
        await eventually(lambda: set_.in_flight == 2)
        set_.gateway.handler_manager.close_user_ids(["alice"])
        for tab in tabs:
            code, _, close_code, _ = await thrown(tab, "call")
            assert (code, close_code) == ("connection_lost", CloseCode.DISCONNECTED)
            assert (await thrown(tab, "gateway.request('demo', 'add')"))[2] == CloseCode.DISCONNECTED


async def test_a_token_is_replaced_for_all_tabs(browser: Browser) -> None:
    async with stage(browser) as set_:
        tabs = [await set_.client("alice:for:3", shared=True, refreshMargin=2500) for _ in range(2)]
        await eventually(lambda: set_.gateway.handler_manager.handlers)
        for tab in tabs:
            await tab.until("reasons.includes('refresh')")
            assert await tab.evaluate("gateway.request('demo', 'add', { a: 2, b: 3 })") == 5
            assert await tab.evaluate("states") == ["connecting", "authorising", "open"]


async def test_without_a_worker_a_tab_has_a_connection_of_its_own(browser: Browser) -> None:
    async with stage(browser) as set_:
        tab = await set_.client("alice", shared=True, workerUrl="/nothing.js", backoff={"base": 50})
        assert await tab.evaluate("states") == ["connecting", "reconnecting", "connecting", "authorising", "open"]
        assert await tab.evaluate("gateway.request('demo', 'add', { a: 2, b: 3 })") == 5
        tab = await set_.tab()
        await tab.evaluate("delete globalThis.SharedWorker")
        await set_.client("alice", tab, shared=True)
        assert set_.connections == 2


async def test_a_bundle_has_to_say_where_the_worker_is(browser: Browser) -> None:
    async with stage(browser) as set_:
        tab = await set_.tab()
        await tab.evaluate("import('/bundle.js').then((bundle) => { globalThis.client = bundle; })")
        code, message, *_ = await thrown(tab, "client.connect('/ws', { getToken: () => 'alice', shared: true })")
        assert (code, "workerUrl" in message) == ("TypeError", True)
        await set_.client("alice", tab, shared=True, workerUrl="/client.js")
        assert await tab.evaluate("gateway.request('demo', 'add', { a: 2, b: 3 })") == 5
        assert set_.connections == 1


async def test_a_page_whose_websockets_are_blocked_gets_its_answers_and_events(browser: Browser) -> None:
    async with stage(browser, http="on") as set_:
        tab = await set_.client("alice", transport="sse")
        assert await tab.evaluate("gateway.request('demo', 'add', { a: 2, b: 3 })") == 5
        await tab.evaluate("void gateway.subscribe('demo.tick', ({ event }) => { globalThis.tick = event.count; })")
        await tab.until("globalThis.tick > 0")
        assert await tab.evaluate("gateway.transport") == "sse"
        await tab.evaluate("gateway.close()")
        await eventually(lambda: not len(set_.gateway.channels["http"].handler_manager))


# --- pages that sleep, are reloaded, or may not connect -----------------------------------------------------------


async def test_a_reloaded_page_takes_its_session_back(browser: Browser) -> None:
    async with stage(browser, expose_topics=["#"]) as set_:
        tab = await set_.tab()
        begin = """new Promise((resolve) => {
          globalThis.gateway = client.connect("/ws", { getToken: () => "alice", storage: sessionStorage });
          globalThis.events = [];
          globalThis.subscription = gateway.subscribe("orders.*", ({ event }) => events.push(event));
          gateway.on("state", (state) => {
            if (state.name === "open") resolve([state.hello.session_id, state.resumed ?? null]);
          });
        })"""
        session_id, resumed = await tab.evaluate(begin)
        assert resumed is None
        await tab.evaluate("subscription.ready.then(() => {})")
        # The answer to the first `resume` comes right after hello.
        await tab.evaluate("gateway.request('demo', 'add', { a: 2, b: 3 })")
        assert await tab.evaluate("sessionStorage.length") == 0, "a duplicated tab must not have the key"
        await tab.go_to(set_.site.http("/open"))
        await set_.gateway.service_mesh_manager.publish_event("orders.new", 1)
        await tab.go_to(set_.site.http("/empty"))
        assert await tab.evaluate(begin) == [session_id, True]
        await tab.until("events.length === 1")
        assert await tab.evaluate("gateway.request('demo', 'add', { a: 2, b: 3 })") == 5


@pytest.mark.parametrize("event", ["visibilitychange", "pageshow", "resume", "online"])
async def test_a_page_that_wakes_up_asks_whether_its_connection_is_alive(browser: Browser, event: str) -> None:
    async with stage(browser) as set_:
        tab = await set_.tab()
        await tab.evaluate(
            """globalThis.sent = [];
            const send = WebSocket.prototype.send;
            WebSocket.prototype.send = function (text) { sent.push(JSON.parse(text).type); send.call(this, text); };"""
        )
        await set_.client("alice", tab)
        await tab.evaluate(f"void document.dispatchEvent(new Event('{event}', {{ bubbles: true }}))")
        assert "ping" in await tab.evaluate("sent")


async def test_a_connection_that_the_policy_of_the_page_forbids_is_an_end_with_a_reason(browser: Browser) -> None:
    async with stage(browser) as set_:
        tab = await set_.tab()
        states = await tab.evaluate(
            """new Promise((resolve) => {
              const gateway = client.connect("wss://elsewhere.example/ws", { getToken: () => "alice" });
              gateway.on("state", ({ name, error }) => name === "closed" && resolve([error.code, error.reason]));
            })"""
        )
        assert states == ["connection_closed", "the page's policy forbids the connection"]

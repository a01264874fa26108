"""The console in Chromium: sign-in, calls, events, expiry of tokens, and outages."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import msgspec
import pytest
from starlette.applications import Starlette

from nuropb_gateway_asgi import CloseCode, Gateway, Handler, Settings
from nuropb_gateway_asgi import console as console_module
from nuropb_gateway_asgi.authentication import issue_token, new_secret
from nuropb_gateway_asgi.console import CONTENT_SECURITY_POLICY
from nuropb_gateway_asgi.mesh.demo import DemoService
from nuropb_gateway_asgi.mesh.embedded import EmbeddedMesh
from tests.kit.agents import agent
from tests.kit.gateways import RunningGateway, eventually, make_gateway, run_gateway, serve
from tests.kit.javascript import node
from tests.kit.layout import layout_problems
from tests.kit.pages import Page, Pages, run_pages
from tests.kit.processes import run_process
from tests.kit.turnstile import Turnstile
from tests.servers.javascript import CONSOLE
from tests.servers.processes import ServiceProcess, unavailable
from tests.servers.rabbitmq import RabbitMQNode

#: The texts in place of the token, and of an unknown figure.
HIDDEN, UNKNOWN = "\u2039token\u203a", "\u2013"


@pytest.fixture(scope="module")
async def pages() -> AsyncIterator[Pages]:
    async with run_pages() as running:
        yield running


@pytest.fixture(scope="module")
async def gateway() -> AsyncIterator[RunningGateway]:
    """A gateway shared by tests without special settings."""
    async with run_gateway() as running:
        yield running


@contextlib.asynccontextmanager
async def console(
    pages: Pages,
    gateway: RunningGateway,
    token: str = "alice",
    *,
    path: str = "/",
    problems: tuple[str, ...] = (),
    **options: Any,
) -> AsyncIterator[Page]:
    """Open the console and sign in. At the end, check that the page contacted its gateway only, and that the browser
    logged no problem except those with a text in ``problems``.
    """
    async with pages.open(gateway.site.http(path), **options) as page:
        if token:
            await sign_in(page, token)
            await page.sees("Connected")
        yield page
        site = gateway.site.http("/")
        for _, url, _ in await page.seen("requests"):
            assert url.startswith((site, "blob:" + site)), url
        assert set(await page.seen("sockets")) <= {gateway.url}
        unexpected = [each for each in await page.seen("problems") if not any(known in each for known in problems)]
        assert unexpected == []
    await gateway.is_empty()


async def sign_in(page: Page, token: str) -> None:
    await page.fill("Token", token)
    await page.click("Sign in")


def be_patient(gateway: RunningGateway) -> Handler:
    """Let the connection outlive the token's expiry, of which the page knows: this machine may be slow."""
    manager = gateway.gateway.handler_manager
    (handler,) = [each for each in manager.handlers if not manager.is_parked(each)]  # others may be resumed
    assert handler.identity is not None
    handler.identity = msgspec.structs.replace(handler.identity, expires_at=None)
    return handler


async def session_of(page: Page) -> str:
    """Return the id of the session, by the panel of the identity."""
    await page.run("await page.locator('.identity').click()")
    text = await page.text("#identity")
    await page.press("Escape")
    return text.partition("Session")[2].split()[0]


async def choose(page: Page, method: str) -> None:
    await page.click(method, within=".services")


async def call(page: Page, **fields: str) -> None:
    for name, text in fields.items():
        await page.fill(name, text)
    await page.click("Call", within=".call")


# --- how it is served ---------------------------------------------------------------------------------------------


async def get(gateway: RunningGateway, path: str = "/", **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as http:
        return await http.get(gateway.site.http(path), headers=headers)


async def test_the_page_allows_nothing_but_the_gateways_own_files(gateway: RunningGateway) -> None:
    for path, kind in (
        ("/", "text/html"),
        ("/console/main.js", "text/javascript"),
        ("/console/icon.svg", "image/"),
    ):
        response = await get(gateway, path)
        assert response.status_code == 200
        assert response.headers["content-type"].startswith(kind)
        assert response.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY"
        assert response.headers["referrer-policy"] == "no-referrer"
        again = await get(gateway, path, **{"If-None-Match": response.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    page = (await get(gateway)).text
    assert "<style" not in page
    assert "style=" not in page
    assert page.count("<script") == page.count('<script type="module" src="console/')


async def test_nothing_else_is_served(gateway: RunningGateway) -> None:
    for path in (
        "/console/",
        "/console/index.html",
        "/console/__init__.py",
        "/console/vendor/README.md",
        "/console/vendor/htm.d.ts",
        "/console/vendor",
        "/console/%2e%2e/gateway.py",
        "/console/..%2f..%2fpyproject.toml",
        "/console/vendor/%2e%2e/__init__.py",
        "/console//etc/passwd",
        "/console/main.js/",
        "/console/main.js%00",
        "/console/MAIN.JS",
    ):
        assert (await get(gateway, path)).status_code == 404


@pytest.mark.parametrize(
    ("settings", "is_there"),
    [
        ({}, True),
        ({"console": "on"}, True),
        ({"console": "off"}, False),
        ({"mesh_url": "amqp://127.0.0.1:1/"}, False),
        ({"mesh_url": "amqp://127.0.0.1:1/", "console": "on"}, True),
    ],
)
async def test_the_console_is_there_when_it_is_on(settings: dict[str, Any], is_there: bool) -> None:
    transport = httpx.ASGITransport(make_gateway(**settings).app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
        for path in ("/", "/console/main.js"):
            assert (await http.get(path)).status_code == (200 if is_there else 404)


async def test_what_is_shipped_of_others_is_what_they_published(tmp_path: Path) -> None:
    if not (CONSOLE / "node_modules" / "uplot").is_dir():
        unavailable("uplot is not installed: make clients/console/.installed")
    await anyio.run_process([*node(), str(CONSOLE / "vendor.js"), str(tmp_path)])
    shipped = {each.name: each.read_bytes() for each in (Path(console_module.__file__).parent / "vendor").iterdir()}
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == shipped, "make vendor renews them"
    lock = json.loads((CONSOLE / "package-lock.json").read_text())
    assert not [name for name, package in lock["packages"].items() if "resolved" in package]


# --- signing in ---------------------------------------------------------------------------------------------------


async def test_a_token_signs_in_and_shows_who_one_is_and_what_one_may_call(pages: Pages) -> None:
    async with run_gateway(expose=["demo.add", "demo.slow"]) as gateway, console(pages, gateway, "alice:x") as page:
        await page.sees("Alice", within="header")
        await page.sees("Answer with the sum of two numbers.")
        services = await page.text(".services")
        assert "slow" in services
        assert "whoami" not in services
        await page.click("Signed in as Alice")
        identity = await page.text("#identity")
        assert "alice" in identity
        assert "Token expires" in identity
        assert gateway.gateway.settings.instance_id in identity
        await page.press("Escape")
        await page.misses("Token expires")
        assert await page.focus() == "button: Signed in as Alice"
        await page.click("Sign out", within="header")
        await page.sees("Sign in")
        await gateway.is_empty()


async def test_a_token_that_is_not_valid_is_refused_in_words(pages: Pages, gateway: RunningGateway) -> None:
    async with console(pages, gateway, token="") as page:
        await page.click("Sign in")
        await page.sees("Paste a token first.")
        await sign_in(page, "bad")
        await page.sees("The gateway does not accept this token.")
        await sign_in(page, "Bearer alice")  # as copied from a header
        await page.sees("Connected")


async def test_signing_in_lasts_for_a_reload_only_if_that_was_wanted(pages: Pages, gateway: RunningGateway) -> None:
    async with console(pages, gateway) as page:
        assert await page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])") == (
            '[{},{},""]'
        )
        await page.go_to(gateway.site.http("/"))
        await page.run("await page.getByLabel('Stay signed in until this tab is closed').check()")
        await sign_in(page, "bob")
        await page.sees("Bob", within="header")
        await page.go_to(gateway.site.http("/"))
        await page.sees("Bob", within="header")
        await page.click("Sign out", within="header")
        await page.go_to(gateway.site.http("/"))
        await page.sees("Sign in")
        assert await page.evaluate("sessionStorage.length + localStorage.length") == 0


async def test_the_link_of_make_run_signs_in_and_the_token_is_nowhere_to_be_seen(pages: Pages) -> None:
    made = Gateway(Settings())
    token = made.development_token
    assert token is not None
    async with run_gateway(made) as gateway:
        async with console(pages, gateway, "", path=f"/#token={token}") as page:
            await page.sees("Developer", within="header")
            assert await page.evaluate("location.href") == gateway.site.http("/")
            assert await page.evaluate("history.length") == 1 + 1  # plus the empty page of a new tab
            for method, url, headers in await page.seen("requests"):
                assert token not in url, method
                assert [name for name, value in headers.items() if token in value] in ([], ["authorization"])
            await choose(page, "whoami")
            await page.sees("This method takes no parameters.")
            await call(page)
            await page.sees(f"Bearer {HIDDEN}", within=".answer")
            await page.click("Pause the frames")
            await page.run("for (const each of await page.locator('.frames .log button').all()) await each.click()")
            await page.click("Signed in as Developer")
            await page.sees("preferred_username", within="#identity")
            for part in token.split("."):
                assert part not in await page.run("return page.content()")
            # The same as pasting the address into the open page.
            await page.evaluate(f"void (location.hash = 'token={token}')")
            await page.until("location.hash === ''")
        async with console(pages, gateway, "", path="/#token=nonsense") as page:
            await page.sees("The gateway does not accept this token.")
            assert await page.evaluate("location.href") == gateway.site.http("/")


async def test_a_link_signs_nobody_in_where_the_gateway_has_not_made_the_token(
    pages: Pages, gateway: RunningGateway
) -> None:
    async with console(pages, gateway, "", path="/#token=alice") as page:
        await page.sees("Sign in")
        assert await page.evaluate("location.href") == gateway.site.http("/")
        assert await page.evaluate("sessionStorage.length") == 0
        assert await page.seen("sockets") == []


async def test_a_gateway_that_does_not_want_the_pages_origin_is_said_to(pages: Pages) -> None:
    async with (
        run_gateway(allowed_origins=["https://app.example.com"]) as gateway,
        console(pages, gateway, "", problems=("WebSocket connection", "403")) as page,
    ):
        await sign_in(page, "alice")
        await page.sees("ALLOWED_ORIGINS")
        await page.sees(gateway.site.http(), within=".signin")
        await page.click("Cancel")
        await page.misses("ALLOWED_ORIGINS")


async def test_the_console_of_a_mounted_gateway_works_where_it_is(pages: Pages) -> None:
    gateway = make_gateway(path="/socket")
    app = Starlette()
    gateway.mount(app, "/gw")
    async with serve(app) as site, pages.open(site.http("/gw/")) as page:
        await sign_in(page, "alice")
        await page.sees("Connected")
        await call(page, a="2", b="3")
        await page.sees("5", within=".answer pre")
        assert await page.seen("sockets") == [site.ws("/gw/socket")]
        await page.click("AsyncAPI")
        name, text = await page.downloaded()
        assert (name, json.loads(text)["servers"]["gateway"]["pathname"]) == ("asyncapi.json", "/gw")
        assert await page.seen("problems") == []


# --- calls --------------------------------------------------------------------------------------------------------


async def test_a_call_shows_its_answer_and_how_long_it_took(pages: Pages, gateway: RunningGateway) -> None:
    async with console(pages, gateway) as page:
        await call(page, a="2", b="0.5")
        await page.sees("2.5", within=".answer pre")
        said = await page.text(".answer [role=status]")
        assert said.startswith("demo.add answered after ")
        assert said.endswith(": 2.5")
        assert "ms" in await page.text(".verdict")
        frames = await page.text(".frames")
        assert frames.index("response") < frames.index("request") < frames.index("hello") < frames.index("authorize")


async def test_an_error_shows_its_code_and_its_text_and_where_to_look(pages: Pages, gateway: RunningGateway) -> None:
    async with console(pages, gateway) as page:
        await choose(page, "fail")
        await call(page, how="validation")
        await page.sees("invalid_params", within=".verdict")
        await page.sees("This is how a validation failure looks", within=".answer")
        await call(page, how="")
        await page.sees("service_error", within=".verdict")
        await page.sees("Trace id", within=".answer")
        await page.run("await page.getByText('Earlier calls').click()")
        await page.run("await page.locator('.history li button').last().click()")
        await page.sees("invalid_params", within=".verdict")
        assert await page.evaluate("document.querySelector('.call input').value") == "validation"


async def test_what_cannot_be_meant_is_not_sent(pages: Pages, gateway: RunningGateway) -> None:
    before = gateway.gateway.service_mesh_manager.statistics.requests
    async with console(pages, gateway) as page:
        await call(page, b="3")
        await page.sees("Required.", within=".call")
        await call(page, a="two", b="3")
        await page.sees("Enter a number, such as 1.5.")
        assert await page.focus() == "input: a float required"
        await call(page, a="9007199254740993")
        await page.sees("JavaScript cannot represent this number exactly.")
        await call(page, a="2", Timeout="soon")
        await page.sees("Seconds, such as 5.")
        assert gateway.gateway.service_mesh_manager.statistics.requests == before
        await call(page, Timeout="5")
        await page.sees("5", within=".answer pre")


async def test_a_search_finds_words_of_names_and_descriptions(pages: Pages, gateway: RunningGateway) -> None:
    async with console(pages, gateway) as page:
        await page.sees("whoami", within=".services")
        for text, methods in (("sum of two", "add"), ("DEMO.WHO", "whoami"), ("without a broker", "add echo fail")):
            await page.fill("Search in services and methods", text)
            found = (await page.text(".services ul")).split()
            assert found[:3] == methods.split()
        await page.fill("Search in services and methods", "nothing of this kind")
        await page.sees("No service and no method has this.")


async def test_a_call_is_copied_as_code_that_makes_the_same_call(
    pages: Pages, gateway: RunningGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = {"text": 'it\'s "$HOME" \u00e9 \\ \u2028', "n": -1.5, "none": None, "list": [True]}
    async with console(pages, gateway) as page:
        copied: dict[str, str] = await page.evaluate(
            f"""import("./console/copy.js").then(({{ LANGUAGES, asText }}) => Object.fromEntries(
                  LANGUAGES.map(([each]) =>
                    [each, asText(each, {{ service: "demo", method: "echo" }}, {json.dumps(params)})])))"""
        )
        await page.run("await page.getByText('Copy as code').click()")
        await page.fill("a", "2")
        assert await page.run("return page.getByRole('button', { name: 'for Python' }).isDisabled()")
        await page.fill("b", "3")
        assert await page.run("return page.getByRole('button', { name: 'for Python' }).isEnabled()")
        await page.evaluate(  # as a program that fills a form in does
            """for (const [index, field] of document.querySelectorAll(".field input").entries()) {
                 field.value = `${index + 4}`;
                 field.dispatchEvent(new Event("input", { bubbles: true }));
               }"""
        )
        values = "return page.locator('.field input').evaluateAll((fields) => fields.map((field) => field.value))"
        assert await page.run(values) == ["4", "5"]
    *command, said = shlex.split(copied["shell"])
    assert command == ["nuropb-gateway", "call", "--url", gateway.url, "demo", "echo"]
    assert json.loads(said) == params
    monkeypatch.setenv("NUROPB_GATEWAY_TOKEN", "alice")
    printed: list[Any] = []
    await anyio.to_thread.run_sync(exec, copied["python"], {"print": printed.append})
    assert printed == [params]
    module = tmp_path / "call.mjs"
    client = (Path(console_module.__file__).parents[1] / "static" / "client.js").as_uri()
    script = copied["javascript"].replace(gateway.site.http("/client.js"), client)
    script = script.replace("{ getToken }", "{ token: 'alice' }")
    module.write_text(f"{script}console.log(JSON.stringify(result)); gateway.close();")
    curl = f"curl -s --noproxy '*' {copied['curl'].removeprefix('curl ')}"
    for run in (curl, shlex.join([*node(), str(module)])):
        async with run_process("bash", "-c", run, environment={"NUROPB_GATEWAY_TOKEN": "alice"}) as process:
            assert await process.wait() == 0, process.output
        assert json.loads("\n".join(process.stdout)) == params, run


async def test_calls_outlive_a_reload_without_their_results_until_the_user_signs_out(
    pages: Pages, gateway: RunningGateway
) -> None:
    async with console(pages, gateway, "alice:secret") as page:
        await choose(page, "echo")
        await page.fill("Parameters", '{"hidden": "alice:secret"}')
        await page.click("Call", within=".call")
        await page.sees("hidden", within=".answer pre")
        await choose(page, "add")
        await call(page, a="20", b="22")
        await page.sees("42", within=".answer pre")
        await page.go_to(gateway.site.http("/"))
        await sign_in(page, "alice:other")
        await page.run("await page.getByText('Earlier calls').click()")
        assert "echo" not in await page.text(".history")  # it has the token in it
        await page.run("await page.locator('.history li button').click()")
        await page.sees("Results are not kept over a reload: call again.")
        await page.click("Call", within=".call")
        await page.sees("42", within=".answer pre")
        await page.click("Sign out", within="header")
        await page.sees("Sign in")
        assert await page.evaluate("sessionStorage.length + localStorage.length") == 0


async def test_parameters_can_be_written_as_json(pages: Pages, gateway: RunningGateway) -> None:
    async with console(pages, gateway) as page:
        await choose(page, "echo")  # accepts any parameters, so there are no fields
        await page.fill("Parameters", '{"text": "é", "list": [1, null, {"deep": true}]')
        await page.click("Call", within=".call")
        await page.sees("This is not JSON")
        await page.fill("Parameters", '{"text": "é", "list": [1, null, {"deep": true}]}')
        await page.click("Call", within=".call")
        await page.sees('"deep": true', within=".answer pre")
        await choose(page, "publish")
        await page.fill("topic", "demo.news")
        await page.fill("event", "hello")
        await page.sees("sent as text")
        await page.click("Edit as JSON")
        assert json.loads(await page.evaluate("document.querySelector('.call textarea').value")) == {
            "topic": "demo.news",
            "event": "hello",
        }
        await page.fill("Parameters", '{"topic": "demo.news", "event": {"n": 1}}')
        await page.click("Edit as fields")
        await page.sees("sent as an object")


async def test_a_call_under_way_can_be_cancelled_and_a_command_is_not_waited_for(
    pages: Pages, gateway: RunningGateway
) -> None:
    async with console(pages, gateway) as page:
        await choose(page, "slow")
        await call(page, seconds="600")
        await page.sees("waiting", within=".verdict")
        await eventually(lambda: gateway.gateway.service_mesh_manager.in_flight == 1)
        await page.click("Cancel", within=".answer")
        await page.sees("cancelled", within=".verdict")
        await eventually(lambda: gateway.gateway.service_mesh_manager.in_flight == 0)
        await page.click("Send as command")
        await page.sees("The mesh has taken the command.", within=".answer")
        await call(page, Timeout="0.05")
        await page.sees("timeout", within=".verdict")


async def test_a_big_answer_does_not_freeze_the_page(pages: Pages) -> None:
    class Library:
        _service_name = "library"

        def shelf(self, size: int) -> list[str]:
            """Answer with as many books."""
            return ["a book"] * size

    mesh = EmbeddedMesh({"library": Library()}, service_name="nuropb-gateway")
    async with run_gateway(make_gateway(mesh=mesh, expose=["library.*"])) as gateway, console(pages, gateway) as page:
        await call(page, size="90000")
        await page.sees("more characters: copy to see them", within=".answer")
        await call(page, size="2")
        await page.misses("more characters", within=".answer")


async def test_names_that_every_object_has_are_names_like_any_other(pages: Pages) -> None:
    class Objects:
        _service_name = "constructor"

        def toString(self, constructor: str, __proto__: int, toString: Any, valueOf: str = "") -> list[Any]:  # noqa: N803
            """Answer with the parameters."""
            return [constructor, __proto__, toString, valueOf]

    class Plain:
        _service_name = "plain"

        def hasOwnProperty(self, __proto__: Any = None, watch: str = "") -> Any:
            """Answer with the parameter."""
            return [__proto__, watch]

    mesh = EmbeddedMesh({"constructor": Objects(), "plain": Plain()}, service_name="nuropb-gateway")
    gateways = run_gateway(make_gateway(mesh=mesh, expose=["constructor.*", "plain.*"]))
    async with gateways as gateway, console(pages, gateway) as page:
        await call(page, constructor="c", __proto__="one", toString="t")
        await page.sees("Enter a whole number, such as 42.")
        await call(page, __proto__="1")
        await page.sees("constructor.toString answered", within=".answer")
        answer = await page.text(".answer pre")
        assert json.loads(answer.partition("[")[1] + answer.partition("[")[2]) == ["c", 1, "t", ""]
        await page.click("Edit as JSON")
        written = json.loads(await page.evaluate("document.querySelector('.call textarea').value"))
        assert written == {"constructor": "c", "__proto__": 1, "toString": "t"}
        await page.click("Edit as fields")
        await call(page, valueOf="v")
        await page.sees('"v"', within=".answer pre")
        await choose(page, "hasOwnProperty")
        await call(page, __proto__='{"a": 1}')
        await page.sees('"a": 1', within=".answer pre")


async def test_the_contract_can_be_kept_as_a_file(pages: Pages, gateway: RunningGateway) -> None:
    async with console(pages, gateway) as page:
        for button, name, member in (("AsyncAPI", "asyncapi.json", "asyncapi"), ("OpenAPI", "openapi.json", "openapi")):
            await page.click(button)
            found, text = await page.downloaded()
            assert (found, json.loads(text)[member]) == (name, "3.1.0")


# --- events -------------------------------------------------------------------------------------------------------


async def test_events_come_in_as_they_happen(pages: Pages, gateway: RunningGateway) -> None:
    async with console(pages, gateway) as page:
        await page.click("Subscribe to demo.#")
        await page.sees("demo.tick", within=".events .log")
        await page.click("Unsubscribe from demo.#")
        await page.sees("demo.#", within=".suggestion")
        await page.click("Clear", within=".events")
        await page.fill("Topic to subscribe to", "demo.news demo.weather.*")
        await page.press("Enter")
        await page.sees("demo.weather.*", within=".chips")
        await choose(page, "publish")
        await page.fill("topic", "demo.news")
        await page.fill("event", '{"headline": "It works"}')
        await page.press("Control+Enter")
        await page.sees("It works", within=".events .log")
        await page.run("await page.locator('.events .log button').first().click()")
        await page.sees('"headline": "It works"', within=".events pre")


async def test_a_topic_that_one_may_not_see_is_refused_in_words(pages: Pages, gateway: RunningGateway) -> None:
    async with console(pages, gateway) as page:
        await page.fill("Topic to subscribe to", "secrets.#")
        await page.click("Subscribe", within=".events")
        await page.sees("Subscribing to secrets.# is not allowed", within=".chips")
        await page.fill("Topic to subscribe to", "de*")
        await page.click("Subscribe", within=".events")
        await page.sees("a word that mixes", within=".chips")


# --- agents -------------------------------------------------------------------------------------------------------


async def test_the_agents_page_has_the_tools_of_the_token_and_the_calls_of_its_agents(pages: Pages) -> None:
    async with (
        run_gateway(mcp="on", expose=["demo.*"], expose_tools=["demo.add", "demo.fail"]) as gateway,
        console(pages, gateway, "alice:x") as page,
    ):
        await page.click("Agents", within=".views")
        await page.sees("demo__add", within=".tools")
        await page.sees("No agent with a token of yours has called a tool yet.")
        assert "whoami" not in await page.text(".tools")
        await page.run("await page.locator('.tools .log button').first().click()")
        await page.sees('"additionalProperties": false', within=".tools pre")
        async with agent(gateway.site, "alice") as client:
            await client.call_tool("demo__add", {"a": 1, "b": 2})
            await client.call_tool("demo__fail", {"how": "bug"})
        async with agent(gateway.site, "bob") as client:
            await client.call_tool("demo__add", {"a": "secret of bob", "b": 2})
        await page.sees("demo.fail", within=".recent")
        recent = await page.text(".recent")
        assert recent.index("service_error") < recent.index("ok")
        assert recent.count("demo.add") == 1
        assert await page.accessibility_problems() == []
        await page.click("Services", within=".views")
        await page.sees("Answer with the sum of two numbers.")


async def test_a_copied_line_adds_the_gateway_to_a_host_and_the_token_is_not_shown(pages: Pages) -> None:
    token = "alice:a-token-of-alice"
    copied = "navigator.clipboard.readText()"
    async with (
        run_gateway(mcp="on") as gateway,
        console(pages, gateway, token, permissions=["clipboard-read", "clipboard-write"]) as page,
    ):
        await page.click("Agents", within=".views")
        await page.sees(f"Bearer {HIDDEN}", within=".hosts")
        url = gateway.site.http("/mcp")
        await page.click("Copy: the line for Claude Code")
        await page.sees("Copied", within=".hosts")
        assert await page.evaluate(copied) == (
            f'claude mcp add --transport http nuropb {url} --header "Authorization: Bearer {token}"'
        )
        servers = {"Cursor": "mcpServers", "VS Code": "servers", "Other hosts": "mcpServers"}
        for host, member in servers.items():
            await page.click(f"Copy: the line for {host}")
            server = json.loads(await page.evaluate(copied))[member]["nuropb"]
            assert (server["url"], server["headers"]) == (url, {"Authorization": f"Bearer {token}"})
        assert token not in await page.run("return page.content()")


async def test_the_agents_page_of_a_mounted_gateway_asks_where_that_is(pages: Pages) -> None:
    app = Starlette()
    make_gateway(mcp="on", path="/socket").mount(app, "/gw")
    async with serve(app) as site, pages.open(site.http("/gw/")) as page:
        await sign_in(page, "alice")
        await page.sees("Connected")
        await page.click("Agents", within=".views")
        await page.sees("demo__add", within=".tools")
        await page.sees(site.http("/gw/mcp"), within=".hosts")
        assert await page.seen("problems") == []


async def test_a_gateway_without_tools_says_how_it_gets_them(pages: Pages) -> None:
    async with run_gateway(mcp="off") as gateway, console(pages, gateway) as page:
        await page.click("Agents", within=".views")
        await page.sees("This gateway gives no tools to agents.")
        assert await page.accessibility_problems() == []


# --- expiry and outages -------------------------------------------------------------------------------------------


async def test_when_the_token_ends_a_newer_one_goes_on_where_the_old_one_stopped(
    pages: Pages, gateway: RunningGateway
) -> None:
    async with console(pages, gateway, "alice:for:8") as page:
        await page.click("Subscribe to demo.#")
        await page.sees("demo.tick", within=".events .log")
        await page.fill("a", "20")
        await page.sees("The token has expired")
        await gateway.is_empty()
        await page.fill("b", "22")
        await page.click("Call", within=".call")
        await page.sees("waiting", within=".verdict")
        await page.fill("Newer token", "bad")
        await page.click("Continue")
        await page.sees("The gateway no longer accepts the token")
        await page.fill("Newer token", "alice")
        await page.click("Continue")
        await page.misses("Newer token")
        await page.sees("42", within=".answer pre")
        await page.click("Clear", within=".events")
        await page.sees("demo.tick", within=".events .log")


async def test_a_token_that_expires_soon_can_be_replaced_before(pages: Pages, gateway: RunningGateway) -> None:
    async with console(pages, gateway, "alice:for:5") as page:
        handler = be_patient(gateway)
        await page.sees("The token expires soon")
        assert await page.accessibility_problems() == []
        await page.fill("Newer token", "bob:for:3000")
        await page.click("Continue")
        await page.sees("This is a token of another user. Sign out first to use it.")
        await page.sees("Alice", within="header")
        await page.fill("Newer token", "alice:for:3000")
        await page.click("Continue")
        await page.misses("The token expires soon")
        await eventually(lambda: handler.identity is not None and handler.identity.token == "alice:for:3000")
        assert len(await page.seen("sockets")) == 1
        await page.sees("token: 49 min", within="header")


async def test_a_token_that_names_another_user_is_refused_before_it_is_sent(pages: Pages) -> None:
    secret = new_secret()
    async with (
        run_gateway(Gateway(Settings(jwt_key=secret, overload_delay=0.0))) as gateway,
        console(pages, gateway, token="") as page,
    ):
        # Its time runs from now, and not while the gateway and the page start.
        await sign_in(page, issue_token(secret, "alice", lifetime=12))
        await page.sees("Connected")
        be_patient(gateway)
        await page.sees("The token expires soon")
        await page.fill("Newer token", issue_token(secret, "bob"))
        await page.click("Continue")
        await page.sees("This is a token of the user bob. Sign out first to use it.")
        assert "authorize" not in (await page.text(".frames .log")).partition("hello")[0]


async def test_another_user_begins_afresh_without_the_events_and_calls_of_the_last(
    pages: Pages, gateway: RunningGateway
) -> None:
    async with console(pages, gateway, "alice") as page:
        await page.fill("Topic to subscribe to", "demo.of.alice")
        await page.press("Enter")
        await page.until("document.querySelector('.chip[data-state=active]') !== null")
        await call(page, a="2", b="3")
        await page.sees("5", within=".answer pre")
        gateway.gateway.handler_manager.close_all(CloseCode.TOKEN_EXPIRED, "token expired")
        await page.sees("The token has expired")
        await page.fill("Newer token", "bob")
        await page.click("Continue")
        await page.sees("Bob", within="header")
        await page.sees("Connected", within="header")
        assert await page.text(".events .empty") == "Subscribe to a topic to see its events here."
        for text in ("demo.of.alice", "Earlier calls"):
            assert text not in await page.text("main")


async def test_a_connection_that_the_operator_ends_is_not_made_again(pages: Pages, gateway: RunningGateway) -> None:
    async with console(pages, gateway) as page:
        gateway.gateway.handler_manager.close_all(CloseCode.DISCONNECTED, "for maintenance")
        await page.sees("The gateway has closed the connection for good")
        await page.sees("for maintenance")
        await page.sees("Disconnected", within="header")
        await page.click("Sign in again")
        await sign_in(page, "alice")
        await page.sees("Connected")


async def test_a_lost_connection_is_made_again(pages: Pages, gateway: RunningGateway) -> None:
    async with console(pages, gateway) as page:
        gateway.gateway.handler_manager.closed_for = 1.0
        gateway.gateway.handler_manager.close_all(CloseCode.SLOW_CONSUMER, "too slow")
        await page.sees("The connection to the gateway is lost")
        await page.sees("too slow")
        gateway.gateway.handler_manager.closed_for = None
        await page.misses("The connection to the gateway is lost")
        await page.sees("Connected")
        await call(page, a="2", b="3")
        await page.sees("5", within=".answer pre")


async def test_a_cut_connection_is_resumed_and_the_page_tells_what_was_replayed(pages: Pages) -> None:
    turnstile = Turnstile()
    mesh = EmbeddedMesh({"demo": DemoService(), "turnstile": turnstile})
    gateways = run_gateway(make_gateway(mesh=mesh, expose=["demo.*", "turnstile.*"], expose_topics=["news.#"]))
    async with gateways as gateway, console(pages, gateway) as page:
        await page.fill("Topic to subscribe to", "news.today")
        await page.press("Enter")
        await page.until("document.querySelector('.chip[data-state=active]') !== null")
        await choose(page, "wait")
        await page.click("Call", within=".call")
        await eventually(lambda: gateway.gateway.service_mesh_manager.in_flight == 1)
        session_id = await session_of(page)
        gateway.gateway.handler_manager.closed_for = 1.0  # until something was missed
        await page.click("Cut the connection")
        await page.sees("The connection to the gateway is lost")
        turnstile.open()
        await eventually(lambda: gateway.gateway.service_mesh_manager.in_flight == 0)
        gateway.gateway.handler_manager.closed_for = None
        await page.sees("The session was resumed.")
        await page.sees("Replayed: 1 answer or event. In flight: 0 calls. Subscriptions: news.today.")
        await page.sees("through", within=".answer pre")
        await page.sees("session", within=".events .log")
        assert await session_of(page) == session_id
        assert await page.accessibility_problems() == []
        await page.click("Close", within=".notice")
        await page.misses("The session was resumed.")


async def test_a_session_that_is_not_resumed_is_told_with_the_reason(pages: Pages) -> None:
    async with run_gateway(resume_window=0.05) as gateway, console(pages, gateway) as page:
        await page.until("document.querySelector('.frames .log').innerText.includes('resume')")
        gateway.gateway.handler_manager.closed_for = 1.0
        await page.click("Cut the connection")
        await page.sees("The connection to the gateway is lost")
        await eventually(lambda: gateway.gateway.handler_manager.handlers == ())
        gateway.gateway.handler_manager.closed_for = None
        await page.sees("The session was not resumed")
        await page.sees("(expired: it was without a connection for too long)")


async def test_the_key_of_a_session_is_not_shown(pages: Pages, gateway: RunningGateway) -> None:
    async with console(pages, gateway) as page:
        for _ in range(2):
            await page.sees("Connected")
            await page.click("Cut the connection")
            await page.sees("The session was resumed.")
            await page.click("Close", within=".notice")
        await page.click("Pause the frames")
        texts = await page.run(
            """const texts = [];
               for (const each of await page.locator(".frames .log button:enabled").all()) {
                 await each.click();
                 texts.push(await page.locator(".frames pre").innerText());
               }
               return texts"""
        )
        keys = [line.strip().rstrip(",") for text in texts for line in text.splitlines() if '"key"' in line]
        assert len(keys) == 5  # of three sessions and two returns
        assert set(keys) == {'"key": "\u2039key\u203a"'}


async def test_an_outage_of_the_broker_is_told_and_outlived(own_node: RabbitMQNode, pages: Pages) -> None:
    settings: dict[str, Any] = {"mesh_url": own_node.url(), "console": "on", "expose": ["echo.*"]}
    with ServiceProcess(own_node.url(), "echo") as service:
        async with run_gateway(allowed_origins=["*"], **settings) as gateway:
            await eventually(lambda: not gateway.gateway.not_ready())
            async with console(pages, gateway) as page:
                await page.sees("echo", within=".services h3")
                await choose(page, "echo")
                await page.click("Call", within=".call")
                await page.sees("ok", within=".verdict")
                await anyio.to_thread.run_sync(own_node.stop_app)
                await eventually(lambda: not gateway.gateway.service_mesh_manager.connected)
                await page.click("Call", within=".call")
                await page.sees("mesh_unavailable", within=".verdict")
                await page.sees("The gateway has no connection to the mesh.")
                await page.sees("The call was not delivered; you may call again.")
                await page.sees("Connected", within="header")
                await anyio.to_thread.run_sync(own_node.start_app)
                service.stop()
                service.start()
                await eventually(lambda: gateway.gateway.service_mesh_manager.connected)
                await page.click("Call", within=".call")
                await page.sees("ok", within=".verdict")
                await page.misses("The gateway has no connection to the mesh.")
                assert len(await page.seen("sockets")) == 1


# --- accessibility and the chart ----------------------------------------------------------------------------------


async def test_nothing_is_in_the_way_of_assistive_technology(pages: Pages, gateway: RunningGateway) -> None:
    async with console(pages, gateway, "") as page:
        assert await page.accessibility_problems() == []
        await sign_in(page, "alice")
        await page.click("Subscribe to demo.#")
        await call(page, a="2", b="x")
        await page.sees("Enter a number")
        await page.sees("demo.tick", within=".events .log")
        assert await page.accessibility_problems() == []
        await call(page, b="3")
        await page.sees("5", within=".answer pre")
        await page.click("Signed in as Alice")
        await page.sees("Token expires")
        assert await page.accessibility_problems() == []


async def test_nor_is_it_on_a_phone_in_the_dark(pages: Pages, gateway: RunningGateway) -> None:
    async with console(pages, gateway, phone=True, dark=True) as page:
        await call(page, a="2", b="3")
        await page.sees("5", within=".answer pre")
        for view in ("Call", "Events", "Traffic", "Agents"):
            await page.run("await page.locator('.views').getByText(args.view).click()", view=view)
            if view == "Events":
                await page.click("Subscribe to demo.#")
                await page.sees("demo.tick", within=".events .log")
            assert await page.accessibility_problems() == []


async def test_on_a_phone_everything_fits(pages: Pages, gateway: RunningGateway) -> None:
    fits = "document.documentElement.scrollWidth <= innerWidth"
    async with console(pages, gateway, "", phone=True) as page:
        assert await page.evaluate(fits)
        await sign_in(page, "alice")
        await page.sees("Connected")
        await call(page, a="2", b="3")
        await page.sees("5", within=".answer pre")
        assert await page.evaluate(fits)
        await page.run("await page.locator('.views').getByText('Events').click()")
        await page.misses("Answer with the sum of two numbers.")
        await page.fill("Topic to subscribe to", "demo." + ".".join(["long"] * 30))
        await page.click("Subscribe", within=".events")
        await page.click("Subscribe to demo.#")
        await page.sees("demo.tick", within=".events .log")
        assert await page.evaluate(fits)
        await page.run("await page.locator('.views').getByText('Traffic').click()")
        await page.sees("request", within=".frames")
        await page.run("await page.locator('.frames .log button:not(:disabled)').first().click()")
        await page.sees("Copy", within=".frames")
        assert await page.evaluate(fits)
        await page.until("document.querySelector('.plot canvas')?.getBoundingClientRect().width > 200")
        await page.run("await page.locator('.views').getByText('Agents').click()")
        await page.sees("demo__add", within=".tools")
        assert await page.evaluate(fits)
        inside = (
            "[...document.querySelectorAll('.hosts button')].every((x) => x.getBoundingClientRect().right < innerWidth)"
        )
        assert await page.evaluate(inside)


async def test_everything_can_be_done_by_keyboard(pages: Pages) -> None:
    async with run_gateway(expose=["demo.add", "demo.slow"]) as gateway, console(pages, gateway, "") as page:
        await page.type("alice")  # the field has the focus
        await page.press("Enter")
        await page.sees("Answer with the sum of two numbers.")
        await page.press("Tab")
        assert await page.focus() == "a: Skip to the form"
        order: list[str] = []
        while not (order and order[-1].endswith("slow")):
            await page.press("Tab")
            order.append(await page.focus())
        assert order == [
            "button: Signed in as Alice",
            "button: Sign out",
            "button: Services",
            "button: Agents",
            "button: Refresh",
            "button: add",
            "button: slow",
        ]
        await page.press("Enter")
        await page.sees("Answer after some seconds")
        order = []
        for _ in range(5):
            await page.press("Tab")
            order.append(await page.focus())
        assert order[0] == "button: Edit as JSON"
        assert order[1].startswith("input: seconds float")
        assert [each.partition("  ")[0] for each in order[2:4]] == ["button: Call", "button: Send as command"]
        await page.press("Shift+Tab", "Shift+Tab", "Shift+Tab")
        assert (await page.focus()).startswith("input: seconds float")
        await page.type("0")
        await page.press("Control+Enter")
        await page.sees("slept", within=".answer pre")


async def test_the_chart_shows_the_round_trip_the_calls_and_the_rate_and_a_hole_for_an_outage(
    pages: Pages, gateway: RunningGateway
) -> None:
    # Chromium would read the chart faster if it were told before.
    async with console(pages, gateway, problems=("willReadFrequently",)) as page:
        samples = [(1.5, True), (None, True), (2.5, True), (None, False), (3.5, True)]
        listed = ", ".join(
            f"{{ at: {at}, roundTrip: {json.dumps(trip)}, isOpen: {json.dumps(is_open)}, call: null, rate: 0 }}"
            for at, (trip, is_open) in enumerate(samples)
        )
        line = f"import('./console/traffic.js').then(({{ columns }}) => columns([{listed}])[2].map(String))"
        # uPlot draws a line across undefined, and none across null.
        assert await page.evaluate(line) == ["1.5", "undefined", "2.5", "null", "3.5"]
        await choose(page, "slow")
        await call(page, seconds="1.2")
        await page.sees("slept", within=".answer pre")
        await page.until(f"!document.querySelector('.figures').innerText.includes('{UNKNOWN}')")
        label = await page.evaluate("document.querySelector('.plot').getAttribute('aria-label')")
        assert "Round trip to the gateway, median: " in label
        assert "Slowest call of each second, median: " in label
        # Something is drawn: the canvas has more than one colour.
        await page.until(
            """(() => {
                 const canvas = document.querySelector(".plot canvas");
                 const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
                 return new Set(new Uint32Array(data.buffer)).size > 3;
               })()"""
        )
        # Labels such as "1500 ms" are on the axis by now: nothing of them is at the edges of the canvas.
        assert await page.evaluate(
            """(() => {
                 const canvas = document.querySelector(".plot canvas");
                 const paint = canvas.getContext("2d");
                 return [0, canvas.width - 1].map((x) => paint.getImageData(x, 0, 1, canvas.height).data)
                   .every((pixels) => pixels.every((each) => each === 0));
               })()"""
        )
        await page.run("await page.emulateMedia({ colorScheme: 'dark' })")
        await page.until("document.querySelectorAll('.plot canvas').length === 1")


async def test_colours_are_the_systems_or_a_choice_that_lasts(pages: Pages, gateway: RunningGateway) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    async with console(pages, gateway) as page:
        light = await page.evaluate(background)
        await page.click("Signed in as Alice")
        await page.run("await page.getByLabel('Colours').selectOption('dark')")
        dark = await page.evaluate(background)
        assert dark != light
        assert await page.accessibility_problems() == []
        await page.go_to(gateway.site.http("/"))
        assert await page.evaluate(background) == dark
        await page.run("await page.emulateMedia({ colorScheme: 'dark' })")
        await sign_in(page, "alice")
        await page.click("Signed in as Alice")
        await page.run("await page.getByLabel('Colours').selectOption('light')")
        assert await page.evaluate(background) == light
        await page.run("await page.getByLabel('Colours').selectOption('system')")
        assert await page.evaluate(background) == dark
        assert await page.evaluate("localStorage.length") == 0


async def test_every_state_of_the_page_fits_a_phone_a_tablet_and_a_laptop(pages: Pages, tmp_path: Path) -> None:
    found: list[str] = []
    async with (
        run_gateway(mcp="on") as gateway,
        console(pages, gateway, "", path="/", problems=("WebSocket",)) as page,
    ):

        async def look(state: str) -> None:
            found.extend(await layout_problems(page, state, tmp_path))

        await look("sign-in")
        await sign_in(page, "bad")
        await page.sees("The gateway does not accept this token.")
        await look("refused")
        await sign_in(page, "alice:for:6")
        await page.sees("Connected")
        handler = be_patient(gateway)
        await page.click("Subscribe to demo.#")
        await page.sees("demo.tick", within=".events .log")
        await page.click("Call", within=".call")
        await page.sees("Required.")
        await look("incomplete")
        await call(page, a="20", b="22")
        await page.sees("42", within=".answer pre")
        await page.run("await page.getByText('Copy as code').click()")
        await page.run("await page.locator('.events .log button').first().click()")
        await look("answer")
        await choose(page, "fail")
        await page.click("Call", within=".call")
        await page.sees("service_error", within=".verdict")
        await page.run("await page.getByText('Earlier calls').click()")
        await look("error")
        await page.click("Signed in as Alice")
        await page.sees("Token expires")
        await look("identity")
        await page.press("Escape")
        await page.click("Agents", within=".views")
        await page.sees("demo__add", within=".tools")
        await look("agents")
        await page.click("Services", within=".views")
        await page.sees("The token expires soon")
        await look("token expires")
        manager = gateway.gateway.handler_manager
        manager.closed_for = 1.0
        manager.say_goodbye(handler, "draining")
        await page.sees("The gateway stops", within="header")
        await look("drain")
        manager.close_all(CloseCode.SLOW_CONSUMER, "too slow")
        await page.sees("The connection to the gateway is lost")
        await look("connection lost")
        manager.closed_for = None
        await page.fill("Newer token", "alice")
        await page.click("Continue")
        await page.sees("Connected", within="header")
        await look("returned")
        manager.close_all(CloseCode.DISCONNECTED, "for maintenance")
        await page.sees("The gateway has closed the connection for good")
        await look("closed")
    assert found == [], "\n".join(found)


async def test_pings_are_shown_only_if_they_are_wanted_and_all_frames_can_be_read(
    pages: Pages, gateway: RunningGateway
) -> None:
    async with console(pages, gateway) as page:
        await page.until(f"!document.querySelector('[data-series=gateway] dd').innerText.includes('{UNKNOWN}')")
        assert "pong" not in await page.text(".frames")
        await page.run("await page.getByLabel('Pings, acks').check()")
        await page.sees("pong", within=".frames")
        await page.click("Clear the frames")
        await page.click("Pause the frames")
        await call(page, a="2", b="3")
        await page.sees("5", within=".answer pre")
        assert "demo.add" not in await page.text(".frames")
        await page.click("Resume the frames")
        await page.sees("demo.add", within=".frames")
        await page.click("Pause the frames")
        await page.run("await page.locator('.frames li').filter({ hasText: 'demo.add' }).getByRole('button').click()")
        await page.sees('"method": "add"', within=".frames pre")

"""The gateway in host applications, and its use by them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.applications import Starlette
from starlette.authentication import AuthenticationError, requires
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from nuropb_gateway_asgi import (
    AuthenticationUnavailable,
    CallError,
    FunctionAuthenticator,
    Gateway,
    Identity,
    ServiceMeshManagerController,
    Settings,
    TokenAuthenticationBackend,
    combine_lifespans,
)
from nuropb_gateway_asgi.authentication import issue_token
from nuropb_gateway_asgi.exceptions import NotStartedError
from tests.kit.clients import connect, refusal, turned_away
from tests.kit.gateways import SERVERS, Server, Site, authorise_from_token, eventually, make_gateway, run_gateway, serve
from tests.kit.processes import run_module

SECRET = "a secret that is long enough to sign with, and no longer"


@contextlib.asynccontextmanager
async def http(site: Site) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=site.http(), trust_env=False, timeout=20) as client:
        yield client


async def converse(url: str) -> None:
    async with connect(url, "alice") as client:
        assert await client.result("demo.add", {"a": 1, "b": 2}) == 3


class Recorder:
    """Lifespans and event handlers that record when they run."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def lifespan(self, name: str, gateway: Gateway | None = None) -> Any:
        @contextlib.asynccontextmanager
        async def lifespan(app: Any) -> AsyncIterator[Mapping[str, Any]]:
            if gateway is not None:
                assert gateway.service_mesh_manager.started
            self.events.append(f"{name} begins")
            yield {name: "here"}
            if gateway is not None:
                assert gateway.service_mesh_manager.started
            self.events.append(f"{name} ends")

        return lifespan


# --- mounting ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", SERVERS)
async def test_as_the_lifespan_of_the_application(server: Server) -> None:
    gateway = make_gateway()
    app = FastAPI(lifespan=gateway.lifespan)
    app.mount("/gw", gateway.app)
    async with serve(app, server=server) as site:
        await converse(site.ws("/gw/ws"))
        async with http(site) as client:
            assert (await client.get("/gw/livez")).json() == {"alive": True}
            assert (await client.get("/gw/readyz")).status_code == 200
            assert (await client.get("/livez")).status_code == 404
    assert not gateway.service_mesh_manager.started


async def test_mounted_around_the_lifespan_of_the_application() -> None:
    gateway = make_gateway()
    recorder = Recorder()
    app = FastAPI(lifespan=recorder.lifespan("mine", gateway))

    @app.get("/state")
    async def state(request: Request) -> dict[str, Any]:
        return {"mine": request.state.mine}

    gateway.mount(app, "/gw")
    async with serve(app) as site:
        assert recorder.events == ["mine begins"]
        await converse(site.ws("/gw/ws"))
        async with http(site) as client:
            assert (await client.get("/state")).json() == {"mine": "here"}
    assert recorder.events == ["mine begins", "mine ends"]
    assert not gateway.service_mesh_manager.started


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_mounted_into_an_application_with_event_handlers() -> None:
    gateway = make_gateway()
    app = FastAPI()
    events: list[str] = []

    @app.on_event("startup")
    async def startup() -> None:
        assert gateway.service_mesh_manager.started
        events.append("startup")

    @app.on_event("shutdown")
    def shutdown() -> None:
        assert gateway.service_mesh_manager.started
        events.append("shutdown")

    gateway.mount(app)
    async with serve(app) as site:
        await converse(site.ws("/gateway/ws"))
        assert events == ["startup"]
    assert events == ["startup", "shutdown"]


async def test_mounted_into_starlette_at_its_root() -> None:
    gateway = make_gateway(path="/socket")
    app = Starlette(routes=[Route("/own", lambda request: JSONResponse("own"))])
    gateway.mount(app, "")
    async with serve(app) as site:
        await converse(site.ws("/socket"))
        async with http(site) as client:
            assert (await client.get("/own")).json() == "own"
            assert (await client.get("/livez")).status_code == 200


async def test_mounted_two_levels_deep() -> None:
    gateway = make_gateway()
    inner = Starlette(routes=[Mount("/gw", gateway.app)])
    app = Starlette(routes=[Mount("/api", inner)], lifespan=gateway.lifespan)
    async with serve(app) as site:
        await converse(site.ws("/api/gw/ws"))
        assert (await refusal(site.ws("/gw/ws"), "alice")).status == 403


async def test_routes_among_the_applications_own() -> None:
    gateway = make_gateway()
    app = Starlette(routes=[*gateway.routes(), Route("/own", lambda _: JSONResponse(1))], lifespan=gateway.lifespan)
    async with serve(app) as site:
        await converse(site.ws("/ws"))


async def test_lifespans_in_order_and_their_states_together() -> None:
    gateway = make_gateway()
    recorder = Recorder()
    lifespan = combine_lifespans(
        recorder.lifespan("first"), gateway.lifespan, recorder.lifespan("second", gateway), recorder.lifespan("third")
    )

    async def state(request: Request) -> JSONResponse:
        return JSONResponse([request.state.first, request.state.second, request.state.third])

    app = Starlette(routes=[Mount("/gw", gateway.app), Route("/state", state)], lifespan=lifespan)
    async with serve(app) as site:
        await converse(site.ws("/gw/ws"))
        async with http(site) as client:
            assert (await client.get("/state")).json() == ["here"] * 3
    begins = ["first begins", "second begins", "third begins"]
    assert recorder.events == [*begins, "third ends", "second ends", "first ends"]


async def test_a_lifespan_that_fails_ends_the_others(caplog: pytest.LogCaptureFixture) -> None:
    gateway = make_gateway()
    recorder = Recorder()

    @contextlib.asynccontextmanager
    async def broken(app: Any) -> AsyncIterator[None]:
        raise ZeroDivisionError
        yield

    app = Starlette(lifespan=combine_lifespans(recorder.lifespan("first"), gateway.lifespan, broken))
    with pytest.raises((AssertionError, RuntimeError), match="exited with 3"):
        async with serve(app):
            pass
    # The first lifespan's end is not reached, as in every context manager whose body raises.
    assert recorder.events == ["first begins"]
    assert not gateway.service_mesh_manager.started
    assert "ZeroDivisionError" in caplog.text


async def test_a_gateway_runs_again() -> None:
    gateway = make_gateway()
    for _ in range(2):
        async with run_gateway(gateway) as running:
            await converse(running.url)


async def test_a_gateway_runs_once_at_a_time() -> None:
    gateway = make_gateway()
    async with gateway.lifespan():
        with pytest.raises(RuntimeError, match="runs already"):
            async with gateway.lifespan():
                pass
        assert gateway.service_mesh_manager.started
    assert not gateway.service_mesh_manager.started


async def test_two_gateways_in_one_application() -> None:
    class Controller(ServiceMeshManagerController):
        def name(self) -> str | None:
            return self.service_name

    controllers = [Controller(), Controller()]
    gateways = [
        make_gateway(service_name=name, expose=[f"{name}.name", "demo.*"], service_controller=controller)
        for name, controller in zip(("one", "two"), controllers, strict=True)
    ]
    app = FastAPI()
    for gateway in gateways:
        gateway.mount(app, f"/{gateway.settings.service_name}")
    async with serve(app) as site:
        for number, name in enumerate(("one", "two")):
            async with connect(site.ws(f"/{name}/ws"), "alice") as client:
                assert await client.result(f"{name}.name") == name
                assert [len(gateway.handler_manager) for gateway in gateways] == [1 - number, number]
                other = "two" if name == "one" else "one"
                assert await client.error_code(f"{other}.name") == "permission_denied"
            await eventually(lambda: not any(len(gateway.handler_manager) for gateway in gateways))
        # Neither gateway receives the events of the other.
        async with connect(site.ws("/one/ws"), "alice") as one, connect(site.ws("/two/ws"), "alice") as two:
            for client in (one, two):
                await client.ask("subscribe", topics=["demo.news"])
            await one.result("demo.publish", {"topic": "demo.news", "event": 1})
            assert (await one.event("demo.news"))["event"] == 1
            assert await two.settled() == []


async def test_a_forgotten_lifespan_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    gateway = make_gateway()
    app = FastAPI()
    app.mount("/gw", gateway.app)
    url_path = "/gw/ws"
    async with serve(app) as site:
        for _ in range(3):
            refused = await refusal(site.ws(url_path), "alice")
            assert refused.status == 503
            assert int(refused.headers["Retry-After"]) > 0
        code, frame = await turned_away(site.ws(url_path), "alice", origin="http://localhost")
        assert (code, frame["retryable"]) == (1013, True)
        async with http(site) as client:
            assert (await client.get("/gw/livez")).status_code == 200
            ready = await client.get("/gw/readyz")
            assert (ready.status_code, ready.json()["reasons"]) == (503, ["the gateway was not started"])
    ours = [record for record in caplog.records if record.name.startswith("nuropb_gateway_asgi")]
    (error,) = [record for record in ours if record.levelno >= logging.ERROR]
    assert "gateway.mount(app" in error.getMessage()
    assert "lifespan=gateway.lifespan" in error.getMessage()
    assert len(gateway.handler_manager) == 0


async def test_a_signal_gets_to_the_server_when_all_gateways_are_drained() -> None:
    received: list[int] = []

    def of_the_server(number: int, frame: object) -> None:
        received.append(number)

    saved = signal.signal(signal.SIGTERM, of_the_server)
    try:
        gateways = [make_gateway(), make_gateway()]
        app = Starlette()
        for number, gateway in enumerate(gateways):
            gateway.mount(app, f"/{number}")
        async with serve(app) as site, contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(connect(site.ws(f"/{number}/ws"), "alice")) for number in (0, 1)]
            for client in clients:
                await client.request("demo.slow", {"seconds": 3600}, id="slow")
                await client.settled()
            signal.raise_signal(signal.SIGTERM)
            for client in clients:  # one gateway after the other, the innermost first
                await client.event("goodbye")
                assert received == []
                await client.send("cancel", id="slow")
                assert (await client.answer("slow"))["error"]["code"] == "cancelled"
            await eventually(lambda: received == [signal.SIGTERM])
            signal.raise_signal(signal.SIGTERM)
            assert received == [signal.SIGTERM, signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is of_the_server
    finally:
        signal.signal(signal.SIGTERM, saved)


async def test_an_authenticator_with_a_lifetime_has_the_gateways_and_may_say_that_it_cannot_tell() -> None:
    class Database:
        """A database of users that may be closed."""

        def __init__(self) -> None:
            self.events: list[str] = []
            self.problem: str | None = "database: not connected"
            self.warning: str | None = None

        async def __aenter__(self) -> None:
            self.events.append("entered")

        async def __aexit__(self, *exc_info: object) -> None:
            assert gateway.handler_manager.closed_for is not None  # the gateway refuses new connections
            self.events.append("left")

        async def __call__(self, token: str) -> Identity | None:
            if self.problem is not None:
                raise AuthenticationUnavailable(self.problem)
            return Identity(user_id=token, username=token, token=token)

    database = Database()
    gateway = make_gateway(authenticator=database)
    app = FastAPI()
    gateway.mount(app, "/gw")
    assert database.events == []
    async with serve(app) as site, http(site) as client:
        assert database.events == ["entered"]
        ready = await client.get("/gw/readyz")
        assert (ready.status_code, ready.json()["reasons"]) == (503, ["database: not connected"])
        assert (await refusal(site.ws("/gw/ws"), "alice")).status == 503
        assert gateway.handler_manager.statistics.refused == {"try_again_later": 1}
        database.problem, database.warning = None, "database: slow"
        ready = await client.get("/gw/readyz")
        assert (ready.status_code, ready.json()["warnings"]) == (200, ["database: slow"])
        await converse(site.ws("/gw/ws"))
    assert database.events == ["entered", "left"]


async def test_a_server_that_cannot_refuse_by_status() -> None:
    gateway = make_gateway()

    async def older(scope: Scope, receive: Receive, send: Send) -> None:
        await gateway.app({**scope, "extensions": {}} if scope["type"] == "websocket" else scope, receive, send)

    async with serve(older) as site:
        assert (await refusal(site.ws(), "bad")).status == 403
        await converse(site.ws())


# --- use by the application -------------------------------------------------------------------------------------


def host(gateway: Gateway) -> FastAPI:
    """Run an application whose endpoints call the mesh."""
    app = FastAPI()

    @app.get("/add/{a}/{b}")
    async def add(a: int, b: int) -> Any:
        return await gateway.service_mesh_manager.request("demo", "add", {"a": a, "b": b})

    @app.get("/whoami")
    async def whoami() -> Any:
        identity = Identity(user_id="ada", username="Ada", token="her-token")
        return await gateway.service_mesh_manager.request("demo", "whoami", identity=identity, trace_id="t")

    @app.get("/fail/{how}")
    async def fail(how: str) -> Any:
        try:
            await gateway.service_mesh_manager.request("demo", "fail", {"how": how})
        except CallError as error:
            return [error.code, error.error, error.retryable]

    @app.get("/slow")
    async def slow() -> Any:
        try:
            await gateway.service_mesh_manager.request("demo", "slow", {"seconds": 3600}, timeout=0.05)
        except CallError as error:
            return error.code

    @app.post("/news/{user}")
    async def news(user: str, request: Request) -> None:
        await gateway.service_mesh_manager.publish_event("demo.news", await request.json(), target=[user])

    gateway.mount(app, "/gw")
    return app


async def test_endpoints_call_the_mesh() -> None:
    gateway = make_gateway(expose=[])  # the policy applies to clients, not to the application
    async with serve(host(gateway)) as site, http(site) as client:
        assert (await client.get("/add/2/3")).json() == 5
        assert (await client.get("/whoami")).json() == {
            "user_id": "ada",
            "Authorization": "Bearer her-token",
            "trace_id": "t",
            "session_id": None,
        }
        assert (await client.get("/fail/validation")).json() == ["invalid_params", "NuropbValidationError", False]
        assert (await client.get("/fail/bug")).json()[0] == "service_error"
        assert (await client.get("/slow")).json() == "timeout"
        assert gateway.service_mesh_manager.in_flight == 0
        async with connect(site.ws("/gw/ws"), "ada") as ada, connect(site.ws("/gw/ws"), "bob") as bob:
            await bob.ask("subscribe", topics=["demo.news"])
            await client.post("/news/ada", json={"n": 1})
            assert (await ada.event("demo.news"))["event"] == {"n": 1}
            assert await bob.settled() == []
            assert await bob.error_code("demo.add", {"a": 1, "b": 1}) == "permission_denied"


async def test_the_mesh_is_called_before_and_after_it_runs() -> None:
    gateway = make_gateway()
    manager = gateway.service_mesh_manager
    for _ in range(2):
        with pytest.raises(NotStartedError, match="lifespan"):
            await manager.request("demo", "add", {"a": 1, "b": 1})
        with pytest.raises(NotStartedError, match="lifespan"):
            await manager.publish_event("demo.news", 1)
        async with gateway.lifespan():
            assert await manager.request("demo", "add", {"a": 1, "b": 1}) == 2


async def test_a_cancelled_request_leaves_nothing() -> None:
    gateway = make_gateway()
    async with serve(host(gateway)) as site:
        async with http(site) as client:
            assert (await client.get("/add/1/1")).json() == 2
        manager = gateway.service_mesh_manager
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await manager.request("demo", "slow", {"seconds": 3600})
        assert manager.in_flight == 0


async def test_the_gateways_tokens_at_the_applications_own_routes() -> None:
    authenticator = FunctionAuthenticator(authorise_from_token)
    gateway = make_gateway(authenticator=authenticator, auth_cookie="session", allowed_origins=["http://app.example"])

    def on_error(_: HTTPConnection, error: AuthenticationError) -> JSONResponse:
        return JSONResponse(str(error), status_code=401, headers={"WWW-Authenticate": "Bearer"})

    @requires("authenticated")
    async def me(request: Request) -> JSONResponse:
        user = request.user
        return JSONResponse([user.identity, user.display_name, user.full_identity.token])

    async def anybody(request: Request) -> JSONResponse:
        return JSONResponse(request.user.is_authenticated)

    backend = TokenAuthenticationBackend(authenticator, "session")
    app = Starlette(
        routes=[Route("/me", me, methods=["GET", "POST"]), Route("/anybody", anybody)],
        middleware=[Middleware(AuthenticationMiddleware, backend=backend, on_error=on_error)],
    )
    gateway.mount(app, "/gw")
    async with serve(app) as site, http(site) as client:
        bearer = {"Authorization": "Bearer alice:2"}
        cookie = {"Cookie": "session=alice"}
        assert (await client.get("/me", headers=bearer)).json() == ["alice", "Alice", "alice:2"]
        assert (await client.get("/me", headers=cookie)).json() == ["alice", "Alice", "alice"]
        assert (await client.post("/me", headers=cookie)).status_code == 403  # another site may have caused the request
        assert (await client.get("/me")).status_code == 403
        assert (await client.get("/anybody")).json() is False
        for headers in ({"Authorization": "Bearer bad"}, {"Authorization": "Basic x"}, bearer | cookie):
            response = await client.get("/anybody", headers=headers)
            assert (response.status_code, response.headers["WWW-Authenticate"]) == (401, "Bearer")
        # The middleware also sees WebSockets, and must not block them.
        await converse(site.ws("/gw/ws"))
        async with connect(site.ws("/gw/ws"), headers=[("Cookie", "session=alice")], origin="http://app.example"):
            pass
        async with connect(site.ws("/gw/ws"), hello=False) as by_frame:
            await by_frame.send("authorize", token="alice")
            await by_frame.event("hello")


# --- without an application -------------------------------------------------------------------------------------


async def test_uvicorn_serves_it_from_the_environment() -> None:
    settings = {"JWT_KEY": SECRET, "PATH": "/socket", "EXPOSE": "demo.add, demo.echo", "LOG_LEVEL": "warning"}
    async with run_module("uvicorn", "nuropb_gateway_asgi:app", "--port", "0", settings=settings) as process:
        port = (await process.line(r"Uvicorn running on http://127\.0\.0\.1:(\d+)"))[1]
        site = Site("127.0.0.1", int(port))
        async with connect(site.ws("/socket"), issue_token(SECRET, "alice")) as client:
            assert await client.result("demo.add", {"a": 1, "b": 2}) == 3
            assert await client.error_code("demo.whoami") == "permission_denied"
        assert (await refusal(site.ws("/socket"), "bad")).status == 401
        async with http(site) as browser:
            assert (await browser.get("/livez")).json() == {"alive": True}
            ready = await browser.get("/readyz")
            assert ready.status_code == 200
            assert ready.json() == {"ready": True, "reasons": [], "warnings": [], "mesh": {"connected": True}}
            assert (await browser.head("/readyz")).status_code == 200
            assert (await browser.post("/readyz")).status_code == 405
            assert (await browser.get("/socket")).status_code == 404
        async with connect(site.ws("/socket"), issue_token(SECRET, "alice")) as client:
            process.signal(signal.SIGTERM)
            await client.event("goodbye")
            assert (await client.closed()).code == 1012
        assert await process.wait() in (0, -signal.SIGTERM)
        assert "Traceback" not in process.output
        assert "ERROR" not in process.output
        assert SECRET not in process.output


async def test_ready_and_alive() -> None:
    gateway = Gateway(Settings())
    async with serve(gateway.app) as site, http(site) as client:
        assert gateway.not_ready() == []
        assert (await client.get("/readyz")).json()["ready"] is True
        await gateway.drain()
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["ready"], ready.json()["reasons"]) == (503, False, ["draining"])
        assert ready.headers["Cache-Control"] == "no-store"
        assert (await client.get("/livez")).status_code == 200
    assert gateway.not_ready() == ["the gateway was not started"]

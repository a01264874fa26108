"""The Python client with the real gateway: behaviour of Python alone, which the shared scripts cannot test."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import gc
import http.server
import logging
import signal
import socket
import ssl
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from nuropb_gateway_asgi import CallError, CloseCode, JWTAuthenticator
from nuropb_gateway_asgi.__main__ import main
from nuropb_gateway_asgi.authentication import issue_token
from nuropb_gateway_asgi.client import (
    Backoff,
    CallFailed,
    CallTimeout,
    Client,
    ConnectionClosed,
    ConnectionLost,
    GatewayError,
    GatewayEvent,
    InvalidParams,
    PermissionDenied,
    State,
    SyncClient,
    Unsubscribed,
    connect,
    connect_sync,
)
from nuropb_gateway_asgi.client import _link as client_link
from tests.integration.test_fleet import SECRET
from tests.kit.gateways import DEADLINE, RunningGateway, eventually, make_gateway, run_gateway
from tests.kit.processes import ROOT

QUICK = Backoff(0.01, 0.05)


@pytest.fixture
async def gateway() -> AsyncIterator[RunningGateway]:
    async with run_gateway() as running:
        yield running


@contextlib.contextmanager
def status_server(*answers: tuple[int, dict[str, str]]) -> Iterator[tuple[str, list[str]]]:
    """Run a server without WebSockets. Yields its URL, and the Authorization header of every request."""
    remaining = list(answers)
    tokens: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            tokens.append(self.headers["Authorization"])
            status, headers = remaining.pop(0) if len(remaining) > 1 else remaining[0]
            self.send_response(status)
            for name, value in {"Content-Length": "0", **headers}.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.server_address[1]}/ws", tokens
        finally:
            server.shutdown()
            thread.join()


def tokens(*given: str) -> Any:
    """Return a function that returns the tokens one after the other."""
    remaining = list(given)
    return lambda: remaining.pop(0)


# --- connecting ---------------------------------------------------------------------------------------------------


async def test_entering_waits_for_the_connection_and_leaving_closes_it(gateway: RunningGateway) -> None:
    async with connect(gateway.url, token="alice") as client:
        assert client.state == State("open")
        assert client.hello is not None
        assert (client.hello.user_id, client.hello.username) == ("alice", "Alice")
        assert client.hello.limits.max_in_flight == 64
        assert await client.request("demo", "add", {"a": 2, "b": 3}) == 5
    assert client.state == State("closed")
    await gateway.is_empty()
    with pytest.raises(ConnectionClosed) as caught:
        await client.request("demo", "add")
    assert caught.value.close_code == 1000


async def test_a_token_may_be_made_by_a_function_a_coroutine_function_or_not_at_all(gateway: RunningGateway) -> None:
    threads: list[threading.Thread] = []

    def blocking() -> str:
        threads.append(threading.current_thread())
        return "alice"

    async def asynchronous() -> str:
        return "alice"

    for token in (blocking, asynchronous, lambda: asynchronous()):
        async with connect(gateway.url, token=token) as client:
            assert client.hello is not None
            assert client.hello.user_id == "alice"
    assert threads[0] is not threading.main_thread()
    with pytest.raises(ConnectionClosed) as caught:
        async with connect(gateway.url, token=lambda: None):
            pass
    assert caught.value.reason == "there is no token any more"


async def test_a_client_without_a_token_is_told_long_before_the_gateway_gives_up(gateway: RunningGateway) -> None:
    with pytest.raises(ConnectionClosed) as caught:
        async with connect(gateway.url):
            pass
    assert (caught.value.close_code, caught.value.reason.partition(":")[0]) == (4502, "no token was given")


async def test_a_refused_token_is_replaced_once(gateway: RunningGateway) -> None:
    async with connect(gateway.url, token=tokens("bad", "alice"), backoff=QUICK) as client:
        assert client.hello is not None
    with pytest.raises(ConnectionClosed) as caught:
        async with connect(gateway.url, token=tokens("bad", "bad", "alice"), backoff=QUICK):
            pass
    assert (caught.value.close_code, caught.value.status) == (CloseCode.INVALID_TOKEN, 401)
    assert "bad" not in str(caught.value)
    assert type(caught.value.__cause__).__name__ == "InvalidStatus"


async def test_after_an_expired_token_the_function_is_asked_again_and_told_why() -> None:
    reasons: list[str] = []

    async def token(reason: str) -> str:
        reasons.append(reason)
        return issue_token(SECRET, "alice", lifetime=600 if len(reasons) > 2 else -600)

    gateway = make_gateway(authenticator=JWTAuthenticator(SECRET), jwt_key=SECRET)
    async with run_gateway(gateway) as running:
        async with connect(running.url, token=token, backoff=QUICK, proxy=None) as client:
            assert client.hello is not None
        assert reasons == ["connect", "expired", "expired"]
        expired = issue_token(SECRET, "alice", lifetime=-600)
        with pytest.raises(ConnectionClosed) as caught:
            async with connect(running.url, token=expired, backoff=QUICK, proxy=None):
                pass
    assert (caught.value.close_code, caught.value.status) == (CloseCode.TOKEN_EXPIRED, 401)


@pytest.mark.parametrize(
    "options",
    [
        {"proxy": "socks5://127.0.0.1:1"},
        {"proxy": "ftp://127.0.0.1:1"},
        {"proxy": "127.0.0.1:1"},
        {"proxy": "http://127.0.0.1:99999"},
    ],
)
async def test_a_proxy_that_cannot_be_used_ends_in_one_typed_error(options: Any) -> None:
    with pytest.raises(ConnectionClosed, match="cannot be used") as caught:
        async with connect("ws://127.0.0.1:1/ws", token="alice", backoff=QUICK, **options):
            pass
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(("status", "code"), [(400, 4505), (401, 4510), (403, 4513), (404, 1006), (410, 1006)])
async def test_a_handshake_that_is_refused_for_good_is_not_tried_again(status: int, code: int) -> None:
    with status_server((status, {})) as (url, seen):
        with pytest.raises(ConnectionClosed) as caught:
            async with connect(url, token="alice", backoff=QUICK):
                pass
        assert (caught.value.status, caught.value.close_code) == (status, code)
        assert seen == ["Bearer alice"]


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
@pytest.mark.parametrize("where", ["elsewhere", "here"])
async def test_no_token_follows_a_redirect(status: int, where: str) -> None:
    with status_server((200, {})) as (other, stolen):
        location = f"ws://user@{other.removeprefix('ws://')}" if where == "elsewhere" else "/other?key=hunter2"
        with (
            status_server((status, {"Location": location})) as (url, seen),
            pytest.raises(ConnectionClosed, match="redirects are not followed") as caught,
        ):
            async with connect(url, token="alice", backoff=QUICK):
                pass
    assert caught.value.status == status
    target = other if where == "elsewhere" else url
    assert target.removeprefix("ws").removesuffix("/ws") in caught.value.reason
    assert "hunter2" not in caught.value.reason
    assert (seen, stolen) == (["Bearer alice"], [])


async def test_a_release_of_websockets_with_another_way_to_redirect_gets_no_second_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(client_link._Connect, "process_redirect")
    with (
        status_server((200, {})) as (other, stolen),
        status_server((307, {"Location": other})) as (url, seen),
        pytest.raises(ConnectionClosed) as caught,
    ):
        async with connect(url, token="alice", open_timeout=0.5, backoff=QUICK):
            pass
    assert caught.value.__cause__ is not None
    assert "redirects are not followed" in str(caught.value.__cause__.__cause__)
    assert set(seen) == {"Bearer alice"}
    assert stolen == []


async def test_no_token_of_the_command_line_follows_a_redirect(capsys: pytest.CaptureFixture[str]) -> None:
    with status_server((200, {})) as (other, stolen), status_server((307, {"Location": other})) as (url, seen):
        status = await asyncio.to_thread(main, ["call", "demo", "add", "--url", url, "--token", "alice"])
        assert (status, "redirects are not followed" in capsys.readouterr().err) == (3, True)
    with (
        status_server((200, {})) as (other, stolen_too),
        status_server((307, {"Location": other.replace("ws:", "http:")})) as (url, seen_too),
    ):
        document = url.replace("ws:", "http:")
        assert await asyncio.to_thread(main, ["gen-client", "--lang", "py", document, "--token", "alice"]) == 1
        assert "HTTP status 307" in capsys.readouterr().err
    assert (seen, seen_too) == (["Bearer alice"], ["Bearer alice"])
    assert stolen == stolen_too == []


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_a_handshake_that_is_refused_for_now_is_tried_again(status: int) -> None:
    states: list[State] = []
    with status_server((status, {}), (status, {"Retry-After": "600"})) as (url, seen):
        client = connect(url, token=tokens("a", "b"), open_timeout=0, backoff=QUICK)
        async with client as entered:
            entered.on("state", states.append)
            await eventually(lambda: len([each for each in states if each.name == "reconnecting"]) == 2)
            first, second = (each for each in states if each.name == "reconnecting")
            assert isinstance(first.error, ConnectionLost)
            assert first.error.status == status
            assert first.delay is not None
            assert second.delay is not None
            assert first.delay < 1
            assert 600 <= second.delay <= 600.05
        assert seen == ["Bearer a", "Bearer b"]


async def test_a_gateway_that_is_not_there_is_waited_for_as_long_as_the_caller_says() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectionClosed, match=r"no connection within 0\.05 seconds") as caught:
        async with connect(f"ws://127.0.0.1:{port}/ws", open_timeout=0.05, backoff=QUICK):
            pass
    assert isinstance(caught.value.__cause__, ConnectionLost)
    assert isinstance(caught.value.__cause__.__cause__, OSError)


async def test_a_server_that_says_nothing_is_left() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"ws://127.0.0.1:{listener.getsockname()[1]}/ws"
        with pytest.raises(ConnectionClosed, match="connecting timed out"):
            async with connect(url, connect_timeout=0.05, reconnect=False):
                pass


async def test_what_is_wrong_with_tls_is_the_cause() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # A server without TLS: the error comes from the TLS handshake.
        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"wss://localhost:{listener.getsockname()[1]}/ws"
        with pytest.raises(ConnectionClosed) as caught:
            async with connect(url, ssl=ssl.create_default_context(), reconnect=False):
                pass
        thread.join()
        assert isinstance(caught.value.__cause__, ssl.SSLError)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"url": "http://127.0.0.1/ws"}, ValueError),
        ({"url": "127.0.0.1"}, ValueError),
        ({"url": "ws://127.0.0.1/ws", "retry": 5}, TypeError),
    ],
)
async def test_arguments_that_can_never_work_are_refused(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        async with connect(**arguments):
            pass


async def test_no_token_is_logged(gateway: RunningGateway, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        async with connect(gateway.url, token="alice:verysecret") as client:
            await client.authorize("alice:alsosecret")
            with pytest.raises(GatewayError) as caught:
                await client.authorize("bob:secrettoo")
    # The server runs in this process, too. Its debug log is not tested here.
    logged = "\n".join(record.getMessage() for record in caplog.records if not record.name.startswith("uvicorn"))
    assert "secret" not in logged
    assert "secret" not in f"{caught.value!r} {caught.value}"


async def test_a_message_that_is_too_big_for_the_client_costs_the_connection_and_not_more(
    gateway: RunningGateway,
) -> None:
    async with connect(gateway.url, token="alice", max_size=1000, backoff=QUICK) as client:
        with pytest.raises(ConnectionLost, match=r"1006: .*1000") as caught:
            await client.request("demo", "echo", {"text": "x" * 1000})
        assert caught.value.close_code == 1006
        assert await client.request("demo", "add", {"a": 2, "b": 3}) == 5


async def test_a_bug_of_the_client_closes_it_and_is_not_hidden(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> float:
        raise ZeroDivisionError

    with status_server((503, {})) as (url, _), pytest.raises(ConnectionClosed, match="the client failed") as caught:
        async with connect(url, backoff=Backoff(random=broken)):
            pass
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert "ZeroDivisionError" in caplog.text


# --- calls --------------------------------------------------------------------------------------------------------


async def test_errors_are_caught_by_the_names_that_python_has_for_them(gateway: RunningGateway) -> None:
    async with connect(gateway.url, token="alice") as client:
        with pytest.raises(TimeoutError) as late:
            await client.request("demo", "slow", {"seconds": 60}, timeout=0.05)
        assert isinstance(late.value, CallTimeout)
        with pytest.raises(CallError, match="invalid_params") as invalid:
            await client.request("demo", "fail", {"how": "validation"}, trace_id="t-42")
        assert isinstance(invalid.value, InvalidParams)
        assert isinstance(invalid.value, CallFailed)
        assert (invalid.value.code, invalid.value.error) == ("invalid_params", "NuropbValidationError")
        assert invalid.value.trace_id == "t-42"
        held = asyncio.create_task(client.request("demo", "slow", {"seconds": 60}))
        await eventually(lambda: gateway.occupancy[2] == 1)
        gateway.gateway.handler_manager.close_all()
        with pytest.raises(ConnectionError) as lost:
            await held
        assert isinstance(lost.value, ConnectionLost)


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        (([1],), {}, TypeError),
        (({"a": object()},), {}, TypeError),
        (({1: "a"}, "surplus"), {}, TypeError),
        (({},), {"timeout": 0}, ValueError),
        (({},), {"timeout": float("inf")}, ValueError),
        (({},), {"timeout": float("nan")}, ValueError),
    ],
)
async def test_a_call_that_can_never_be_sent_fails_at_once(
    gateway: RunningGateway, arguments: Any, options: Any, error: type[Exception]
) -> None:
    async with connect(gateway.url, token="alice") as client:
        with pytest.raises(error):
            await client.request("demo", "echo", *arguments, **options)
        assert await client.request("demo", "add", {"a": 2, "b": 3}) == 5


async def test_parameters_may_be_what_json_has_and_a_little_more(gateway: RunningGateway) -> None:
    async with connect(gateway.url, token="alice") as client:
        moment = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
        given = {
            "moment": moment,
            "numbers": (1, 2.5),
            "text": "é\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
        }
        assert await client.request("demo", "echo", given) == {
            "moment": "2026-01-02T03:04:05Z",
            "numbers": [1, 2.5],
            "text": "é😀",
        }


async def test_a_call_whose_task_is_cancelled_is_cancelled_at_the_gateway(gateway: RunningGateway) -> None:
    async with connect(gateway.url, token="alice") as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.request("demo", "slow", {"seconds": 60})
        await eventually(lambda: gateway.occupancy[2] == 0)
        assert gateway.gateway.service_mesh_manager.statistics.cancelled == 1


async def test_many_calls_at_a_time_keep_to_the_gateways_limit() -> None:
    async with run_gateway(max_in_flight=3) as gateway, connect(gateway.url, token="alice") as client:
        calls = [client.request("demo", "echo", {"number": number}) for number in range(200)]
        assert await asyncio.gather(*calls) == [{"number": number} for number in range(200)]


# --- events -------------------------------------------------------------------------------------------------------


async def test_leaving_does_not_wait_for_answers_that_nobody_reads_any_more(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_link, "CLOSING_TIMEOUT", 3600.0)
    async with asyncio.timeout(DEADLINE):
        async with connect(gateway.url, token="alice") as client:
            calls = [asyncio.ensure_future(client.request("demo", "echo", {"text": "x" * 1000})) for _ in range(64)]
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            calls += [asyncio.ensure_future(client.request("demo", "echo")) for _ in range(1000)]
            await asyncio.sleep(0)
        await asyncio.gather(*calls, return_exceptions=True)


async def test_a_subscription_is_in_force_within_its_block_and_ends_with_it(gateway: RunningGateway) -> None:
    async with connect(gateway.url, token="alice") as client:
        async with client.subscribe("demo.news") as events:
            await client.request("demo", "publish", {"topic": "demo.news", "event": {"n": 1}})
            async for event in events:
                assert (event.topic, event.event) == ("demo.news", {"n": 1})
                break
        with pytest.raises(StopAsyncIteration):
            await anext(events)
        with pytest.raises(PermissionDenied):
            async with client.subscribe("secret.#"):
                pass
        with pytest.raises(ValueError, match="name at least one topic"):
            client.subscribe([])


async def test_a_subscription_that_is_ended_before_it_was_in_force_says_so(gateway: RunningGateway) -> None:
    async with connect(gateway.url, token="alice") as client:
        subscription = client.subscribe("demo.news")
        waiting = asyncio.create_task(subscription.ready())
        await asyncio.sleep(0)
        subscription.unsubscribe()
        with pytest.raises(Unsubscribed, match="by the application"):
            await waiting


async def test_what_a_listener_raises_is_reported_and_harms_nobody(gateway: RunningGateway) -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    got: list[GatewayEvent] = []

    def broken(_: object) -> None:
        raise ZeroDivisionError

    try:
        async with connect(gateway.url, token="alice") as client:
            client.on("event", broken)
            remove = client.on("event", got.append)
            await client.subscribe("demo.news", broken).ready()
            await client.request("demo", "publish", {"topic": "demo.news"})
            await eventually(lambda: len(reported) == 2)
            remove()
            remove()
            await client.request("demo", "publish", {"topic": "demo.news"})
            await eventually(lambda: len(reported) == 4)
    finally:
        asyncio.get_running_loop().set_exception_handler(None)
    assert len(got) == 1
    assert all(isinstance(each["exception"], ZeroDivisionError) for each in reported)
    with pytest.raises(ValueError, match="unknown name 'events'"):
        client.on("events", got.append)  # type: ignore[call-overload]


async def test_a_warning_that_nobody_listens_to_is_logged(
    gateway: RunningGateway, caplog: pytest.LogCaptureFixture
) -> None:
    async with connect(gateway.url, token="alice") as client:
        client.subscribe("secret.#", lambda event: None)
        await eventually(lambda: "permission_denied" in caplog.text)


async def test_a_client_leaves_nothing_behind(gateway: RunningGateway) -> None:
    before = asyncio.all_tasks()
    for _ in range(20):
        async with connect(gateway.url, token=tokens("alice:for:60")) as client:
            client.subscribe("demo.#", lambda event: None)
            await client.request("demo", "add", {"a": 1, "b": 2})
    await gateway.is_empty()
    await eventually(lambda: asyncio.all_tasks() - before <= _of_the_server())
    del client
    gc.collect()
    assert not [each for each in gc.get_objects() if isinstance(each, Client)]


def _of_the_server() -> set[asyncio.Task[Any]]:
    return {task for task in asyncio.all_tasks() if "client" not in task.get_name()}


# --- without asyncio ----------------------------------------------------------------------------------------------


async def in_thread(function: Any, *arguments: Any) -> Any:
    return await asyncio.to_thread(function, *arguments)


async def test_everything_can_be_done_without_asyncio(gateway: RunningGateway) -> None:
    def script() -> None:
        with connect_sync(gateway.url, token=lambda: "alice") as client:
            assert isinstance(client, SyncClient)
            assert client.state == State("open")
            assert client.hello is not None
            assert client.hello.user_id == "alice"
            assert client.request("demo", "add", {"a": 2, "b": 3}) == 5
            client.command("demo", "echo", {"a": 2})
            assert list(client.describe("demo")["services"]) == ["demo"]
            with pytest.raises(InvalidParams):
                client.request("demo", "fail", {"how": "validation"})
            with client.subscribe("demo.news") as events:
                client.request("demo", "publish", {"topic": "demo.news", "event": 1})
                for event in events:
                    assert event.event == 1
                    break
                with pytest.raises(TimeoutError):
                    events.receive(timeout=0.01)
            assert list(events) == []
            with contextlib.closing(client.subscribe("demo.news")) as others:
                pass
            assert list(others) == []
            with pytest.raises(PermissionDenied):
                client.subscribe("secret.#")
            got: list[GatewayEvent] = []
            client.subscribe("demo.more", got.append)
            client.request("demo", "publish", {"topic": "demo.more", "event": 2})
            client.request("demo", "publish", {"topic": "demo.more", "event": 3})
            client.describe()
            assert [each.event for each in got][:1] == [2]
        client.close()
        assert client.state == State("closed")
        with pytest.raises(RuntimeError, match="the client is closed"):
            client.request("demo", "add")
        events.unsubscribe()

    before = threading.active_count()
    await in_thread(script)
    await gateway.is_empty()
    assert not [each for each in threading.enumerate() if each.name == "nuropb gateway client"]
    assert before > 0


async def test_a_script_that_cannot_connect_is_told_why_and_leaves_no_thread(gateway: RunningGateway) -> None:
    def script() -> None:
        with pytest.raises(ConnectionClosed) as caught:
            connect_sync(gateway.url, token="bad")
        assert caught.value.close_code == CloseCode.INVALID_TOKEN
        with pytest.raises(ValueError, match="must begin with ws://"):
            connect_sync("http://127.0.0.1/ws")

    await in_thread(script)
    assert not [each for each in threading.enumerate() if each.name == "nuropb gateway client"]


async def test_a_callback_that_waits_for_its_own_client_is_told_so(gateway: RunningGateway) -> None:
    def script() -> None:
        problems: list[str] = []

        with connect_sync(gateway.url, token="alice") as client:

            def callback(event: GatewayEvent) -> None:
                try:
                    client.request("demo", "add", {"a": 2, "b": 3})
                except RuntimeError as error:
                    problems.append(str(error))

            client.subscribe("demo.news", callback)
            with client.subscribe("demo.news") as events:
                client.request("demo", "publish", {"topic": "demo.news"})
                next(events)
            assert problems == ["a callback must not wait for its own client"]

    await in_thread(script)


WAITING_SCRIPT = """
import signal
import sys
from nuropb_gateway_asgi.client import connect_sync

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
with connect_sync(sys.argv[1], token="alice") as gateway:
    print("open", flush=True)
    {waiting}
"""


@pytest.mark.parametrize(
    "waiting", ['gateway.request("demo", "slow", {"seconds": 600})', 'next(gateway.subscribe("demo.nothing"))']
)
async def test_a_script_that_waits_is_ended_by_ctrl_c(gateway: RunningGateway, waiting: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WAITING_SCRIPT.replace("{waiting}", waiting), gateway.url,
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert await process.stdout.readline() == b"open\n"
    if "slow" in waiting:
        await eventually(lambda: gateway.occupancy[2] == 1)
    else:
        await eventually(lambda: gateway.gateway.service_mesh_manager.events.sessions)
    process.send_signal(signal.SIGINT)
    _, stderr = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == -signal.SIGINT
    assert stderr.decode().rstrip().endswith("KeyboardInterrupt")
    assert "was never retrieved" not in stderr.decode()
    await gateway.is_empty()


async def test_a_script_that_forgets_to_close_ends_all_the_same(gateway: RunningGateway) -> None:
    program = (
        "import sys; from nuropb_gateway_asgi.client import connect_sync; "
        "gateway = connect_sync(sys.argv[1], token='alice'); print(gateway.request('demo', 'add', {'a': 2, 'b': 3}))"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, gateway.url,
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said = await asyncio.wait_for(process.communicate(), 20)
    assert (process.returncode, said) == (0, (b"5\n", b""))


async def test_bytes_travel_both_ways(gateway: RunningGateway) -> None:
    async with connect(gateway.url, token="alice", binary=True) as client:
        sent = {"data": b"\x00\xff", "list": [b""], "text": "$bytes"}
        assert await client.request("demo", "echo", sent) == sent

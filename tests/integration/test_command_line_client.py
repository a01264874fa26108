"""The commands for clients with a real gateway: mostly in this process, in a process of their own for signals."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from click.shell_completion import ShellComplete

from nuropb_gateway_asgi import Gateway, Settings
from nuropb_gateway_asgi.__main__ import main
from nuropb_gateway_asgi.authentication import issue_token
from nuropb_gateway_asgi.cli import _completion, commands
from tests.kit.certificates import Certificate
from tests.kit.gateways import DEADLINE, RunningGateway, eventually, run_gateway
from tests.kit.processes import Process, run_forked, run_process
from tests.servers.web import Answer, WebServer, page

SECRET = "a secret that is long enough to sign with, and no longer"
PACKAGE = "nuropb_gateway_asgi"

#: Runs a command and returns its exit code, output and errors.
Run: TypeAlias = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def portal() -> Iterator[BlockingPortal]:
    """Run an event loop in another thread for servers, as a command runs its own event loop."""
    with start_blocking_portal() as portal:
        yield portal


@pytest.fixture(scope="module")
def gateway(portal: BlockingPortal) -> Iterator[RunningGateway]:
    options: dict[str, Any] = {"jwt_audience": "gateway", "expose": ["demo.*", "ghost.*"], "overload_delay": 0.0}
    made = Gateway(Settings(jwt_key=SECRET, **options))
    with portal.wrap_async_context_manager(run_gateway(made)) as running:
        yield running


@pytest.fixture
def token(request: pytest.FixtureRequest) -> str:
    """Issue a token to a user of this test alone: a user whose calls fail too often is disconnected."""
    return issue_token(SECRET, request.node.name[:100], aud="gateway")


@pytest.fixture
def run(
    gateway: RunningGateway, token: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    monkeypatch.setenv("NUROPB_GATEWAY_URL", gateway.url)
    monkeypatch.setenv("NUROPB_GATEWAY_TOKEN", token)

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(arguments)
        output, errors = capsys.readouterr()
        assert token not in output + errors
        return status, output, errors

    return run


def line(errors: str) -> str:
    """Return the one line on standard error, without its prefix."""
    assert re.fullmatch(r"nuropb-gateway: [^\n]+\n", errors), errors
    return errors.removeprefix("nuropb-gateway: ").rstrip("\n")


@contextlib.asynccontextmanager
async def process(gateway: RunningGateway, token: str, *arguments: str) -> AsyncIterator[Process]:
    settings = {"URL": gateway.url, "TOKEN": token}
    async with run_forked(PACKAGE, *arguments, settings=settings) as running:
        yield running


def hang_up(gateway: RunningGateway) -> None:
    for handler in gateway.gateway.handler_manager.handlers:
        handler.close(1012, "test")


# --- call -------------------------------------------------------------------------------------------------------


def test_a_result_is_json_in_one_line_where_nobody_looks(run: Run) -> None:
    assert run("call", "demo", "add", "a:=2", "b:=3") == (0, "5\n", "")
    assert run("call", "demo", "echo", '{"x": [1, null]}', "y=ä\x9b") == (0, '{"x":[1,null],"y":"ä\\u009b"}\n', "")


def test_a_url_may_be_that_of_the_console(gateway: RunningGateway, run: Run) -> None:
    url = gateway.url.replace("ws://", "http://").removesuffix("/ws")
    assert run("call", "demo.add", "a:=2", "b:=3", "--url", url) == (0, "5\n", "")


@pytest.mark.parametrize(
    "command", [["call", "demo.add"], ["listen", "demo.tick"], ["describe"], ["bench", "demo.add"]]
)
def test_a_command_without_a_token_says_at_once_where_one_comes_from(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.delenv("NUROPB_GATEWAY_TOKEN")
    status, _, errors = run(*command)
    assert (status, line(errors).partition(";")[0]) == (
        5,
        "unauthenticated: no token was given: set NUROPB_GATEWAY_TOKEN, or use --token-file",
    )


def test_a_command_has_no_result_and_raw_text_has_no_quotes(run: Run) -> None:
    assert run("call", "--command", "demo", "add", "a:=2", "b:=3") == (0, "", "")
    assert run("call", "--raw", "demo", "echo", "a=b") == (0, '{"a":"b"}\n', "")


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (
            ["demo", "add", "a=2", "b=3"],
            4,
            "invalid_params: demo.add: parameters of the wrong type: a (expected float), b (expected float)",
        ),
        (["demo.nothing"], 4, "method_not_found: "),
        (["demo", "add", "a=", "b=", "--trace-id", "t-1"], 4, "(trace id t-1)"),
        (["demo", "echo", "x=" + "x" * 70_000], 4, "payload_too_large: "),
        (["other", "method"], 5, "permission_denied: "),
        (["demo", "fail", "how=authentication"], 5, "unauthenticated: "),
        (["ghost", "method"], 6, "service_unavailable: "),
        (["demo", "slow", "seconds:=60", "--timeout", "0.05"], 7, "timeout: "),
        (["demo", "fail"], 1, "service_error: "),
        (["demo", "fail", "how=deprecated"], 1, "deprecated: "),
        (["demo", "add", "--token", "not.a.token"], 5, "HTTP status 401: A valid bearer token is required"),
        (["demo", "add", "--token", "x" * 9000], 5, "HTTP status 401"),
        (["demo", "add", "--url", "ws://127.0.0.1:1/ws"], 3, "connecting failed: nothing listens there; start"),
        (["demo", "add", "--url", "ws://nowhere.invalid/ws"], 3, "connecting failed: "),
        (["demo", "add", "--url", "amqp://127.0.0.1:1/ws"], 2, "https://gateway.example.com"),
        (["demo", "add", "--token", "two words"], 2, "the token contains spaces"),
        (["demo", "add", "--token-file", "/nowhere/token"], 2, "No such file"),
    ],
)
def test_a_failure_is_a_line_and_an_exit_code(run: Run, arguments: list[str], status: int, said: str) -> None:
    ended, output, errors = run("call", *arguments)
    assert (ended, output) == (status, "")
    assert said in line(errors)
    assert "two words" not in errors
    assert "xxx" not in errors


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ws://127.0.0.1:8000/ws", "demo.add"], "--url"),
        (["demo", "a:=2"], "SERVICE needs a METHOD"),
        (["demo", "add", "{"], "PARAMETERS: the object is not JSON"),
        (["demo", "add", "a"], "PARAMETERS: "),
        (["demo", "add", "--timeout", "0"], "--timeout"),
        (["demo", "add", "--token", "a", "--token-file", "b"], "cannot be combined"),
        (["demo"], "METHOD"),
    ],
)
def test_what_is_no_call(run: Run, arguments: list[str], said: str) -> None:
    status, output, errors = run("call", *arguments)
    assert (status, output) == (2, "")
    assert said in errors.splitlines()[-1]


def test_a_token_comes_from_a_file(run: Run, token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text(f"{token}\n")
    monkeypatch.setenv("NUROPB_GATEWAY_TOKEN", "another")
    assert run("call", "demo", "add", "a:=2", "b:=3", "--token-file", str(file)) == (0, "5\n", "")


async def test_what_comes_and_goes_by_pipes(gateway: RunningGateway, token: str) -> None:
    script = 'echo \'{"a": 2}\' | "$0" -m nuropb_gateway_asgi call demo add - b:=3 | cat'
    settings = {"URL": gateway.url, "TOKEN": token}
    async with run_process("/bin/sh", "-euc", script, sys.executable, settings=settings) as shell:
        assert (await shell.wait(), shell.stdout, shell.stderr) == (0, ["5"], [])


async def test_a_call_that_loses_its_connection_may_have_run(
    gateway: RunningGateway, portal: BlockingPortal, token: str
) -> None:
    async with process(gateway, token, "call", "demo", "slow", "seconds:=60") as caller:
        await eventually(lambda: gateway.occupancy[2] == 1)
        portal.call(hang_up, gateway)
        assert (await caller.wait(), caller.stdout) == (7, [])
        (said,) = caller.stderr
        assert "close code 1012" in said


# --- listen -----------------------------------------------------------------------------------------------------


def test_events_are_lines_of_json(run: Run) -> None:
    status, output, errors = run("listen", "demo.tick", "demo.other", "--count", "1")
    assert (status, line(errors)) == (0, "listening to demo.tick, demo.other")
    event = json.loads(output)
    assert (event["topic"], list(event["event"])) == ("demo.tick", ["count", "time"])


def test_a_topic_that_is_refused(run: Run) -> None:
    status, output, errors = run("listen", "other.#")
    assert (status, output) == (5, "")
    assert line(errors).startswith("permission_denied: ")


async def test_listening_survives_a_loss_tells_of_it_and_ends_with_ctrl_c(
    gateway: RunningGateway, portal: BlockingPortal, token: str
) -> None:
    async with process(gateway, token, "listen", "demo.tick") as listener:
        await listener.line('"topic":"demo.tick"')
        portal.call(hang_up, gateway)
        await listener.line(r"1012.*reconnecting in")
        await listener.line("reconnected")
        await listener.line('"topic":"demo.tick"')
        assert "missed" not in listener.output  # the session goes on
        listener.signal(signal.SIGINT)
        assert await listener.wait() == 130
        assert "Traceback" not in listener.output


# --- describe ---------------------------------------------------------------------------------------------------


def test_what_may_be_called_is_a_table(run: Run) -> None:
    status, output, errors = run("describe", "demo")
    assert (status, errors) == (0, "")
    assert re.search(r"^demo 1\.0\.0$", output, re.MULTILINE)
    assert re.search(r"^add a:=<float> b:=<float> +Answer with the sum of two numbers\.", output, re.MULTILINE)
    assert re.search(r"^slow \[seconds:=<float>\] ", output, re.MULTILINE)


def test_what_may_be_called_is_json(run: Run) -> None:
    status, output, _ = run("describe", "demo.add", "--json")
    assert (status, list(json.loads(output)["services"]["demo"]["methods"])) == (0, ["add"])
    status, output, _ = run("describe", "--json")
    found = json.loads(output)
    assert (status, list(found["services"]), found["unavailable"]) == (0, ["demo"], ["ghost"])


@pytest.mark.parametrize(("name", "status"), [("demo.nothing", 4), ("other", 5), ("other.method", 5), ("ghost", 6)])
def test_what_is_not_there_to_be_described(run: Run, name: str, status: int) -> None:
    ended, output, errors = run("describe", name)
    assert (ended, output) == (status, "")
    line(errors)


# --- bench ------------------------------------------------------------------------------------------------------


def test_so_many_calls_are_measured(run: Run) -> None:
    status, output, errors = run(
        "bench", "demo", "echo", "a=1", "--requests", "60", "--connections", "2", "--in-flight", "3", "--json"
    )
    report = json.loads(output)
    assert (status, errors) == (0, "")
    assert (report["answered"], report["errors"], report["connections"], report["in_flight"]) == (60, {}, 2, 3)
    latency = report["latency_ms"]
    assert list(latency) == ["min", "mean", "p50", "p90", "p99", "p99.9", "max"]
    assert 0 < latency["min"] <= latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
    assert sum(bucket["count"] for bucket in report["histogram"]) == 60


def test_a_measurement_is_drawn_and_ends_with_its_time(run: Run) -> None:
    status, output, errors = run("bench", "demo", "echo", "--duration", "0.2", "--in-flight", "65")
    assert (status, line(errors).split(";")[0]) == (0, "the gateway accepts 64 calls at a time on a connection")
    assert re.match(r"\d+ answers in [\d.]+ s: \d", output)
    assert re.search(r"^ +[\d.]+ to +[\d.]+ ms +\d+ [█▏▎▍▌▋▊▉]+$", output, re.MULTILINE)


def test_calls_that_fail_are_counted_by_code(run: Run) -> None:
    arguments = ("bench", "demo", "add", "a=", "b=", "--requests", "3")
    status, output, _ = run(*arguments, "--json")
    assert (status, json.loads(output)["errors"], json.loads(output)["latency_ms"]) == (1, {"invalid_params": 3}, {})
    assert "3 failed: invalid_params" in run(*arguments)[1]


def test_what_the_client_itself_refuses_ends_with_its_time_too(run: Run) -> None:
    status, output, _ = run("bench", "demo", "echo", "x=" + "x" * 70_000, "--duration", "0.1", "--json")
    assert (status, list(json.loads(output)["errors"])) == (1, ["payload_too_large"])


async def test_ctrl_c_shows_what_was_measured_by_then(gateway: RunningGateway, token: str) -> None:
    async with process(gateway, token, "bench", "demo", "slow", "seconds:=0.01", "--duration", "600") as bench:
        await eventually(lambda: gateway.occupancy[2] == 1)
        bench.signal(signal.SIGINT)
        assert await bench.wait() == 130
        assert re.match(r"\d+ answers in ", bench.stdout[0])
        assert "Traceback" not in bench.output


# --- doctor -----------------------------------------------------------------------------------------------------


def examine(run: Run, *arguments: str) -> tuple[dict[str, str], dict[str, str]]:
    """Run ``doctor``, and return the status of each step, and the findings of those that failed."""
    status, output, errors = run("doctor", "--json", "--timeout", "5", *arguments)
    report = json.loads(output)
    statuses = {step["step"]: step["status"] for step in report["steps"]}
    wrong = {
        step["step"]: f"{step['found']} -> {step['mend']}" for step in report["steps"] if step["status"] == "wrong"
    }
    assert (status, report["well"], errors) == ((1, False, "") if wrong else (0, True, ""))
    return statuses, wrong


STEPS = ["url", "dns", "tcp", "tls", "http", "clock", "token", "handshake", "hello", "describe", "call", "events"]


def test_all_is_well(portal: BlockingPortal, run: Run) -> None:
    made = Gateway(Settings(jwt_key=SECRET, overload_delay=0.0))
    with portal.wrap_async_context_manager(run_gateway(made)) as gateway:
        statuses, _ = examine(run, "demo", "add", "a:=2", "b:=3", "--topic", "demo.tick", "--url", gateway.url)
        assert statuses == dict.fromkeys(STEPS, "ok") | {"tls": "not checked"}
        status, output, errors = run("doctor", "--url", gateway.url)
        assert (status, errors) == (0, "")
        assert [each.split()[0] for each in output.splitlines()] == STEPS


def test_a_doctor_in_words(run: Run) -> None:
    status, output, _ = run("doctor", "--url", "ws://127.0.0.1:1/ws")
    assert status == 1
    assert re.search(
        r"^tcp +WRONG: nothing listens at 127\.0\.0\.1:1\n +-> check that the gateway runs", output, re.MULTILINE
    )
    halted = "not checked: tls, http, clock, handshake, hello, describe, call, events (an earlier step failed)"
    assert output.splitlines()[-1] == halted


@pytest.mark.parametrize(
    ("arguments", "step", "said"),
    [
        (["--url", "amqp://127.0.0.1/ws"], "url", "https://gateway.example.com"),
        (["--url", "ws://nowhere.invalid/ws"], "dns", "the name nowhere.invalid does not exist"),
        (["--url", "ws://127.0.0.1:1/ws"], "tcp", "nothing listens"),
        (["--token-file", "/nowhere/token"], "token", "No such file"),
        (["--token", "two words"], "token", "one word"),
        (["--token", "opaque"], "handshake", "401"),
        (["--token", issue_token(SECRET, "alice", aud="other")], "handshake", "audience other (JWT_AUDIENCE)"),
        (["--token", issue_token(SECRET + "!", "alice", aud="gateway")], "handshake", "the signing key"),
        (["other", "method"], "call", "permission_denied"),
        (["ghost", "method"], "call", "service_unavailable"),
        (["--topic", "other"], "events", "permission_denied"),
    ],
)
def test_what_is_wrong_is_found_where_it_is(run: Run, arguments: list[str], step: str, said: str) -> None:
    statuses, wrong = examine(run, *arguments)
    assert list(statuses) == STEPS
    assert said in wrong[step]
    # "ghost" is exposed, but no such service runs.
    assert wrong.keys() <= {step, "describe"}


@pytest.mark.parametrize(
    ("origin", "found"),
    [
        ("http://localhost:3000", "ok: a page of http://localhost:3000 may connect"),
        ("https://evil.example", "WRONG: a page of https://evil.example may not connect: Origin not allowed"),
    ],
)
def test_a_doctor_asks_whether_a_page_may_connect(run: Run, origin: str, found: str) -> None:
    _, output, _ = run("doctor", "--origin", origin)
    assert re.search(rf"^origin +{re.escape(found)}", output, re.MULTILINE)


def test_an_expired_token_is_known_before_it_is_refused(run: Run) -> None:
    _, wrong = examine(run, "--token", issue_token(SECRET, "alice", lifetime=-7200, aud="gateway"))
    assert "expired 2 hours ago" in wrong["token"]
    assert "the token step above" in wrong["handshake"]


def test_without_a_token_there_is_no_handshake(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NUROPB_GATEWAY_TOKEN")
    statuses, wrong = examine(run)
    assert "NUROPB_GATEWAY_TOKEN" in wrong["token"]
    assert statuses["handshake"] == "not checked"


def test_a_path_at_which_there_is_no_gateway(run: Run, gateway: RunningGateway) -> None:
    _, wrong = examine(run, "--url", gateway.site.ws("/gateway/ws"))
    assert "no gateway at this path" in wrong["handshake"]


def test_a_mesh_that_is_down(portal: BlockingPortal, run: Run) -> None:
    made = Gateway(Settings(mesh_url="amqp://127.0.0.1:1/", jwt_key=SECRET, expose=["orders.*"]))
    with portal.wrap_async_context_manager(run_gateway(made, is_open=False)) as gateway:
        _, wrong = examine(run, "orders", "get", "--url", gateway.url)
    assert "not ready: mesh: " in wrong["http"]
    assert "503" in wrong["handshake"]  # a revocation may be in the stream that it cannot read


@contextlib.contextmanager
def other_server(portal: BlockingPortal, answer: Answer, tls: ssl.SSLContext | None = None) -> Iterator[WebServer]:
    with portal.wrap_async_context_manager(WebServer.run(answer, tls=tls)) as server:
        yield server


def test_a_server_that_is_no_gateway(portal: BlockingPortal, run: Run) -> None:
    answer = page(b"<html>", "Date: Tue, 03 Feb 2026 10:00:00 GMT", status="200 OK")
    with other_server(portal, answer) as server:
        _, wrong = examine(run, "--url", f"ws://127.0.0.1:{server.port}/ws")
        assert "behind this machine's" in wrong["clock"]
        assert "HTTP status 200" in wrong["handshake"]
        _, wrong = examine(run, "--url", f"wss://127.0.0.1:{server.port}/ws", "--timeout", "0.2")
        assert "ws://" in wrong["tls"]


async def gibberish(writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 mail.example.com ESMTP\r\n\r\n")


def test_a_server_that_does_not_speak_http(portal: BlockingPortal, run: Run) -> None:
    with other_server(portal, gibberish) as server:
        statuses, wrong = examine(run, "--url", f"ws://127.0.0.1:{server.port}/ws")
    assert "not answer in HTTP" in wrong["http"]
    assert statuses["handshake"] == "not checked"


def test_a_certificate_that_nobody_knows(
    portal: BlockingPortal, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = Certificate.make(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate.certificate, certificate.key)
    with other_server(portal, page(b"", status="404 Not Found"), tls) as server:
        url = f"wss://127.0.0.1:{server.port}/ws"
        _, wrong = examine(run, "--url", url)
        assert "is self-signed" in wrong["tls"]
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate.certificate))
        statuses, wrong = examine(run, "--url", url)
        assert statuses["tls"] == "ok"
        assert "HTTP status 404" in wrong["handshake"]


def test_a_proxy_that_is_not_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://user:hunter2@127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "")
    _, wrong = examine(run)
    assert wrong["tcp"].startswith("the proxy 127.0.0.1:1 does not answer")
    assert "hunter2" not in str(wrong)


# --- completion -------------------------------------------------------------------------------------------------


def complete(words: str) -> set[str]:
    *before, incomplete = words.split(" ")
    completion = ShellComplete(commands, {}, "nuropb-gateway", "_NUROPB_GATEWAY_COMPLETE")
    return {item.value for item in completion.get_completions(before, incomplete)}


@pytest.mark.usefixtures("run")
def test_the_shell_completes_what_the_gateway_describes(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patient:
        # A busy machine takes longer than a user waits.
        patient.setattr(_completion, "COMPLETION_TIMEOUT", DEADLINE)
        assert complete("call d") == {"demo"}
        assert complete("bench demo ") == {"add", "echo", "fail", "publish", "slow", "whoami"}
        assert complete("doctor demo w") == {"whoami"}
    assert complete("describe g") == set()  # it does not answer


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize(
    "options", ["--url ws://127.0.0.1:1/ws", "--url no", "--token-file /nowhere", "--token-file -"]
)
def test_the_shell_completes_nothing_where_anything_is_wrong(options: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert complete(f"call {options} ") == set()
    assert capsys.readouterr() == ("", "")

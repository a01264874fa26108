"""``serve`` with workers, Unix sockets and file descriptors, TLS, and reloading."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import httpx
import pytest
from uvicorn.config import STARTUP_FAILURE

from nuropb_gateway_asgi.__main__ import main
from nuropb_gateway_asgi.authentication import issue_token
from nuropb_gateway_asgi.cli.serve.workers import reloaded_app
from tests.kit.certificates import Certificate
from tests.kit.clients import RawClient, connect, refusal
from tests.kit.gateways import DEADLINE, eventually
from tests.kit.processes import ROOT, Process, run_module, run_process

SECRET = "a secret that is long enough to sign with, and no longer"
TOKEN = issue_token(SECRET, "alice")
PACKAGE = "nuropb_gateway_asgi"


@contextlib.asynccontextmanager
async def serving(
    *arguments: str, environment: dict[str, str] | None = None, start_new_session: bool = False, **settings: str
) -> AsyncIterator[tuple[Process, str]]:
    """Run the gateway on a free port with the key of TOKEN, and yield its URL."""
    command = (PACKAGE, "serve", "--port", "0", *arguments)
    async with run_module(
        *command,
        settings={"JWT_KEY": SECRET, **settings},
        environment=environment,
        start_new_session=start_new_session,
    ) as process:
        yield process, (await process.line(r"The gateway is at ([^\s\"]+)"))[1]


def workers(process: Process) -> list[int]:
    """Return the process ids of the running workers, from the log."""
    pids = [int(pid) for pid in re.findall(r"Started server process \[(\d+)\]", process.output)]
    return [pid for pid in pids if is_running(pid)]


def is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    return False


async def ready(process: Process, count: int = 2) -> list[int]:
    """Wait until ``count`` workers have started, and return the running ones."""
    await eventually(lambda: process.output.count("Application startup complete") >= count)
    return workers(process)


# --- files ------------------------------------------------------------------------------------------------------


async def test_who_only_opens_connections_takes_neither_the_files_nor_the_log() -> None:
    command = f"ulimit -n 120; exec {sys.executable} -m {PACKAGE} serve --port 0"
    settings = {"JWT_KEY": SECRET, "HANDSHAKE_RATE_PER_ADDRESS": "off"}
    async with contextlib.AsyncExitStack() as stack:
        process = await stack.enter_async_context(run_process("bash", "-c", command, settings=settings))
        url = (await process.line(r"^The gateway is at (\S+)"))[1]
        client = await stack.enter_async_context(connect(url, TOKEN))
        for _ in range(300):
            await stack.enter_async_context(RawClient.open(url))
        async with connect(url, TOKEN) as other:
            assert await other.result("demo.add", {"a": 1, "b": 2}) == 3
        assert await client.result("demo.add", {"a": 1, "b": 2}) == 3
        await process.line(
            r"the limit of open files allows only 56 connections, MAX_CONNECTIONS is 10000; raise the limit"
        )
        assert len(process.stderr) < 50


# --- workers ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Process, str, Path]]:
    """Run two workers, and yield the process, its URL and its temporary directory. A test may kill a worker."""
    directory = tmp_path_factory.mktemp("workers")
    async with serving("--workers", "2", environment={"TMPDIR": str(directory)}) as (process, url):
        await ready(process)
        yield process, url, directory
        process.signal(signal.SIGTERM)
        assert await process.wait() == 0
        assert workers(process) == []
        assert "Traceback" not in process.output
    assert list(directory.glob("nuropb-gateway-*")) == []


async def test_a_hangup_reaches_the_workers_and_disconnects_nobody(pair: tuple[Process, str, Path]) -> None:
    process, url, _ = pair
    before = workers(process)
    async with connect(url, TOKEN) as client:
        process.signal(signal.SIGHUP)
        await eventually(lambda: process.output.count("SIGHUP ignored: there is no policy file") == 2)
        assert await client.result("demo.add", {"a": 1, "b": 1}) == 2
    assert workers(process) == before


async def test_whichever_worker_is_asked_it_has_the_metrics_of_all(pair: tuple[Process, str, Path]) -> None:
    _, url, directory = pair
    assert len(list(directory.glob("nuropb-gateway-metrics-*/*.db"))) > 2
    async with contextlib.AsyncExitStack() as stack, httpx.AsyncClient(trust_env=False) as browser:
        instances: list[str] = []
        while len(set(instances)) < 2:
            client = await stack.enter_async_context(connect(url, TOKEN))
            instances.append(client.hello["instance_id"])

        async def connections() -> float:
            response = await browser.get(url.replace("ws://", "http://").replace("/ws", "/metrics"))
            match = re.search(r'^nuropb_gateway_connections{transport="websocket"} (\S+)$', response.text, re.MULTILINE)
            return float(match[1]) if match else 0

        async with asyncio.timeout(DEADLINE):
            while await connections() < len(instances):  # the other worker writes its metrics every 5 s
                await asyncio.sleep(0.1)


async def test_a_worker_that_dies_is_replaced(pair: tuple[Process, str, Path]) -> None:
    process, url, _ = pair
    first, second = workers(process)
    os.kill(first, signal.SIGKILL)
    await ready(process, 3)
    assert len(workers(process)) == 2
    assert second in workers(process)
    async with connect(url, TOKEN) as client:
        assert await client.result("demo.add", {"a": 1, "b": 1}) == 2


#: Makes a worker import for longer than the 5 s that uvicorn's own supervisor waits.
SLOW_START: Final = """
import sys, time
if any("spawn_main" in each for each in sys.orig_argv):
    time.sleep(6)
"""


async def test_workers_that_start_slowly_are_waited_for(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SLOW_START)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    async with serving("--workers", "2", environment={"PYTHONPATH": path}) as (process, _):
        await ready(process)
        assert "died" not in process.output


async def test_workers_drain_together_when_a_terminal_interrupts_all_that_runs_in_it() -> None:
    async with (
        serving("--workers", "2", start_new_session=True) as (process, url),
        contextlib.AsyncExitStack() as stack,
    ):
        await ready(process)
        clients = [await stack.enter_async_context(connect(url, TOKEN)) for _ in range(12)]
        for client in clients:
            await client.request("demo.slow", {"seconds": 0.7}, id="slow")
            await client.settled()
        os.killpg(process.pid, signal.SIGINT)
        for client in clients:
            assert (await client.event("goodbye"))["event"]["reason"] == "draining"
            assert (await client.answer("slow"))["error"] is None
            assert (await client.closed()).code == 1012
        assert await process.wait() == 0
        assert workers(process) == []


async def test_a_second_signal_ends_the_drain_of_workers() -> None:
    async with serving("--workers", "2", DRAIN_TIMEOUT="3600") as (process, url), connect(url, TOKEN) as client:
        await ready(process)
        await client.request("demo.slow", {"seconds": 3600})
        await client.settled()
        process.signal(signal.SIGINT)
        await client.event("goodbye")
        process.signal(signal.SIGINT)
        assert (await client.closed()).code == 1012
        assert await process.wait() == 0


async def test_workers_end_with_a_parent_that_is_killed() -> None:
    async with serving("--workers", "2") as (process, url), connect(url, TOKEN) as client:
        await ready(process)
        process.signal(signal.SIGKILL)
        assert (await client.closed()).code == 1012
        await eventually(lambda: workers(process) == [])


async def test_workers_on_the_embedded_mesh_need_a_key() -> None:
    async with run_module(PACKAGE, "serve", "--port", "0", "--workers", "2") as process:
        assert await process.wait() == 2
        assert process.stdout == []
        (line,) = process.stderr
        assert line.startswith("nuropb-gateway: NUROPB_GATEWAY_JWT_KEY: not set, so every worker")


def test_a_worker_that_cannot_start_says_why_and_is_known_by_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NUROPB_GATEWAY_MAX_IN_FLIGHT", "many")
    with pytest.raises(SystemExit, match=str(STARTUP_FAILURE)):
        reloaded_app()
    assert capsys.readouterr().err.startswith("nuropb-gateway: NUROPB_GATEWAY_MAX_IN_FLIGHT: not a number")


# --- where it listens -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [(), ("--workers", "2")], ids=["alone", "workers"])
async def test_a_unix_socket_for_owner_and_group(arguments: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "gateway.sock"
    async with serving("--uds", str(path), *arguments) as (process, url):
        assert url == str(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        with socket.socket(socket.AF_UNIX) as peer:
            peer.setblocking(False)
            peer.connect(str(path))
            headers = [("X-Forwarded-For", "192.0.2.7")]
            async with connect("ws://gateway/ws", TOKEN, sock=peer, headers=headers) as client:
                assert await client.result("demo.add", {"a": 1, "b": 1}) == 2
        await process.line("192.0.2.7")
        process.signal(signal.SIGTERM)
        assert await process.wait() == 0
    assert not path.exists()


async def test_a_unix_socket_that_was_left_behind_is_replaced_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "gateway.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    async with serving("--uds", str(path)) as (first, _):
        async with run_module(PACKAGE, "--uds", str(path), settings={"JWT_KEY": SECRET}) as second:
            assert await second.wait() == 2
            assert "in use" in second.stderr[-1]
        # Another file takes its place.
        path.unlink()
        path.write_text("kept")
        first.signal(signal.SIGTERM)
        assert await first.wait() == 0
    assert path.read_text() == "kept"
    async with run_module(PACKAGE, "--uds", str(path), settings={"JWT_KEY": SECRET}) as third:
        assert await third.wait() == 2
    assert path.read_text() == "kept"


async def test_a_socket_that_is_bound_already() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.fileno()
        command = (PACKAGE, "serve", "--fd", str(number))
        async with run_module(*command, settings={"JWT_KEY": SECRET}, pass_fds=[number]) as process:
            url = (await process.line(r"^The gateway is at (\S+)"))[1]
            assert url == f"ws://127.0.0.1:{listener.getsockname()[1]}/ws"
            async with connect(url, TOKEN) as client:
                assert await client.result("demo.add", {"a": 1, "b": 1}) == 2


async def test_tls_without_a_proxy(tmp_path: Path) -> None:
    certificate = Certificate.make(tmp_path)
    files = ("--ssl-certfile", str(certificate.certificate), "--ssl-keyfile", str(certificate.key))
    async with serving(*files) as (process, url):
        assert url.startswith("wss://127.0.0.1:")
        async with connect(url, TOKEN, ssl=certificate.client()) as client:
            await client.send_text("x" * 1_000_000)
            assert (await client.closed()).code == 1009
        arguments = ("call", "demo", "add", "a:=2", "b:=3", "--url", url)
        environment = {"SSL_CERT_FILE": str(certificate.certificate)}
        async with run_module(PACKAGE, *arguments, settings={"TOKEN": TOKEN}, environment=environment) as caller:
            assert (await caller.wait(), caller.stdout, caller.stderr) == (0, ["5"], [])
        process.signal(signal.SIGTERM)
        assert await process.wait() == 0
        assert "Traceback" not in process.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--uds", "a", "--fd", "3"], "cannot be combined"),
        (["--reload", "--workers", "2"], "cannot be combined"),
        (["--workers", "0"], "--workers"),
        (["--log-level", "loud"], "--log-level"),
        (["--ssl-certfile", "cert.pem"], "give both"),
        (["--root-path", "gw"], "begins with a slash"),
        (["--log-config", "/nowhere.json"], "NUROPB_GATEWAY_LOG_CONFIG: /nowhere.json: No such file or directory"),
        (["--shutdown-delay", "-1"], "NUROPB_GATEWAY_SHUTDOWN_DELAY: -1.0 is out of range"),
        (["--ssl-certfile", "/nowhere.pem", "--ssl-keyfile", "/nowhere.key"], "--ssl-certfile, --ssl-keyfile: "),
    ],
)
def test_options_that_do_not_do(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUROPB_GATEWAY_JWT_KEY", SECRET)
    for name, value in (("SHUTDOWN_DELAY", "0"), ("LOG_CONFIG", "")):
        monkeypatch.setenv(f"NUROPB_GATEWAY_{name}", value)  # the option changes it
    assert main(["serve", *arguments]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert said in errors.splitlines()[-1]


async def test_a_place_where_nobody_can_listen() -> None:
    async with (
        run_module(PACKAGE, "--fd", "0", settings={"JWT_KEY": SECRET}) as no_socket,
        run_module(PACKAGE, "--uds", "/nowhere/socket", settings={"JWT_KEY": SECRET}) as no_directory,
    ):
        for process, said in ((no_socket, ""), (no_directory, "/nowhere/socket: No such file or directory")):
            assert await process.wait() == 2
            assert process.stdout == []
            assert process.stderr[-1].startswith("nuropb-gateway: ")
            assert said in process.stderr[-1]
            assert "Traceback" not in process.output


# --- the rest ---------------------------------------------------------------------------------------------------


async def test_a_change_of_a_file_starts_it_again_with_the_same_token(tmp_path: Path) -> None:
    (tmp_path / "some_module.py").write_text("")
    async with run_module(PACKAGE, "serve", "--port", "0", "--reload", cwd=tmp_path) as process:
        url = (await process.line(r"^The gateway is at (\S+)"))[1]
        token = (await process.line(r"^[\w-]+\.[\w-]+\.[\w-]+$"))[0]
        # At once, as it is told: a client waits for the process that is still to start.
        async with connect(url, token) as client:
            changed = 2e9
            while "detected changes" not in process.output:  # the reloader may not have looked yet
                os.utime(tmp_path / "some_module.py", (changed, changed))
                changed += 1
                await asyncio.sleep(1)
            assert (await client.closed()).code == 1012
        await ready(process, 2)
        async with connect(url, token) as client:
            assert await client.result("demo.add", {"a": 1, "b": 1}) == 2
        process.signal(signal.SIGINT)
        assert await process.wait() == 0
        assert workers(process) == []


@pytest.mark.parametrize(
    ("arguments", "count"), [((), 1), (("--workers", "2"), 2), (("--reload",), 1)], ids=["alone", "workers", "reload"]
)
async def test_json_is_all_that_is_printed(arguments: tuple[str, ...], count: int, tmp_path: Path) -> None:
    # A warning of Python, a library that prints, and a library that logs.
    (tmp_path / "prometheus_client.py").write_text(
        "import logging, sys, warnings\n"
        "warnings.warn('old')\nprint('{printed', end='')\nlogging.getLogger('other').warning('logged')\n"
        "raise ModuleNotFoundError('not here')\n"
    )
    async with serving(
        *("--log-level", "debug", *arguments),
        environment={"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])},
        LOG_FORMAT="json",
        LOG_LEVEL="error",
        MAX_CONNECTION="3",  # misspelt
    ) as (process, url):
        await ready(process, count)
        assert (await refusal(f"{url}?secret", "nobody's")).status == 401
        process.signal(signal.SIGTERM)
        assert await process.wait() == 0
    lines = [json.loads(line) for line in process.stdout + process.stderr]
    entries = [line for line in lines if "InstrumentationScope" in line]  # the others are for a host's configuration
    assert {"uvicorn.error", "nuropb_gateway_asgi.gateway", "stdout", "stderr"} <= {
        each["InstrumentationScope"]["Name"] for each in entries
    }
    assert "DEBUG" in {entry["SeverityText"] for entry in entries}
    messages = [entry["Body"] for entry in entries]
    assert any(message.endswith('"WebSocket /ws" 401') for message in messages)
    assert any(message.endswith("UserWarning: old") for message in messages)
    assert any(message.startswith("NUROPB_GATEWAY_MAX_CONNECTION is not a setting") for message in messages)
    assert {"logged", "{printed"} <= set(messages)


#: The same logging configuration in each of its notations. The names of loggers that it lacks are silenced by default.
LOG_FILES = {
    "logging.json": json.dumps(
        {
            "version": 1,
            "formatters": {"short": {"format": "%(levelname)s|%(name)s|%(message)s"}},
            "handlers": {"out": {"class": "logging.StreamHandler", "formatter": "short", "stream": "ext://sys.stdout"}},
            "root": {"level": "DEBUG", "handlers": ["out"]},
        }
    ),
    "logging.yaml": """
version: 1
formatters: {short: {format: "%(levelname)s|%(name)s|%(message)s"}}
handlers: {out: {class: logging.StreamHandler, formatter: short, stream: ext://sys.stdout}}
root: {level: DEBUG, handlers: [out]}
""",
    "logging.ini": """
[loggers]
keys = root
[handlers]
keys = out
[formatters]
keys = short
[logger_root]
level = DEBUG
handlers = out
[handler_out]
class = StreamHandler
args = (sys.stdout,)
formatter = short
[formatter_short]
format = %(levelname)s|%(name)s|%(message)s
""",
}


# Workers read the file as a process alone does, so one notation will do.
@pytest.mark.parametrize(
    ("count", "name"),
    [*((1, name) for name in LOG_FILES), (2, "logging.yaml")],
    ids=[*(f"alone-{name}" for name in LOG_FILES), "workers-logging.yaml"],
)
async def test_a_logging_configuration_has_its_format_and_the_log_no_secrets(
    name: str, count: int, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(LOG_FILES[name])
    arguments = ("--log-config", str(tmp_path / name), "--workers", str(count))
    async with serving(*arguments) as (process, url):
        await eventually(lambda: process.output.count("INFO|uvicorn.error|Application startup complete") == count)
        assert len(re.findall(r"INFO\|nuropb_gateway_asgi\.gateway\|gateway \S+ started", process.output)) == count
        assert (await refusal(f"{url}?secret", "nobody's")).status == 401
        async with connect(url, TOKEN) as client:
            assert await client.result("demo.add", {"a": 1, "b": 1}) == 2
        async with httpx.AsyncClient(trust_env=False) as browser:
            await browser.get(url.replace("ws://", "http://").replace("/ws", "/livez?secret"))
        await process.line(r'^INFO\|uvicorn\.error\|\S+ - "WebSocket /ws" 401$')
        await process.line(r'^INFO\|uvicorn\.access\|\S+ - "GET /livez HTTP/1\.1" 200$')
        process.signal(signal.SIGTERM)
        assert await process.wait() == 0
    assert "DEBUG|nuropb_gateway_asgi." in process.output
    assert not [secret for secret in ("secret", "nobody's", TOKEN, SECRET) if secret in process.output]
    assert process.stderr == []


async def test_an_option_overrides_the_levels_of_a_logging_configuration(tmp_path: Path) -> None:
    (tmp_path / "logging.json").write_text(LOG_FILES["logging.json"])
    arguments = ("--log-config", str(tmp_path / "logging.json"), "--log-level", "warning")
    async with serving(*arguments) as (process, _):
        process.signal(signal.SIGTERM)
        assert await process.wait() == 0
    assert "WARNING|nuropb_gateway_asgi." in process.output
    assert not re.search(r"(INFO|DEBUG)\|(uvicorn|nuropb_gateway_asgi)\b", process.output)


async def test_the_setting_of_a_logging_configuration_holds_under_uvicorn(tmp_path: Path) -> None:
    (tmp_path / "logging.json").write_text(LOG_FILES["logging.json"])
    settings = {"JWT_KEY": SECRET, "LOG_CONFIG": str(tmp_path / "logging.json")}
    async with run_module("uvicorn", f"{PACKAGE}:app", "--port", "0", settings=settings) as process:
        await process.line(r"^INFO\|nuropb_gateway_asgi\.gateway\|gateway \S+ started")
        process.signal(signal.SIGTERM)
        await process.wait()


@pytest.mark.parametrize(
    ("arguments", "settings", "said"),
    [
        ((), {"MAX_IN_FLIGHT": "many"}, "NUROPB_GATEWAY_MAX_IN_FLIGHT: not a number"),
        (("--uds", "a", "--fd", "3"), {}, "--uds and --fd cannot be combined"),
        (("--no-such-option",), {}, "No such option"),
        (("--uds", "/nowhere/socket"), {}, "/nowhere/socket: No such file or directory"),
    ],
    ids=["setting", "options", "unknown option", "address"],
)
async def test_what_stops_the_start_is_json(arguments: tuple[str, ...], settings: dict[str, str], said: str) -> None:
    chosen = {"JWT_KEY": SECRET, "LOG_FORMAT": "JSON", **settings}
    async with run_module(PACKAGE, "serve", *arguments, settings=chosen) as process:
        assert await process.wait() == 2
    assert said in [json.loads(line) for line in process.stdout + process.stderr][-1]["Body"]


async def test_workers_without_a_temporary_directory_go_on_without_shared_metrics() -> None:
    # A process that may not write files, as in a container with read-only file systems.
    # Coverage of the process would want to write its data.
    command = (
        "unset COVERAGE_PROCESS_CONFIG COVERAGE_PROCESS_START && ulimit -f 0 && "
        f"exec {sys.executable} -m {PACKAGE} serve --port 0 --workers 2"
    )
    async with run_process("bash", "-c", command, settings={"JWT_KEY": SECRET}) as process:
        url = (await process.line(r"^The gateway is at (\S+)"))[1]
        await process.line(r"WARNING: .*no temporary directory for metrics .* TMPDIR or PROMETHEUS_MULTIPROC_DIR$")
        async with connect(url, TOKEN) as client:
            assert await client.result("demo.add", {"a": 1, "b": 1}) == 2
        process.signal(signal.SIGTERM)
        assert await process.wait() == 0
        assert "Traceback" not in process.output


@pytest.mark.parametrize(
    ("arguments", "settings", "http", "sockets"),
    [
        (("--root-path", "/gw/"), {}, "http://example.com/gw", ("ws", "example.com", "/gw")),
        ((), {"PUBLIC_URL": "https://api.example:8443/a/b/"}, "https://api.example:8443/a/b", None),
        (
            ("--root-path", "/gw", "--workers", "2"),
            {"PUBLIC_URL": "https://api.example"},
            "https://api.example",
            ("wss", "api.example", None),
        ),
    ],
    ids=["prefix", "URL", "both, with workers"],
)
async def test_documents_name_the_server_in_front_of_a_proxy_that_strips_a_prefix(
    arguments: tuple[str, ...], settings: dict[str, str], http: str, sockets: tuple[str, str, str | None] | None
) -> None:
    async with (
        serving(*arguments, environment=None, start_new_session=False, **settings) as (_, url),
        httpx.AsyncClient(trust_env=False) as browser,
    ):
        base = url.replace("ws://", "http://").removesuffix("/ws")
        headers = {"Authorization": f"Bearer {TOKEN}", "Host": "example.com"}
        openapi = (await browser.get(f"{base}/openapi.json", headers=headers)).json()
        assert [server["url"] for server in openapi["servers"]] == [http]
        server = (await browser.get(f"{base}/asyncapi.json", headers=headers)).json()["servers"]["gateway"]
        found = (server["protocol"], server["host"], server.get("pathname"))
        assert found == (sockets or ("wss", "api.example:8443", "/a/b"))
        async with connect(url, TOKEN) as client:
            assert await client.result("demo.add", {"a": 1, "b": 1}) == 2


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_clients_are_admitted_in_the_delay_of_a_shutdown(workers: str) -> None:
    # The next signal ends the delay, which would outlast the test.
    async with serving("--shutdown-delay", "3600", "--workers", workers) as (process, url):
        await ready(process, int(workers))
        readyz = url.replace("ws://", "http://").replace("/ws", "/readyz")
        async with connect(url, TOKEN) as before, httpx.AsyncClient(trust_env=False) as browser:
            process.signal(signal.SIGTERM)
            pattern = "draining in 3600 s: not ready, but clients are still admitted"
            await eventually(lambda: process.output.count(pattern) == int(workers))
            answer = await browser.get(readyz)
            assert (answer.status_code, answer.json()["reasons"]) == (503, ["draining"])
            async with connect(url, TOKEN) as newcomer:
                assert await newcomer.result("demo.add", {"a": 1, "b": 1}) == 2
                process.signal(signal.SIGTERM)
                for client in (before, newcomer):
                    assert (await client.event("goodbye"))["event"]["reason"] == "draining"
                    assert (await client.closed()).code == 1012
        assert await process.wait() == 0


async def test_the_drain_begins_when_the_delay_is_over() -> None:
    async with serving(SHUTDOWN_DELAY="0.2") as (process, url), connect(url, TOKEN) as client:
        process.signal(signal.SIGTERM)
        await process.line("draining in 0.2 s")
        assert (await client.event("goodbye"))["event"]["reason"] == "draining"
        assert await process.wait() == 0


async def test_compression_is_a_choice() -> None:
    headers = (
        ("Authorization", f"Bearer {TOKEN}"),
        ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"),
    )
    for arguments, chosen in (((), False), (("--deflate",), True)):
        async with serving(*arguments) as (_, url), RawClient.open(url) as raw:
            response = await raw.handshake("/ws", *headers)
            assert ("Sec-WebSocket-Extensions: permessage-deflate" in response) is chosen
            assert "\nserver:" not in response.lower()

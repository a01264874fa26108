"""The first second of a process: SIGTERM during the start, refused settings, and the names that servers load."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.kit.clients import connect
from tests.kit.gateways import DEADLINE, eventually
from tests.kit.processes import ROOT, SECRET, Process, run_process, token_of
from tests.servers.processes import unavailable

MODULE: Final = (sys.executable, "-m", "nuropb_gateway_asgi")
SCRIPT: Final = (sys.executable, "-c", "import sys; from nuropb_gateway_asgi.__main__ import main; sys.exit(main())")
#: Coverage of the process would handle SIGTERM first.
IN_A_CONTAINER: Final = (
    "env",
    "-u",
    "COVERAGE_PROCESS_CONFIG",
    "-u",
    "COVERAGE_PROCESS_START",
    "unshare",
    "--user",
    "--map-root-user",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
)
#: A module that takes for ever to import. In many steps: a signal right before a long call waits for the call's end.
ENDLESS: Final = 'import time\nprint("importing", flush=True)\nwhile True:\n    time.sleep(0.01)\n'


def has_containers() -> bool:
    """Whether this process may make a namespace of process ids."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*IN_A_CONTAINER, "true"], capture_output=True).returncode == 0


@pytest.fixture(params=["process", "container"])
def place(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Return the command that runs another one as a process like any other, or with the process id 1."""
    if request.param == "process":
        return ()
    if not has_containers():
        unavailable("no namespaces of process ids here")
    return IN_A_CONTAINER


def inmost(process: Process) -> int:
    """Return the process id of the gateway, behind ``unshare`` if that runs it."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(children[0]) if children else process.pid


# --- signals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [(*MODULE, "serve"), MODULE, SCRIPT], ids=["serve", "module", "script"])
@pytest.mark.parametrize("slow", ["click", "uvicorn"])
async def test_sigterm_ends_a_process_that_still_imports(
    place: tuple[str, ...], command: tuple[str, ...], slow: str, tmp_path: Path
) -> None:
    (tmp_path / f"{slow}.py").write_text(ENDLESS)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    async with run_process(*place, *command, environment={"PYTHONPATH": path}) as process:
        await process.line("importing")
        os.kill(inmost(process), signal.SIGTERM)
        assert await process.wait() == (128 + signal.SIGTERM if place else -signal.SIGTERM)
        assert process.output == "importing"


@pytest.mark.parametrize("arguments", [(), ("--workers", "2"), ("--reload",)], ids=["alone", "workers", "reload"])
async def test_sigterm_at_the_first_moment(place: tuple[str, ...], arguments: tuple[str, ...], tmp_path: Path) -> None:
    command = (*MODULE, "serve", "--uds", str(tmp_path / "socket"), *arguments)
    environment = {"TMPDIR": str(tmp_path)}
    async with run_process(*place, *command, settings={"JWT_KEY": SECRET}, environment=environment) as process:
        await eventually(lambda: catches_sigterm(inmost(process)))
        os.kill(inmost(process), signal.SIGTERM)
        assert await process.wait() in (0, 128 + signal.SIGTERM, -signal.SIGTERM)
        assert "Traceback" not in process.output
    assert list(tmp_path.iterdir()) == []


def catches_sigterm(pid: int) -> bool:
    """Whether the process has a handler for SIGTERM."""
    with contextlib.suppress(FileNotFoundError):
        status = Path(f"/proc/{pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split(maxsplit=1)[0], 16)
        return bool(caught >> (signal.SIGTERM - 1) & 1)
    return False


# --- settings ---------------------------------------------------------------------------------------------------

REFUSED: Final = "nuropb-gateway: NUROPB_GATEWAY_MAX_IN_FLIGHT: not a number; expected a whole number"


async def test_a_refused_setting_is_one_line_under_uvicorn() -> None:
    command = ("uvicorn", "nuropb_gateway_asgi:app", "--port", "0")
    async with run_process(sys.executable, "-m", *command, settings={"MAX_IN_FLIGHT": "many"}) as process:
        assert await process.wait() == 3
        assert (process.stdout, process.stderr) == ([], [REFUSED])


async def test_workers_of_uvicorn_with_a_refused_setting_are_not_started_again() -> None:
    command = ("uvicorn", "nuropb_gateway_asgi:app", "--port", "0", "--workers", "2")
    async with run_process(sys.executable, "-m", *command, settings={"MAX_IN_FLIGHT": "many"}) as process:
        await process.wait()
        assert REFUSED in process.stderr
        assert "Traceback" not in process.output


# --- hypercorn --------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def hypercorn(name: str, *options: str) -> AsyncIterator[tuple[Process, str]]:
    """Run hypercorn as documented, and yield its address once it listens."""
    command = (sys.executable, "-m", "hypercorn", name, "--bind", "127.0.0.1:0", *options)
    async with run_process(*command, settings={"JWT_KEY": SECRET}) as process:
        yield process, (await process.line(r"Running on http://(\S+)"))[1]


@pytest.mark.parametrize("name", ["nuropb_gateway_asgi:app", "nuropb_gateway_asgi:create_app()"])
async def test_hypercorn_finds_the_application_and_tells_clients_goodbye(name: str) -> None:
    async with hypercorn(name, "--workers", "0") as (process, address):
        async with httpx.AsyncClient(trust_env=False, timeout=DEADLINE) as http:
            assert (await http.get(f"http://{address}/readyz")).json()["ready"] is True
        async with connect(f"ws://{address}/ws", token_of("alice")) as client:
            assert await client.result("demo.add", {"a": 1, "b": 1}) == 2
            process.signal(signal.SIGTERM)
            assert (await client.event("goodbye"))["event"]["reason"] == "draining"
        await process.line("draining: 0 requests in flight")
    assert "Traceback" not in process.output


def test_the_names_are_there_without_an_application_and_without_a_framework() -> None:
    program = (
        "import sys, nuropb_gateway_asgi as package\n"
        "found = vars(package)\n"
        "assert callable(found['app']) and callable(found['create_app'])\n"
        "assert not {'starlette', 'anyio', 'click', 'aio_pika'} & set(sys.modules)\n"
        "from starlette.applications import Starlette\n"
        "from nuropb_gateway_asgi import app\n"
        "assert isinstance(app, Starlette) and app is package.app and app.state.gateway\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr

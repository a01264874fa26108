from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import inspect
import logging
import os
import signal
import ssl
from collections.abc import Iterator
from typing import Any, Final

import anyio.pytest_plugin
import certifi
import pytest
from hypothesis import HealthCheck, settings

from nuropb_gateway_asgi import Settings
from nuropb_gateway_asgi.mesh.rabbitmq import RabbitMQMesh

# The fixtures for users' tests. pytest finds them by itself where the package was installed with its entry points.
pytest_plugins = ["nuropb_gateway_asgi.testing.plugin"]

# A busy machine is slow, and that is no failure. `make matrix` tries many more examples, by `--hypothesis-profile`.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=40)
settings.register_profile("thorough", settings.get_profile("tests"), max_examples=500)
settings.load_profile("tests")


# Clients of httpx and of mcp read the 140 authorities of the system once, and not anew for each client, in 20 ms.
_original = ssl.create_default_context
_authorities = functools.cache(_original)


@functools.wraps(_original)
def create_default_context(*args: Any, **options: Any) -> ssl.SSLContext:
    if not args and options == {"cafile": certifi.where()}:
        return _authorities(**options)
    return _original(*args, **options)


ssl.create_default_context = create_default_context
with contextlib.suppress(ImportError):
    import httpcore2

    httpcore2.default_ssl_context = functools.cache(httpcore2.default_ssl_context)


# A shell ignores SIGINT for commands in the background, and their children inherit that: tests send it, though.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Everything runs on the fast lane, and on the plain one when it is asked for.
if lane := os.environ.get("NUROPB_TEST_LANE"):
    (Settings.__init__.__kwdefaults__ or {})["mesh_lane"] = lane
    (RabbitMQMesh.__init__.__kwdefaults__ or {})["lane"] = lane


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collect without Python's collector: nothing that a collection makes is garbage, and there is much of it."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Import this worker's share of the modules first.

    pytest rewrites the assertions of each module, which takes a fresh clone 17 s of CPU, and keeps the result: each
    worker finds that of the others when it collects.
    """
    worker, count = os.environ.get("PYTEST_XDIST_WORKER"), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if worker is None:
        return
    chosen = (session.config.rootpath / argument for argument in session.config.args)
    files = sorted({file for path in chosen for file in path.rglob("test_*.py")})
    for file in files[int(worker.removeprefix("gw")) % count :: count]:
        # What fails now fails again in the collection, which reports it.
        with contextlib.suppress(Exception, pytest.skip.Exception):
            importlib.import_module(".".join(file.relative_to(session.config.rootpath).with_suffix("").parts))


#: Files whose tests wait longest. They are run first, or a single worker would wait for them at the end.
LONG: Final = (
    "test_cluster.py",
    "test_faults_broker.py",
    "test_stalled_readers.py",
    "test_history.py",
    "test_command_line.py",
    "test_serve.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


#: Files with tests that stop a broker. A single worker runs all of them, as a boot takes 8 s of CPU.
STOPPING: Final = frozenset(
    {
        "test_clients_survive.py",
        "test_console.py",
        "test_faults_broker.py",
        "test_faults_streams.py",
        "test_fleet.py",
        "test_servers.py",
        "test_serving.py",
    }
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each worker of ``--dist loadfile`` a file at a time, but one worker all files of ``STOPPING``."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            integration = file.startswith("tests/integration/")
            return "broker" if integration and file.rpartition("/")[2] in STOPPING else file

    return Scheduling(config, log)


@pytest.fixture(autouse=True)
def logging_stays() -> Iterator[None]:
    """Give the loggers of the package and of uvicorn back as they were.

    A gateway of its own and uvicorn configure logging for their whole process, and each logged line counts among
    the costs of a connection.
    """
    before = {logger: (logger.handlers[:], logger.propagate, logger.level) for logger in _loggers()}
    yield
    for logger in _loggers():
        # A module that a test has imported may have set the level of its own logger.
        level = logger.level if logger.name.startswith("nuropb_gateway_asgi.") else logging.NOTSET
        logger.handlers[:], logger.propagate, level = before.get(logger, ([], True, level))
        if level != logger.level:
            logger.setLevel(level)  # it clears the caches of all loggers


def _loggers() -> list[logging.Logger]:
    loggers = logging.Logger.manager.loggerDict
    return [
        logger
        for name, logger in list(loggers.items())
        if name.startswith(("nuropb_gateway", "uvicorn")) and isinstance(logger, logging.Logger)
    ]


# The oldest allowed anyio, with which `make oldest` runs, lacks `anyio_mode = "auto"`.
if not hasattr(anyio.pytest_plugin, "pytest_addoption"):

    def pytest_addoption(parser: pytest.Parser) -> None:
        parser.addini("anyio_mode", "which coroutine functions are tests of anyio's plugin")

    @pytest.hookimpl(tryfirst=True)
    def pytest_pycollect_makeitem(collector: pytest.Collector, name: str, obj: object) -> None:
        test = getattr(getattr(obj, "hypothesis", None), "inner_test", obj)
        if name.startswith("test") and inspect.iscoroutinefunction(test):
            pytest.mark.anyio(obj)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The loop that uvicorn and aio-pika have."""
    return "asyncio"

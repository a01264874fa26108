"""The command ``bench``: throughput and latency of calls."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import sys
import time
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import click

from ._completion import complete_method, complete_service
from ._errors import EXIT_CODES
from ._numbers import bar, histogram, percentile
from ._options import ENVIRONMENT, SECONDS, gateway_options
from ._output import counted, dump, printable, say
from ._parameters import FORMS
from ._session import connect_timeout, run, session
from ._target import Target
from .call import parse_words, split_words

if TYPE_CHECKING:
    from ..client import Client

__all__ = ["bench"]

EPILOG: Final = f"""{ENVIRONMENT} The measurement includes this client, which keeps one processor busy at some
thousand calls a second. The calls are real: choose a method that may be called that often.

{FORMS}

\b
Examples:
  nuropb-gateway bench demo echo
  nuropb-gateway bench demo add a:=2 b:=3 --connections 10 --in-flight 4 --duration 30
  nuropb-gateway bench orders get number:=42 --requests 1000 --json

{EXIT_CODES}

If calls failed, the exit code is 1.
"""

PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9)
BUCKETS: Final = 12
WIDTH: Final = 40
#: Seconds for the calls in flight at the end. Without these calls the slow ones would be missing.
LAST_CALLS_TIMEOUT: Final = 1.0
#: Updates of the progress bar in a second.
REFRESH_RATE: Final = 5


@click.command(epilog=EPILOG, short_help="Measure throughput and latency of a method.")
@click.argument("service", shell_complete=complete_service)
@click.argument("method", required=False, shell_complete=complete_method)
@click.argument("parameters", nargs=-1)
@gateway_options
@click.option(
    "--connections", type=click.IntRange(1, 1000), default=1, show_default=True, help="Number of connections."
)
@click.option("--in-flight", type=click.IntRange(min=1), default=1, show_default=True, help="Calls in flight on each.")
@click.option("--duration", type=SECONDS, metavar="SECONDS", help="How long to call.  [default: 10]")
@click.option("--requests", type=click.IntRange(min=1), help="Number of calls, instead of --duration.")
@click.option("--timeout", type=SECONDS, metavar="SECONDS", help="Timeout of each call.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench(
    service: str,
    method: str | None,
    parameters: tuple[str, ...],
    target: Target,
    token: str | None,
    connections: int,
    in_flight: int,
    duration: float | None,
    requests: int | None,
    timeout: float | None,
    as_json: bool,
) -> int:
    """Call METHOD of SERVICE with PARAMETERS again and again, and report throughput and latency."""
    service, method, parameters = split_words(service, method, parameters)
    params = parse_words(parameters)
    if duration is not None and requests is not None:
        raise click.UsageError("--duration and --requests cannot be combined")
    if requests is None:
        duration = 10.0 if duration is None else duration

    async def ask(gateway: Client) -> None:
        await gateway.request(service, method, params, timeout=timeout)

    async def bench() -> int:
        load = Load(duration=duration, requests=requests)
        async with contextlib.AsyncExitStack() as stack:
            gateways = [
                await stack.enter_async_context(session(target, token, timeout=connect_timeout(timeout)))
                for _ in range(connections)
            ]
            room = min(gateway.hello.limits.max_in_flight for gateway in gateways if gateway.hello is not None)
            if in_flight > room:
                calls = counted(room, "call")
                say(f"the gateway accepts {calls} at a time on a connection; others wait here, which counts, too")
            with _until_interrupted(load):
                async with _progress(load):
                    await load.run(ask, [gateway for gateway in gateways for _ in range(in_flight)])
        report = load.report()
        if as_json:
            asked = {"service": service, "method": method, "connections": connections, "in_flight": in_flight}
            click.echo(dump(asked | report, pretty=sys.stdout.isatty()))
        else:
            click.echo(render(report, plain=not _draws()))
        return 130 if load.interrupted else 1 if load.errors else 0

    return run(bench())


# --- measuring ----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Load:
    """A load of ``requests`` calls, or of ``duration`` seconds, and its results."""

    duration: float | None = None
    requests: int | None = None
    interrupted: bool = False
    #: Seconds of each call that succeeded.
    latencies: array[float] = field(default_factory=lambda: array("d"))
    #: Number of calls that failed, by code.
    errors: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self._started = 0.0
        self._numbers = itertools.count()
        self._stop = asyncio.Event()

    @property
    def done(self) -> int:
        """The number of calls that have ended."""
        return len(self.latencies) + self.errors.total()

    @property
    def share(self) -> float:
        """The progress, from 0 to 1."""
        if self.requests is not None:
            return self.done / self.requests
        assert self.duration is not None  # noqa: S101 - requests or duration is set
        return min(1.0, (time.perf_counter() - self._started) / self.duration)

    def interrupt(self) -> None:
        """Start no more calls."""
        self.interrupted = True
        self._stop.set()

    async def run(self, ask: Callable[[Client], Awaitable[object]], gateways: Sequence[Client]) -> None:
        """Call ``ask`` with each of ``gateways`` until the load ends, and finish the calls in flight."""
        self._started = time.perf_counter()
        calling = [asyncio.ensure_future(self._call(ask, gateway)) for gateway in gateways]
        stopped = asyncio.ensure_future(self._stop.wait())
        try:
            waiting = asyncio.ensure_future(asyncio.wait(calling))
            await asyncio.wait((waiting, stopped), timeout=self.duration, return_when=asyncio.FIRST_COMPLETED)
            self._stop.set()
            await asyncio.wait(calling, timeout=LAST_CALLS_TIMEOUT)
            self.seconds = time.perf_counter() - self._started
        finally:
            for task in (*calling, stopped, waiting):
                task.cancel()
            ended = await asyncio.gather(*calling, stopped, waiting, return_exceptions=True)
        for result in ended:
            if isinstance(result, Exception):
                raise result

    async def _call(self, ask: Callable[[Client], Awaitable[object]], gateway: Client) -> None:
        from ..client import CallFailed, ConnectionClosed, ConnectionLost

        while not self._stop.is_set() and (self.requests is None or next(self._numbers) < self.requests):
            began = time.perf_counter()
            try:
                await ask(gateway)
            except CallFailed as error:
                self.errors[error.code] += 1
                await asyncio.sleep(0)  # a call that the client itself refuses has not yielded to the event loop
            except (ConnectionLost, ConnectionClosed) as error:
                self.errors[error.code] += 1
                return
            else:
                self.latencies.append(time.perf_counter() - began)

    def report(self) -> dict[str, Any]:
        """Return the results. Times are in milliseconds, rounded to a microsecond."""
        ordered = sorted(self.latencies)

        def milliseconds(seconds: float) -> float:
            return round(seconds * 1000, 3)

        latency: dict[str, float] = {}
        if ordered:
            latency = {"min": milliseconds(ordered[0]), "mean": milliseconds(sum(ordered) / len(ordered))}
            latency |= {f"p{percent:g}": milliseconds(percentile(ordered, percent)) for percent in PERCENTILES}
            latency["max"] = milliseconds(ordered[-1])
        return {
            "seconds": round(self.seconds, 3),
            "answered": len(ordered),
            "per_second": round(len(ordered) / self.seconds, 1) if self.seconds else 0.0,
            "errors": dict(self.errors.most_common()),
            "latency_ms": latency,
            "histogram": [
                {"from_ms": milliseconds(each.low), "to_ms": milliseconds(each.high), "count": each.count}
                for each in histogram(ordered, BUCKETS)
            ],
        }


@contextlib.contextmanager
def _until_interrupted(load: Load) -> Iterator[None]:
    """Make Ctrl-C end the load, so that the results so far are shown."""
    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(signal.SIGINT, load.interrupt)
    except (NotImplementedError, RuntimeError):  # on Windows, or in a thread: Ctrl-C raises KeyboardInterrupt there
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


# --- showing ------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _progress(load: Load) -> AsyncIterator[None]:
    """Show a progress bar if standard error is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    # Imported here, as it takes time.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    share, words = TextColumn("{task.percentage:3.0f} %"), TextColumn("{task.description}")
    columns = (BarColumn(), share, TimeElapsedColumn(), words)
    with Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False) as progress:
        task = progress.add_task("", total=1.0)

        async def show() -> None:
            while True:
                failed = f", {load.errors.total()} failed" if load.errors else ""
                progress.update(task, completed=load.share, description=f"{load.done} calls{failed}", refresh=True)
                await asyncio.sleep(1 / REFRESH_RATE)

        showing = asyncio.ensure_future(show())
        try:
            yield
        finally:
            showing.cancel()
            await asyncio.wait([showing])


def render(report: dict[str, Any], *, plain: bool = False) -> str:
    """Return the report as text; ``plain`` draws in ASCII."""
    lines = [f"{report['answered']} answers in {report['seconds']:g} s: {report['per_second']:g} a second"]
    lines += [f"{count} failed: {printable(code)}" for code, count in report["errors"].items()]
    if report["latency_ms"]:
        names, values = report["latency_ms"].keys(), report["latency_ms"].values()
        lines += ["", "ms  " + "".join(f"{name:>10}" for name in names)]
        lines += ["    " + "".join(f"{value:>10.3f}" for value in values), ""]
    most = max((each["count"] for each in report["histogram"]), default=0)
    for each in report["histogram"]:
        drawn = bar(each["count"] / most, WIDTH, plain=plain)
        lines.append(f"{each['from_ms']:>10.3f} to {each['to_ms']:>10.3f} ms {each['count']:>8} {drawn}".rstrip())
    return "\n".join(lines)


def _draws() -> bool:
    """Whether standard output can encode the characters of bars."""
    try:
        bar(0.99, 8).encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True

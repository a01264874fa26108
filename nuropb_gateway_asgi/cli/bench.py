"""``bench``: how many calls, and how long they take."""

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
from ._numbers import bar, histogram, percentile
from ._output import dump, printable, say
from ._parameters import FORMS
from ._session import ENVIRONMENT, EXIT_CODES, SECONDS, connect_timeout, gateway_options, run, session
from ._target import Target
from .call import check_names, parse_words

if TYPE_CHECKING:
    from ..client import Client

__all__ = ["bench"]

EPILOG = f"""{ENVIRONMENT} What is measured includes this client, which takes a processor for itself at some
thousand calls a second. It really calls: choose a method that may be called as often as that.

{FORMS}

\b
Examples:
  nuropb-gateway bench demo echo
  nuropb-gateway bench demo add a:=2 b:=3 --connections 10 --in-flight 4 --duration 30
  nuropb-gateway bench orders get number:=42 --requests 1000 --json

{EXIT_CODES}

If some of the calls failed it is 1.
"""

PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9)
BUCKETS: Final = 12
WIDTH: Final = 40
#: Seconds for calls that are in flight at the end. They count, or slow ones would not.
LAST_CALLS: Final = 1.0
#: Times a second that the progress is shown.
REFRESH: Final = 5


@click.command(epilog=EPILOG, short_help="Measure calls: how many, and how long they take.")
@click.argument("service", shell_complete=complete_service)
@click.argument("method", shell_complete=complete_method)
@click.argument("parameters", nargs=-1)
@gateway_options
@click.option("--connections", type=click.IntRange(1, 1000), default=1, show_default=True, help="How many.")
@click.option("--in-flight", type=click.IntRange(min=1), default=1, show_default=True, help="Calls of each at a time.")
@click.option("--duration", type=SECONDS, metavar="SECONDS", help="How long.  [default: 10]")
@click.option("--requests", type=click.IntRange(min=1), help="So many in all, in place of --duration.")
@click.option("--timeout", type=SECONDS, metavar="SECONDS", help="How long to wait for each answer.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench(
    service: str,
    method: str,
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
    """Call METHOD of SERVICE with PARAMETERS again and again, and say how long that takes."""
    check_names(service, method)
    params = parse_words(parameters)
    if duration is not None and requests is not None:
        raise click.UsageError("--duration and --requests exclude each other")
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
                say(f"the gateway takes {room} calls of a connection at a time; the others wait here, and are measured")
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
    """So many calls, or as many as there are in ``duration`` seconds, and what came of them."""

    duration: float | None = None
    requests: int | None = None
    interrupted: bool = False
    #: Seconds that each call took which has a result.
    latencies: array[float] = field(default_factory=lambda: array("d"))
    #: Those that failed, by code.
    errors: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self._started = 0.0
        self._numbers = itertools.count()
        self._stop = asyncio.Event()

    @property
    def done(self) -> int:
        """How many calls have ended."""
        return len(self.latencies) + self.errors.total()

    @property
    def share(self) -> float:
        """How much of it is done, from 0 to 1."""
        if self.requests is not None:
            return self.done / self.requests
        assert self.duration is not None  # noqa: S101 - it is one of the two
        return min(1.0, (time.perf_counter() - self._started) / self.duration)

    def interrupt(self) -> None:
        """Begin no more calls."""
        self.interrupted = True
        self._stop.set()

    async def run(self, ask: Callable[[Client], Awaitable[object]], gateways: Sequence[Client]) -> None:
        """Call ``ask`` with each of ``gateways``, over and over, until it ends; what is in flight then may end, too."""
        self._started = time.perf_counter()
        calling = [asyncio.ensure_future(self._call(ask, gateway)) for gateway in gateways]
        stopped = asyncio.ensure_future(self._stop.wait())
        try:
            waiting = asyncio.ensure_future(asyncio.wait(calling))
            await asyncio.wait((waiting, stopped), timeout=self.duration, return_when=asyncio.FIRST_COMPLETED)
            self._stop.set()
            await asyncio.wait(calling, timeout=LAST_CALLS)
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
                await asyncio.sleep(0)  # what the client itself refuses has not waited for anything
            except (ConnectionLost, ConnectionClosed) as error:
                self.errors[error.code] += 1
                return
            else:
                self.latencies.append(time.perf_counter() - began)

    def report(self) -> dict[str, Any]:
        """What it came to; times are in milliseconds, rounded to a microsecond."""
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
    """Ctrl-C ends the load, and what was measured by then is shown."""
    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(signal.SIGINT, load.interrupt)
    except (NotImplementedError, RuntimeError):  # on Windows, or in a thread: then it is a KeyboardInterrupt
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


# --- showing ------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _progress(load: Load) -> AsyncIterator[None]:
    """A bar on the terminal, if standard error is one."""
    if not sys.stderr.isatty():
        yield
        return
    # Only here, as it takes time to import.
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
                await asyncio.sleep(1 / REFRESH)

        showing = asyncio.ensure_future(show())
        try:
            yield
        finally:
            showing.cancel()
            await asyncio.wait([showing])


def render(report: dict[str, Any], *, plain: bool = False) -> str:
    """The report for people; ``plain`` without characters that are not in ASCII."""
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
    """Whether standard output takes the characters of bars."""
    try:
        bar(0.99, 8).encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True

"""Targets of this gateway, as ratios within one run, and the verdicts. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from benchmarks.plan import HTTP_CELLS, SATURATION
from benchmarks.samples import Ratio, Turns, Value, cpu_per_thousand, rate, ratio

__all__ = ["Verdict", "verdicts"]

Parts = Mapping[str, Any]


class Verdict(NamedTuple):
    """A target. Without a measurement ``measured`` and ``met`` are None."""

    what: str
    wanted: str
    measured: Ratio | None
    met: bool | None


def verdicts(parts: Parts) -> Iterator[Verdict]:
    """Yield the verdict on every target."""
    load: Turns = parts.get("load", {}).get("turns", ())
    fan_out: Turns = parts.get("fan-out", {}).get("turns", ())
    for cell, most in (("1", 0.33), ("32", 0.25), (SATURATION, 0.25)):
        yield _at_most(
            f"CPU per request, {cell} in flight, to nuropb_gw's",
            most,
            ratio(load, "gateway", "nuropb_gw", cell, cpu_per_thousand),
        )
    for cell in ("1", "32", SATURATION):
        yield _below(
            f"CPU per request, {cell} in flight, to moleculer-io's",
            1.0,
            ratio(load, "gateway", "moleculer-io", cell, cpu_per_thousand),
        )
    yield _at_least(
        f"requests per second, {SATURATION} in flight, to nuropb_gw's",
        2.0,
        ratio(load, "gateway", "nuropb_gw", SATURATION, rate),
    )
    yield _at_least(
        f"nuropb_gw's p99, {SATURATION} in flight, to this gateway's",
        2.0,
        ratio(load, "nuropb_gw", "gateway", SATURATION, latency("p99")),
    )
    yield _at_most("p50, 1 in flight, to Web STOMP's", 1.1, ratio(load, "gateway", "web-stomp", "1", latency("p50")))
    connect: Turns = parts.get("connect", {}).get("turns", ())
    for algorithm in _cells(connect):
        yield _at_most(
            f"CPU per accepted connection with {algorithm}, to nuropb_gw's",
            1.0,
            ratio(connect, "gateway", "nuropb_gw", algorithm, cpu_per_thousand),
        )
    yield from _memory(parts.get("memory", {}))
    for cell in _cells(fan_out):
        yield _at_most(
            f"CPU per delivery to {cell} connections, to the floor's cost of one send",
            1.3,
            ratio(fan_out, "gateway", "echo", cell, cpu_per_thousand),
        )
        yield _at_most(
            f"CPU per delivery to {cell} connections, to the limit's over RabbitMQ",
            2.0,
            ratio(fan_out, "gateway", "limit-mesh", cell, cpu_per_thousand),
        )
    yield _growth(parts.get("growth", {}).get("turns", ()))
    yield from _by_uvicorn(load, fan_out)
    yield from _http(parts)
    yield from _streams(parts)
    start: Turns = parts.get("start", {}).get("turns", ())
    yield _below(
        "CPU until ready, to nuropb_gw's", 1.0, ratio(start, "gateway", "nuropb_gw", "start", cpu_per_thousand)
    )


def _by_uvicorn(load: Turns, fan_out: Turns) -> Iterator[Verdict]:
    for what, turns, cell in (("request, 32 in flight", load, "32"), ("delivery to 1000 connections", fan_out, "1000")):
        yield _at_most(
            f"CPU per {what}, by uvicorn itself to by nuropb-gateway serve",
            1.02,
            ratio(turns, "gateway-uvicorn", "gateway", cell, cpu_per_thousand),
        )


def _http(parts: Parts) -> Iterator[Verdict]:
    turns: Turns = parts.get("http", {}).get("turns", ())
    for other, whose in (("moleculer-web", "moleculer-web's"), ("fastapi", "that of FastAPI with aio-pika")):
        for cell in HTTP_CELLS:
            yield _below(
                f"CPU per call over HTTP, {cell} in flight, to {whose}",
                1.0,
                ratio(turns, "gateway", other, cell, cpu_per_thousand),
            )


def _streams(parts: Parts) -> Iterator[Verdict]:
    part = parts.get("streams", {})
    for cell in _cells(part.get("turns", ())) or ("1000",):
        yield _below(
            f"CPU per delivery to {cell} streams, to sse-starlette's",
            1.0,
            ratio(part.get("turns", ()), "gateway", "sse-starlette", cell, cpu_per_thousand),
        )
        own, other = (part.get("memory", {}).get(name, {}).get(cell) for name in ("gateway", "sse-starlette"))
        times = None if own is None or other is None else own / other
        yield _below(
            f"memory per stream, {cell} of them, to sse-starlette's",
            1.0,
            None if times is None else Ratio(times, times, times),
        )


def latency(name: str) -> Value:
    """Return a function that reads a percentile of a sample, in seconds."""

    def value(sample: Mapping[str, Any]) -> float | None:
        seconds: float | None = sample.get(name)
        return seconds

    return value


def _memory(memory: Mapping[str, Mapping[str, float]]) -> Iterator[Verdict]:
    own, floor = memory.get("gateway", {}), memory.get("echo", {})
    for count in own:
        if count in floor and count != "process":
            times = own[count] / floor[count]
            yield _at_most(
                f"memory per idle connection, {count} of them, to the floor's", 1.2, Ratio(times, times, times)
            )
    for count in own:
        if count != "process":
            size = own[count] / 1024
            yield _at_most(f"KiB of memory per idle connection, {count} of them", 14.0, Ratio(size, size, size))


def _growth(turns: Turns) -> Verdict:
    first, *others = _cells(turns) or ("10",)
    ratios = [
        found
        for cell in others
        if (found := ratio(turns, "gateway", "gateway", cell, cpu_per_thousand, base_cell=first)) is not None
    ]
    worst = max(ratios, key=lambda each: each.median, default=None)
    return _at_most(
        f"CPU per request with up to {(others or ['more'])[-1]} connections, to that with {first}", 1.15, worst
    )


def _cells(turns: Turns) -> list[str]:
    return list(turns[0].get("gateway", ())) if turns else []


def _verdict(wanted: str, is_met: Callable[[float, float], bool]) -> Callable[[str, float, Ratio | None], Verdict]:
    def judge(what: str, limit: float, measured: Ratio | None) -> Verdict:
        met = None if measured is None else is_met(measured.median, limit)
        return Verdict(what, f"{wanted} {limit:g}", measured, met)

    return judge


_at_most = _verdict("at most", lambda value, limit: value <= limit)
_at_least = _verdict("at least", lambda value, limit: value >= limit)
_below = _verdict("below", lambda value, limit: value < limit)

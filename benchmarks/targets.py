"""Targets of this gateway, as ratios within one run, and the verdicts. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from benchmarks.plan import SATURATION
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
    for cell in ("1", "32", SATURATION):
        yield _at_most(
            f"CPU per request, {cell} in flight, to nuropb_gw's",
            0.35,
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
    yield from _memory(parts.get("memory", {}))
    for cell in _cells(fan_out):
        yield _at_most(
            f"CPU per delivery to {cell} connections, to the floor's cost of one send",
            1.3,
            ratio(fan_out, "gateway", "echo", cell, cpu_per_thousand),
        )
    yield _growth(parts.get("growth", {}).get("turns", ()))


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


def _growth(turns: Turns) -> Verdict:
    first, *others = _cells(turns) or ("10",)
    ratios = [
        found
        for cell in others
        if (found := ratio(turns, "gateway", "gateway", cell, cpu_per_thousand, base_cell=first)) is not None
    ]
    worst = max(ratios, key=lambda each: each.median, default=None)
    return _at_most(
        f"CPU per request with up to {(others or ['more'])[-1]} connections, to that with {first}", 1.2, worst
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

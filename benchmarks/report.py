"""Markdown report of a benchmark run. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from benchmarks.plan import HALF, SATURATION
from benchmarks.samples import (
    Ratio,
    Sample,
    Turns,
    Value,
    cpu_per_thousand,
    median,
    pooled_percentile,
    rate,
    ratio,
    share_of_a_core,
)
from benchmarks.targets import latency, verdicts

__all__ = ["CELLS", "numbers", "replaced", "report"]

#: Results of a run, as :func:`benchmarks.run.measure` returns them.
Results = Mapping[str, Any]

CELLS: Final[Mapping[str, str]] = {
    "1": "1 in flight",
    "32 on one": "32 in flight on one connection",
    "32": "32 in flight, 1 on each of 32 connections",
    SATURATION: "400 in flight, 1 on each of 400 connections",
    HALF: "Half of each contender's rate with 400 in flight",
}
_NOTHING: Final = "-"


def report(results: Results, pictures: str | None = None) -> Iterator[str]:
    """Yield the lines of the report. ``pictures`` is the directory of the pictures; None leaves them out."""
    parts = results["parts"]
    yield from _targets(parts)
    sections: Mapping[str, Callable[[Any, Mapping[str, str]], Iterator[str]]] = {
        "load": _load,
        "memory": _memory,
        "connect": _connect,
        "fan-out": _fan_out,
        "growth": _growth,
        "http": _http,
        "streams": _streams,
        "start": _start,
        "workers": _workers,
    }
    for name, section in sections.items():
        if name in parts:
            yield f"### {_TITLES[name]}"
            yield ""
            if pictures is not None and name in PICTURES:
                yield f"![{PICTURES[name]}]({pictures}/{name}.png)"
                yield ""
            yield from section(parts[name], results["titles"])
    yield from _run(results)


_TITLES: Final = {
    "load": "Requests",
    "memory": "Idle connections",
    "connect": "Accepting connections",
    "fan-out": "Fan-out",
    "growth": "Growth",
    "http": "Calls over HTTP",
    "streams": "Server-Sent Events",
    "start": "Start",
    "workers": "Workers",
}
#: Alternative texts of the pictures.
PICTURES: Final = {
    "load": "CPU time per request and latency by contender and load",
    "memory": "Memory per idle connection by contender",
    "connect": "CPU time per accepted connection by contender",
    "fan-out": "CPU time per delivery by contender",
    "growth": "CPU time per request by number of connections",
}


def _targets(parts: Mapping[str, Any]) -> Iterator[str]:
    yield "### Targets"
    yield ""
    words = {True: "met", False: "**missed**", None: "not measured"}
    rows = [(each.what, each.wanted, _ratio(each.measured), words[each.met]) for each in verdicts(parts)]
    yield from _table(("Ratio (this gateway on uvloop)", "target", "measured", ""), rows)


def _load(part: Any, titles: Mapping[str, str]) -> Iterator[str]:
    turns: Turns = part["turns"]
    yield from _requests(turns, titles)


def _http(part: Any, titles: Mapping[str, str]) -> Iterator[str]:
    yield from _requests(part["turns"], titles)


def _requests(turns: Turns, titles: Mapping[str, str]) -> Iterator[str]:
    head = (
        *("", "CPU s / 1000", "times this gateway", "times the limit"),
        *("requests/s", "p50 ms", "p99 ms", "p99.9 ms", "share of a core"),
    )
    for cell in turns[0]["gateway"]:
        yield f"**{CELLS[cell]}**"
        yield ""
        yield from _table(
            head,
            [
                (
                    titles[name],
                    _number(median(turns, name, cell, cpu_per_thousand), 3),
                    _times(turns, name, cell),
                    _times_limit(turns, name, cell),
                    _number(median(turns, name, cell, rate)),
                    _number(median(turns, name, cell, latency("p50")), 2, 1000),
                    _number(median(turns, name, cell, latency("p99")), 2, 1000),
                    _number(pooled_percentile(turns, name, cell, 0.999), 1, 1000),
                    _number(median(turns, name, cell, share_of_a_core("server")), 0, 100, "%"),
                )
                for name in _present(turns, titles, cell)
            ],
        )


def _memory(part: Any, titles: Mapping[str, str]) -> Iterator[str]:
    counts = [count for count in part["gateway"] if count != "process"]
    head = ("", "process with 100 connections, MiB", *(f"KiB each, {count}" for count in counts))
    rows = [
        (
            titles[name],
            _number(part[name]["process"], 1, 1 / 2**20),
            *(_number(part[name][count], 1, 1 / 1024) for count in counts),
        )
        for name in titles
        if name in part
    ]
    yield from _table(head, rows)


def _connect(part: Any, titles: Mapping[str, str]) -> Iterator[str]:
    turns: Turns = part["turns"]
    for cell in turns[0]["gateway"]:
        yield f"**{cell}**"
        yield ""
        yield from _table(
            ("", "CPU ms / connection", "times this gateway", "times the limit", "connections/s"),
            [
                (
                    titles[name],
                    _number(median(turns, name, cell, cpu_per_thousand), 2),
                    _times(turns, name, cell),
                    _times_limit(turns, name, cell),
                    _number(median(turns, name, cell, rate)),
                )
                for name in _present(turns, titles, cell)
            ],
        )


def _fan_out(part: Any, titles: Mapping[str, str]) -> Iterator[str]:
    yield from _deliveries(part["turns"], titles)


def _streams(part: Any, titles: Mapping[str, str]) -> Iterator[str]:
    yield from _deliveries(part["turns"], titles)
    yield from _memory(part["memory"], titles)


def _start(part: Any, titles: Mapping[str, str]) -> Iterator[str]:
    turns: Turns = part["turns"]
    rows = [
        (
            titles[name],
            _number(median(turns, name, "start", cpu_per_thousand), 2, 1 / 1000),
            _times(turns, name, "start"),
            _number(median(turns, name, "start", latency("seconds")), 2),
        )
        for name in _present(turns, titles, "start")
    ]
    yield from _table(("", "CPU s until ready", "times this gateway", "s until ready"), rows)


def _deliveries(turns: Turns, titles: Mapping[str, str]) -> Iterator[str]:
    for cell in turns[0]["gateway"]:
        yield f"**To {cell} connections**"
        yield ""
        yield from _table(
            (
                *("", "CPU µs / delivery", "times this gateway", "times the limit"),
                *("deliveries/s", "ms to reach all connections (p50)"),
            ),
            [
                (
                    titles[name],
                    _number(median(turns, name, cell, cpu_per_thousand), 1, 1000),
                    _times(turns, name, cell),
                    _times_limit(turns, name, cell),
                    _number(median(turns, name, cell, rate)),
                    _number(median(turns, name, cell, latency("p50")), 1, 1000),
                )
                for name in _present(turns, titles, cell)
            ],
        )


def _growth(part: Any, titles: Mapping[str, str]) -> Iterator[str]:
    turns: Turns = part["turns"]
    cells = list(turns[0]["gateway"])
    head = ("CPU s / 1000 requests", *(f"{cell} connections" for cell in cells))
    rows = []
    for name in _present(turns, titles, cells[0]):
        row = [titles[name]]
        for cell in cells:
            value = _number(median(turns, name, cell, cpu_per_thousand), 3)
            times = ratio(turns, name, name, cell, cpu_per_thousand, base_cell=cells[0])
            row.append(value if cell == cells[0] or times is None else f"{value}, x {times.median:.2f}")
        rows.append(row)
    yield from _table(head, rows)


def _workers(part: Any, titles: Mapping[str, str]) -> Iterator[str]:
    turns: Turns = part["turns"]
    first, *_ = turns[0]
    rows = [
        (
            titles[name],
            _number(median(turns, name, SATURATION, cpu_per_thousand), 3),
            _number(median(turns, name, SATURATION, rate)),
            _ratio(None if name == first else ratio(turns, name, first, SATURATION, rate)),
            _number(median(turns, name, SATURATION, latency("p99")), 2, 1000),
            _number(median(turns, name, SATURATION, share_of_a_core("server")), 0, 100, "%"),
        )
        for name in turns[0]
    ]
    head = ("400 in flight", "CPU s / 1000", "requests/s", f"times {titles[first]}", "p99 ms", "share of a core")
    yield from _table(head, rows)


def _run(results: Results) -> Iterator[str]:
    samples = list(_samples(results["parts"]))
    yield "### This run"
    yield ""
    if samples:
        measured = sum(sample["seconds"] for sample in samples)
        others = sum(sample["others"] for sample in samples) / measured / results["cpus"]
        busiest = max(sample["cpu"].get("service", 0.0) / sample["seconds"] for sample in samples)
        yield (
            f"All figures are medians of {results['turns']} turns ({results['other_turns']} outside of the part "
            f"Requests), {results['seconds']:g} s each. Ratios are medians of the ratios within a turn, with the "
            f"lowest and the highest. All {sum(sample['count'] for sample in samples)} requests, deliveries and "
            f"connections were correct. The service never took more than {busiest:.0%} of a core. Processes outside "
            f"of the current measurement took {others:.0%} of the machine."
        )
        yield ""
    took = results["took"] / 60
    yield f"- `{results['command']}`, in {took:.1f} min; {results['size']} characters of text in each request"
    yield f"- Machine: {results['machine']}"
    for line in results["versions"]:
        yield f"- {line}"
    for title, reason in results["left_out"].items():
        yield f"- Left out: {title}, because {reason}"
    yield ""


def _samples(parts: Mapping[str, Any]) -> Iterator[Sample]:
    for part in parts.values():
        for turn in part.get("turns", ()):
            for cells in turn.values():
                yield from cells.values()


# --- the table in the README --------------------------------------------------------------------------------------


def numbers(results: Results) -> Iterator[str]:
    """Yield the lines of the README's table."""
    yield f"Medians of one run of `{results['command']}` on {results['machine']}."
    yield ""
    parts, titles = results["parts"], results["titles"]
    names = [name for name in ("gateway", "nuropb_gw", "moleculer-io", "echo") if name in titles]
    load: Turns = parts["load"]["turns"]
    rows = [
        (
            f"CPU for 1 000 requests, {cell} in flight",
            *(_number(median(load, name, cell, cpu_per_thousand), 2, 1, " s") for name in names),
        )
        for cell in ("1", "32", SATURATION)
    ]
    memory = parts["memory"]
    count = [each for each in memory["gateway"] if each != "process"][-1]
    held = (_number(memory.get(name, {}).get(count), 0, 1 / 1024, " KiB") for name in names)
    rows.append((f"Memory for each of {count} idle connections", *held))
    fan_out: Turns = parts["fan-out"]["turns"]
    audience = next(iter(fan_out[0]["gateway"]))
    sent = (_number(median(fan_out, name, audience, cpu_per_thousand), 0, 1000, " µs") for name in names)
    rows.append((f"CPU to bring an event to each of {audience} connections", *sent))
    yield from _table(("", *(titles[name] for name in names)), rows)


def replaced(text: str, name: str, lines: Sequence[str]) -> str:
    """Replace the lines between ``<!-- name -->`` and ``<!-- end of name -->``. Raises ValueError without them."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise ValueError(f"the lines {begin.strip()} and {end} are missing")
    return before + begin + "\n" + "\n".join(lines).strip() + "\n\n" + end + after


# --- formatting ---------------------------------------------------------------------------------------------------


def _present(turns: Turns, titles: Mapping[str, str], cell: str) -> list[str]:
    return [name for name in titles if cell in turns[0].get(name, {})]


def _times(turns: Turns, name: str, cell: str, value: Value = cpu_per_thousand) -> str:
    return "1" if name == "gateway" else _ratio(ratio(turns, name, "gateway", cell, value))


def _times_limit(turns: Turns, name: str, cell: str) -> str:
    """Return the multiple of what the same work costs a C program: over RabbitMQ, where that was measured."""
    over_mesh = "limit-mesh" in turns[0] and name != "limit"
    limit = "limit-mesh" if over_mesh else "limit"
    return "1" if name == limit else _ratio(ratio(turns, name, limit, cell, cpu_per_thousand))


def _ratio(value: Ratio | None) -> str:
    if value is None:
        return _NOTHING
    if value.lowest == value.highest:
        return f"{value.median:.2f}"
    return f"{value.median:.2f} ({value.lowest:.2f}-{value.highest:.2f})"


def _number(value: float | None, digits: int = 0, scale: float = 1, unit: str = "") -> str:
    return _NOTHING if value is None else f"{value * scale:.{digits}f}{unit}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'|'.join(['---', *['---:'] * (len(head) - 1)])}|"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""

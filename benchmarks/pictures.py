"""Pictures in docs/performance.md, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.plan import HALF, SATURATION
from benchmarks.samples import cpu_per_thousand, median, pooled_percentile, ratio
from benchmarks.targets import latency

__all__ = ["draw"]

COLOURS: Final = {
    "gateway": "#1f5fa8",
    "gateway-asyncio": "#7fb0e0",
    "nuropb_gw": "#d9822b",
    "moleculer-io": "#4f9d69",
    "web-stomp": "#8a63a8",
    "gateway-uvicorn": "#4a86c8",
    "echo": "#9aa0a6",
    "limit": "#d0d3d6",
    "limit-mesh": "#5f6368",
}
Titles = Mapping[str, str]


def draw(results: Mapping[str, Any], directory: Path) -> None:
    """Draw the picture of every measured part that has one."""
    directory.mkdir(parents=True, exist_ok=True)
    style = {
        "font.size": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 9,
        "savefig.dpi": 110,
    }
    with rc_context(style):
        for name, draw_part in DRAWN.items():
            if name in results["parts"]:
                figure = draw_part(results["parts"][name], results["titles"])
                # Without the library's version in the file, equal figures give equal files.
                figure.savefig(directory / f"{name}.png", metadata={"Software": None})


def _load(part: Any, titles: Titles) -> Figure:
    turns = part["turns"]
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    costs, *waits = figure.subplots(1, 4, width_ratios=(1.5, 1, 1, 1))
    cells = ("1", "32", SATURATION)
    names = [name for name in titles if median(turns, name, "1", cpu_per_thousand) is not None]
    values = {name: [(median(turns, name, cell, cpu_per_thousand) or 0) * 1000 for cell in cells] for name in names}
    _bars(costs, values, titles, cells)
    costs.set_title("CPU of the server, µs per request")
    costs.set_xlabel("in flight")
    panels = {"1": "1 in flight", SATURATION: "400 in flight", HALF: "half of that rate"}
    everybody = [name for name in titles if name in turns[0]]
    for axes, (cell, title) in zip(waits, panels.items(), strict=True):
        for place, name in enumerate(reversed(everybody)):
            shares = (
                median(turns, name, cell, latency("p50")),
                median(turns, name, cell, latency("p99")),
                pooled_percentile(turns, name, cell, 0.999),
            )
            points = [(each or 0) * 1000 for each in shares]
            axes.plot(points, [place] * 3, color=COLOURS[name], linewidth=1)
            for value, marker in zip(points, "o|x", strict=True):
                axes.plot(value, place, marker, color=COLOURS[name], markersize=5)
        axes.set_xscale("log")
        axes.set_title(f"latency, ms: {title}")
        axes.set_yticks([])
        axes.set_xlabel("o p50   | p99   x p99.9")
        axes.grid(axis="x", color="#dddddd", linewidth=0.5)
    handles = [Line2D([], [], color=COLOURS[name], linewidth=4) for name in everybody]
    figure.legend(
        handles, [titles[name] for name in everybody], loc="outside lower center", ncols=len(everybody), frameon=False
    )
    return figure


def _memory(part: Any, titles: Titles) -> Figure:
    counts = [count for count in part["gateway"] if count != "process"]
    values = {name: [part[name][count] / 1024 for count in counts] for name in titles if name in part}
    return _one(values, titles, counts, "KiB of memory per idle connection", "connections")


def _connect(part: Any, titles: Titles) -> Figure:
    return _by_cpu(part, titles, 1, "CPU of the server, ms per accepted connection", "")


def _fan_out(part: Any, titles: Titles) -> Figure:
    return _by_cpu(part, titles, 1000, "CPU of the server, µs per delivery", "connections")


def _growth(part: Any, titles: Titles) -> Figure:
    turns = part["turns"]
    cells = list(turns[0]["gateway"])
    figure = Figure(figsize=(5, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.axhspan(0.8, 1.2, color="#eef3e6")
    for name in (name for name in titles if name in turns[0]):
        found = [ratio(turns, name, name, cell, cpu_per_thousand, base_cell=cells[0]) for cell in cells]
        times = [each.median if each is not None else 0.0 for each in found]
        axes.plot([int(cell) for cell in cells], times, "o-", color=COLOURS[name], label=titles[name], markersize=4)
    axes.set_xscale("log")
    axes.set_xticks([int(cell) for cell in cells], cells)
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("connections, with the same load on all of them together")
    axes.set_title(f"CPU per request, times that with {cells[0]} connections (the band is 20 %)")
    axes.legend(frameon=False, loc="lower left")
    return figure


def _by_cpu(part: Any, titles: Titles, scale: float, title: str, label: str) -> Figure:
    turns = part["turns"]
    cells = list(turns[0]["gateway"])
    values = {
        name: [(median(turns, name, cell, cpu_per_thousand) or 0) * scale for cell in cells]
        for name in titles
        if name in turns[0] and median(turns, name, cells[0], cpu_per_thousand) is not None
    }
    return _one(values, titles, cells, title, label)


def _one(values: Mapping[str, list[float]], titles: Titles, cells: Sequence[str], title: str, label: str) -> Figure:
    figure = Figure(figsize=(6.5, 2.4), layout="constrained")
    axes = figure.subplots()
    _bars(axes, values, titles, cells)
    axes.set_title(title)
    axes.set_xlabel(label)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _bars(axes: Any, values: Mapping[str, list[float]], titles: Titles, cells: Sequence[str]) -> None:
    width = 0.8 / len(values)
    for place, (name, heights) in enumerate(values.items()):
        lefts = [number - 0.4 + width * (place + 0.5) for number in range(len(cells))]
        bars = axes.bar(lefts, heights, width, color=COLOURS[name], label=titles[name])
        axes.bar_label(bars, fmt="%.3g", fontsize=6, padding=1)
    axes.set_xticks(range(len(cells)), cells)


DRAWN: Final[Mapping[str, Callable[[Any, Titles], Figure]]] = {
    "load": _load,
    "memory": _memory,
    "connect": _connect,
    "fan-out": _fan_out,
    "growth": _growth,
}

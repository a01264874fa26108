"""The figures of a gateway's processes in a soak, hour by hour: memory, files, threads, tasks and tables."""

from __future__ import annotations

import asyncio
import io
import json
import math
import re
import signal
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx

from .processes import Process
from .waiting import DEADLINE

__all__ = ["Line", "Row", "Rows", "fit", "growth_of_memory", "read_rows"]

#: Tables that are bounded and do not shrink when clients leave: what is remembered of calls and sessions that ended.
REMEMBERED: Final = ("remembered_calls", "remembered_sessions")
#: A counter among the tables.
COUNTERS: Final = ("unreadable_peer_messages",)
#: Bytes of an entry of REMEMBERED at most: two texts or tuples of them, and a place in a dictionary.
ENTRY: Final = 400
#: Bytes that CPython takes from the system at a time for its small objects: a process whose need swings has one such
#: arena more or less.
ARENA: Final = 1 << 20
#: The columns of the table: the title, and the table of the debug bundle.
COLUMNS: Final = (
    ("connections", "connections"),
    ("sessions", "kept_sessions"),
    ("calls in flight", "calls_in_flight"),
    ("subscriptions", "subscriptions"),
    ("topics bound", "bound_topics"),
    ("circuits", "troubled_services"),
    ("remembered calls", "remembered_calls"),
    ("remembered sessions", "remembered_sessions"),
)


@dataclass(frozen=True)
class Row:
    """The figures of a process at a quiet moment."""

    #: Bytes of resident memory, after garbage was collected and free memory was returned to the system.
    memory: int
    files: int
    threads: int
    tasks: int
    #: The sizes of the tables for WebSockets, by the names of the debug bundle.
    tables: Mapping[str, int]

    @property
    def remembered(self) -> int:
        """The number of entries in tables that are bounded and do not shrink."""
        return sum(self.tables[name] for name in REMEMBERED)

    def steady(self) -> dict[str, int]:
        """Return the figures that have to be those of the start once all clients are gone."""
        tables = {name: size for name, size in self.tables.items() if name not in (*REMEMBERED, *COUNTERS)}
        return {"files": self.files, "tasks": self.tasks, **tables}


@dataclass
class Rows:
    """The rows of a whole soak: of the process that lives from its beginning to its end, and the others' memory."""

    titles: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    #: The largest memory of the other processes.
    others: list[int] = field(default_factory=list)
    #: Queues and bindings of the broker, if it tells.
    broker: list[tuple[int, int]] = field(default_factory=list)

    def add(self, title: str, row: Row, others: int, broker: tuple[int, int] | None) -> None:
        """Add the row of an hour."""
        self.titles.append(title)
        self.rows.append(row)
        self.others.append(others)
        if broker is not None:
            self.broker.append(broker)

    def lines(self) -> list[str]:
        """Return the rows as lines of a Markdown table."""
        titles = ["hour", "memory, MiB", "of the others", "files", "threads", "tasks", *(title for title, _ in COLUMNS)]
        if self.broker:
            titles += ["queues", "bindings"]
        lines = [_line(titles), _line(["---:"] * len(titles))]
        for number, (title, row, others) in enumerate(zip(self.titles, self.rows, self.others, strict=True)):
            cells = [title, _mebibytes(row.memory), _mebibytes(others), row.files, row.threads, row.tasks]
            cells += [row.tables[name] for _, name in COLUMNS]
            lines.append(_line([*cells, *(self.broker[number] if self.broker else ())]))
        return lines


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):.1f}"


async def read_rows(admin: Path, processes: Sequence[Process]) -> list[Row]:
    """Return the figures of processes; ``admin`` is the socket of their admin API."""
    async with asyncio.timeout(DEADLINE):
        # A process that is busy, or has no connection to the broker at the moment, is missing in the bundle.
        while not {process.pid for process in processes} <= (reports := await _reports(admin)).keys():
            await asyncio.sleep(0.5)
    return await asyncio.gather(*(_row(process, reports[process.pid]) for process in processes))


async def _reports(admin: Path) -> dict[int, dict[str, Any]]:
    """Return the reports of all processes in a debug bundle, by process id."""
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(admin)), timeout=DEADLINE) as http:
        response = await http.get("http://localhost/v1/debug-bundle")
    assert response.status_code == 200, response.text
    reports: dict[int, dict[str, Any]] = {}
    with tarfile.open(fileobj=io.BytesIO(response.content)) as archive:
        for member in archive.getmembers():
            if "/processes/" in member.name and (file := archive.extractfile(member)) is not None:
                report = json.load(file)
                reports[report["process"]["pid"]] = report
    return reports


async def _row(process: Process, report: dict[str, Any]) -> Row:
    freed = sum(line.startswith("freed ") for line in process.stdout)
    process.signal(signal.SIGUSR1)
    await process.line(rf"^freed {freed + 1}$")
    status = Path(f"/proc/{process.pid}/status").read_text()
    memory, threads = (re.search(rf"^{name}:\s+(\d+)", status, re.MULTILINE) for name in ("VmRSS", "Threads"))
    assert memory is not None
    assert threads is not None
    files = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
    tasks, tables = report["tasks"]["count"], report["tables"]["websocket"]
    return Row(int(memory[1]) * 1024, files, int(threads[1]), tasks, tables)


class Line(NamedTuple):
    """The straight line through values of one hour after the other that is nearest to them."""

    #: Growth in an hour.
    slope: float
    #: Standard error of ``slope``, as if the values' distances from the line were independent of each other.
    error: float
    #: Standard deviation of the values from the line.
    spread: float


def fit(values: Sequence[float]) -> Line:
    """Fit a line to three values or more by least squares."""
    count = len(values)
    middle, mean = (count - 1) / 2, sum(values) / count
    square = sum((hour - middle) ** 2 for hour in range(count))
    slope = sum((hour - middle) * (value - mean) for hour, value in enumerate(values)) / square
    spread = math.sqrt(
        sum((value - mean - slope * (hour - middle)) ** 2 for hour, value in enumerate(values)) / (count - 2)
    )
    return Line(slope, spread / math.sqrt(square), spread)


def growth_of_memory(rows: Sequence[Row]) -> tuple[float, float, Line]:
    """Return how much more memory the last six hours took than hours 3 to 8, its bound, both in bytes, and the line.

    ``rows`` are those of 24 hours. The bound has three parts. Entries of bounded tables that were added in between take
    so much memory. The need of a process swings by what its clients do in the hour: three times the spread around the
    line, on which steady growth has no influence. Memory comes in arenas, so that a difference of one says nothing.
    """
    early, late = rows[2:8], rows[-6:]
    line = fit([row.memory for row in rows[2:]])
    more = sum(row.memory for row in late) / len(late) - sum(row.memory for row in early) / len(early)
    entries = sum(row.remembered for row in late) / len(late) - sum(row.remembered for row in early) / len(early)
    return more, ENTRY * entries + 3 * line.spread + ARENA, line

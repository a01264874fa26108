"""Parts of the benchmark: each sends orders to the clients and returns its measurements.

A part gets its contenders, and returns the input of report.py and targets.py: turns of samples (see samples.py), and
for memory the bytes by contender and number of connections. Streams have both.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from benchmarks.contenders import Contender
from benchmarks.plan import GROWTH_IN_FLIGHT, HALF, HTTP_CELLS, SATURATION, Plan
from benchmarks.samples import rate
from benchmarks.stage import Crew, Stage, rotated
from benchmarks.tokens import ALGORITHMS

__all__ = ["PARTS"]

#: Connections opened before memory is measured, so that one-time costs are not attributed to connections.
FIRST_CONNECTIONS: Final = 100
#: Seconds for a process to become idle.
SETTLE: Final = 1.5

Say: TypeAlias = Callable[[str], None]
#: Measures one crew in one cell.
Measure: TypeAlias = Callable[[str, Crew], Mapping[str, Any]]


def measure_load(stage: Stage, plan: Plan, contenders: Sequence[Contender], say: Say) -> Any:
    """Measure requests: with a constant number in flight, and at half of the rate reached with the most in flight."""
    most = max(connections for connections, _ in plan.cells.values())
    turns = []
    with contextlib.ExitStack() as stack:
        crews = stage.start(stack, contenders)
        for crew in crews:
            crew.clients.order("open", count=most)
            _load(crew, plan, *plan.cells[SATURATION])  # warms up compilers and caches
        for turn in range(plan.turns):
            say(f"load: turn {turn + 1} of {plan.turns}")
            samples: dict[str, dict[str, Any]] = {crew.server.contender.name: {} for crew in crews}
            for cell, (connections, in_flight) in plan.cells.items():
                for crew in rotated(crews, turn):
                    samples[crew.server.contender.name][cell] = _load(crew, plan, connections, in_flight)
            for crew in rotated(crews, turn):
                measured = samples[crew.server.contender.name]
                half = rate(measured[SATURATION]) / 2
                measured[HALF] = crew.clients.order(
                    "pace", connections=most, rate=half, warm_up=plan.warm_up, seconds=plan.seconds
                )
            turns.append(samples)
    return {"turns": turns}


def measure_memory(stage: Stage, plan: Plan, contenders: Sequence[Contender], say: Say) -> Any:
    """Measure idle connections: bytes of the process with the first connections, and per connection beyond these."""
    return _memory_of(stage, plan.idle, contenders, say)


def _memory_of(
    stage: Stage, counts: Sequence[int], contenders: Sequence[Contender], say: Say, dialect: str | None = None
) -> dict[str, dict[str, float]]:
    memory = {}
    for contender in contenders:
        say(f"memory: {contender.title}")
        with contextlib.ExitStack() as stack:
            (crew,) = stage.start(stack, [contender], dialect=dialect)
            sizes = {}
            for count in (FIRST_CONNECTIONS, *counts):
                crew.clients.order("open", count=count)
                time.sleep(SETTLE)
                sizes[count] = crew.server.resident_bytes
        first = sizes.pop(FIRST_CONNECTIONS)
        memory[contender.name] = {
            "process": first,
            **{str(count): (size - first) / (count - FIRST_CONNECTIONS) for count, size in sizes.items()},
        }
    return memory


def measure_connecting(stage: Stage, plan: Plan, contenders: Sequence[Contender], say: Say) -> Any:
    """Measure connecting, from the TCP handshake to the first message, each time with a new token."""
    with contextlib.ExitStack() as stack:
        groups = {algorithm: stage.start(stack, contenders, algorithm) for algorithm in ALGORITHMS}

        def measure(cell: str, crew: Crew) -> Any:
            return crew.clients.order("connect", count=plan.handshakes)

        return {"turns": _take_turns("connect", plan, groups, measure, say)}


def measure_fan_out(stage: Stage, plan: Plan, contenders: Sequence[Contender], say: Say) -> Any:
    """Measure one event after the other to all connections."""
    return {"turns": _fan_out_to(stage, plan, plan.audiences, contenders, say)}


def _fan_out_to(
    stage: Stage,
    plan: Plan,
    audiences: Sequence[int],
    contenders: Sequence[Contender],
    say: Say,
    dialect: str | None = None,
) -> list[dict[str, dict[str, Any]]]:
    turns: list[dict[str, dict[str, Any]]] = [{} for _ in range(plan.other_turns)]

    def measure(cell: str, crew: Crew) -> Any:
        return crew.clients.order("fan_out", warm_up=plan.warm_up, seconds=plan.seconds)

    with contextlib.ExitStack() as stack:
        crews = stage.start(stack, contenders, dialect=dialect)
        for audience in audiences:
            crews = [crew for crew in crews if (crew.server.contender.most_connections or audience) >= audience]
            for crew in crews:
                crew.clients.order("open", count=audience)
                crew.clients.order("subscribe")
            group = {str(audience): crews}
            for turn, samples in zip(turns, _take_turns("fan-out", plan, group, measure, say), strict=True):
                for name, cells in samples.items():
                    turn.setdefault(name, {}).update(cells)
    return turns


def measure_http(stage: Stage, plan: Plan, contenders: Sequence[Contender], say: Say) -> Any:
    """Measure calls over HTTP, on kept connections with one call in flight each."""
    with contextlib.ExitStack() as stack:
        crews = stage.start(stack, contenders, dialect="calls")
        for crew in crews:
            crew.clients.order("open", count=max(plan.cells[cell][0] for cell in HTTP_CELLS))

        def measure(cell: str, crew: Crew) -> Any:
            return _load(crew, plan, *plan.cells[cell])

        return {"turns": _take_turns("http", plan, dict.fromkeys(HTTP_CELLS, crews), measure, say)}


def measure_streams(stage: Stage, plan: Plan, contenders: Sequence[Contender], say: Say) -> Any:
    """Measure Server-Sent Events: one event after the other to all streams, and the memory of idle streams."""
    audience = plan.audiences[0]
    turns = _fan_out_to(stage, plan, [audience], contenders, say, dialect="events")
    return {"turns": turns, "memory": _memory_of(stage, [audience], contenders, say, dialect="events")}


def measure_start(stage: Stage, plan: Plan, contenders: Sequence[Contender], say: Say) -> Any:
    """Measure the start of a server's process, from its command to its first answer that says that it is ready."""
    turns = []
    for turn in range(plan.other_turns + 1):
        say(f"start: turn {turn} of {plan.other_turns}")
        samples = {}
        for contender in contenders:
            seconds, cpu = stage.start_alone(contender)
            cell = {"count": 1, "seconds": seconds, "cpu": {"server": cpu}, "others": 0.0}
            samples[contender.name] = {"start": cell}
        turns.append(samples)
    return {"turns": turns[1:]}  # without the turn that reads all files from the disk


def measure_growth(stage: Stage, plan: Plan, contenders: Sequence[Contender], say: Say) -> Any:
    """Measure the same load on growing numbers of connections, each in its own process, so that they can take turns."""
    chosen = [contender for contender in contenders if contender.name in plan.growth_of]
    with contextlib.ExitStack() as stack:
        groups = {}
        for count in plan.growth:
            groups[str(count)] = stage.start(stack, chosen)
            for crew in groups[str(count)]:
                crew.clients.order("open", count=count)

        def measure(cell: str, crew: Crew) -> Any:
            return _load(crew, plan, int(cell), GROWTH_IN_FLIGHT)

        return {"turns": _take_turns("growth", plan, groups, measure, say)}


def measure_workers(stage: Stage, plan: Plan, contenders: Sequence[Contender], say: Say) -> Any:
    """Measure one process of the gateway, and two that share a port, with the most requests in flight."""
    with contextlib.ExitStack() as stack:
        crews = stage.start(stack, contenders)
        time.sleep(SETTLE)  # the first worker reports that it is ready; the others should be ready, too
        for crew in crews:
            crew.clients.order("open", count=plan.cells[SATURATION][0])

        def measure(cell: str, crew: Crew) -> Any:
            return _load(crew, plan, *plan.cells[cell])

        return {"turns": _take_turns("workers", plan, {SATURATION: crews}, measure, say)}


def _load(crew: Crew, plan: Plan, connections: int, in_flight: int) -> Any:
    return crew.clients.order(
        "load", connections=connections, in_flight=in_flight, warm_up=plan.warm_up, seconds=plan.seconds
    )


def _take_turns(
    name: str, plan: Plan, groups: Mapping[str, Sequence[Crew]], measure: Measure, say: Say
) -> list[dict[str, dict[str, Any]]]:
    """Measure each crew of each group (a cell) in every turn, after one turn that does not count."""
    for cell, crews in groups.items():
        for crew in crews:
            measure(cell, crew)
    turns = []
    for turn in range(plan.other_turns):
        say(f"{name} ({', '.join(groups)}): turn {turn + 1} of {plan.other_turns}")
        samples: dict[str, dict[str, Any]] = {}
        for cell, crews in groups.items():
            for crew in rotated(crews, turn):
                samples.setdefault(crew.server.contender.name, {})[cell] = measure(cell, crew)
        turns.append(samples)
    return turns


PARTS: Final[Mapping[str, Callable[[Stage, Plan, Sequence[Contender], Say], Any]]] = {
    "load": measure_load,
    "memory": measure_memory,
    "connect": measure_connecting,
    "fan-out": measure_fan_out,
    "growth": measure_growth,
    "http": measure_http,
    "streams": measure_streams,
    "start": measure_start,
    "workers": measure_workers,
}

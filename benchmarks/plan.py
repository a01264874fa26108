"""Amounts to measure, in the quick form and in the full form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

__all__ = ["FULL", "GROWTH_IN_FLIGHT", "HALF", "HTTP_CELLS", "QUICK", "SATURATION", "SPARE_FILES", "Plan", "within"]

#: The cell with the most requests in flight, and the cell with half of the rate reached there.
SATURATION: Final = "400"
HALF: Final = "half"
#: Constant number of requests in flight while the number of connections grows.
GROWTH_IN_FLIGHT: Final = 10
#: Cells of the calls over HTTP: each connection has one call in flight.
HTTP_CELLS: Final = ("1", "32")
#: Open files of a process beside its connections.
SPARE_FILES: Final = 200


@dataclass(frozen=True)
class Plan:
    """Amounts to measure. Times are in seconds."""

    name: str
    turns: int
    seconds: float
    warm_up: float
    #: Turns of the parts other than load.
    other_turns: int
    #: Connections and requests in flight, by the name of the cell.
    cells: Mapping[str, tuple[int, int]]
    idle: tuple[int, ...]
    handshakes: int
    audiences: tuple[int, ...]
    growth: tuple[int, ...]
    growth_of: frozenset[str]

    @property
    def most_connections(self) -> int:
        return max(*self.idle, *self.audiences, *self.growth, *(connections for connections, _ in self.cells.values()))


QUICK: Final = Plan(
    "quick",
    turns=6,
    seconds=0.3,
    warm_up=0.1,
    other_turns=3,
    cells={"1": (1, 1), "32": (32, 32), SATURATION: (400, 400)},
    idle=(1000,),
    handshakes=150,
    audiences=(1000,),
    growth=(10, 1000),
    growth_of=frozenset({"gateway"}),
)
FULL: Final = Plan(
    "full",
    turns=12,
    seconds=0.5,
    warm_up=0.1,
    other_turns=8,
    cells={"1": (1, 1), "32 on one": (1, 32), "32": (32, 32), SATURATION: (400, 400)},
    idle=(1000, 5000, 10000),
    handshakes=300,
    audiences=(1000, 5000),
    growth=(10, 100, 1000, 5000, 10000),
    growth_of=frozenset({"gateway", "nuropb_gw", "echo", "limit-mesh"}),
)


def within(plan: Plan, files: int) -> tuple[Plan, list[int]]:
    """Reduce the plan to ``files`` open files per process; also return the numbers of connections left out.

    Raises ValueError if the files do not suffice for every cell and the smallest number of each other part.
    """
    most = files - SPARE_FILES
    least = max(min(plan.idle), min(plan.audiences), min(plan.growth), *(each for each, _ in plan.cells.values()))
    if least > most:
        raise ValueError(f"a process may open {files} files, and {least + SPARE_FILES} are the least that is needed")
    left_out = {count for count in (*plan.idle, *plan.audiences, *plan.growth) if count > most}

    def possible(counts: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(count for count in counts if count <= most)

    reduced = replace(plan, idle=possible(plan.idle), audiences=possible(plan.audiences), growth=possible(plan.growth))
    return reduced, sorted(left_out)

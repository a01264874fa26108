"""The measurements: fleets of growing size on one broker, one after the other."""

from __future__ import annotations

import contextlib
import json
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.fleet.members import QUESTIONS, USERS
from benchmarks.fleet.simulation import simulate
from benchmarks.process import cpu_seconds
from benchmarks.stage import Process
from nuropb_gateway_asgi.fleet.members import SILENCE
from tests.servers.rabbitmq import RabbitMQNode

__all__ = ["FULL", "QUICK", "SIMULATED", "Broker", "Plan", "measure"]

#: Sizes of fleets in the quick form and in the full form.
QUICK: Final = (2, 10, 25, 50)
FULL: Final = (2, 10, 25, 50, 100, 200, 500, 1000)
#: Sizes of fleets without a broker.
SIMULATED: Final = FULL
#: Members in one Python process at most.
MEMBERS_PER_PROCESS: Final = 250
#: Seconds at rest, and seconds until the last messages of a measurement have arrived.
REST: Final = 15.0
SETTLE: Final = 0.4
#: Seconds until a broker that has booted is at rest.
BOOTED: Final = 5.0
#: Seconds for an order at most: a start of 1,000 members takes minutes of CPU time.
PATIENCE: Final = 3000
#: Seconds of a slowed fleet at rest, for each time that it is slowed: the interval of declarations, the longest one.
REST_SLOWED: Final = 15.0


@dataclass(frozen=True)
class Broker:
    """A broker by its URL, and its process, of which the CPU time is measured, if that is on this machine."""

    url: str
    pid: int | None = None

    def cpu(self) -> float:
        return 0.0 if self.pid is None else cpu_seconds(self.pid)


@dataclass(frozen=True)
class Plan:
    """The measurements of a run. ``slow`` returns the factor for all intervals of a fleet of so many members."""

    sizes: Sequence[int]
    slow: Callable[[int], float]
    #: None for a broker of the run's own.
    broker: Broker | None = None
    #: Count messages, without a broker.
    simulated: bool = False
    rest: float = REST


class Fleet:
    """The processes of one fleet, beside the broker."""

    def __init__(self, stack: contextlib.ExitStack, broker: Broker, size: int, slow: float) -> None:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))
        self.broker, self.size = broker, size
        self.processes: list[Process] = []
        name = f"fleet-{secrets.token_hex(4)}"
        for number in range(-(-size // MEMBERS_PER_PROCESS)):
            process = Process(
                f"members-{number}",
                *(sys.executable, "-m", "benchmarks.fleet.members", "--url", broker.url, "--name", name),
                *("--slow", str(slow)),
                directory=directory,
                environment={"PYTHONUNBUFFERED": "1"},
            )
            stack.callback(process.stop)
            self.processes.append(process)

    def order(self, do: str, **arguments: Any) -> None:
        """Give an order to all processes, which follow it at the same time."""
        for process in self.processes:
            send(process, do, **arguments)
        for process in self.processes:
            process.line(PATIENCE)

    def start(self) -> None:
        first = 0
        for number, process in enumerate(self.processes):
            share = self.size // len(self.processes) + (number < self.size % len(self.processes))
            send(process, "start", first=first, count=share)
            first += share
        for process in self.processes:
            process.line(PATIENCE)
        self.order("know", total=self.size)
        self.order("settle")

    def counts(self) -> Counter[str]:
        total: Counter[str] = Counter()
        for process in self.processes:
            send(process, "counts")
            total.update(json.loads(process.line(PATIENCE)))
        total["broker"] = self.broker.cpu()  # type: ignore[assignment]
        total["seconds"] = time.monotonic()  # type: ignore[assignment]
        return total

    def over(self, do: Callable[[], object], wait: float = SETTLE) -> dict[str, float]:
        """Return the difference of all counts over ``do``."""
        before = self.counts()
        do()
        time.sleep(wait)
        after = self.counts()
        return {name: after[name] - before[name] for name in after if name not in ("resident", "time")}


def send(process: Process, do: str, **arguments: Any) -> None:
    assert process._process.stdin is not None
    process._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
    process._process.stdin.flush()


def _burst(process: Process, **arguments: Any) -> None:
    send(process, "burst", **arguments)
    process.line(PATIENCE)


def _ask(process: Process, answers: list[Any], **arguments: Any) -> None:
    send(process, "ask", **arguments)
    answers.append(json.loads(process.line(PATIENCE)))


def per(counts: Mapping[str, float], number: float) -> dict[str, float]:
    return {name: value / number for name, value in counts.items()}


def measure(plan: Plan) -> Iterator[dict[str, Any]]:
    """Measure the fleets of a plan; yield the figures of each."""
    if plan.simulated:
        yield from map(simulate, plan.sizes)
        return
    with contextlib.ExitStack() as outer:
        broker = plan.broker
        if broker is None:
            node = outer.enter_context(RabbitMQNode())
            broker = Broker(node.url(), node.pid)
            time.sleep(BOOTED)
        for size in plan.sizes:
            with contextlib.ExitStack() as stack:
                yield _measure_one(stack, broker, size, plan)


def _idle(broker: Broker) -> float:
    """Return the CPU time of a broker at rest, in seconds for a second."""
    if broker.pid is None:
        return 0.0
    before = broker.cpu()
    time.sleep(2.0)
    return (broker.cpu() - before) / 2.0


def _measure_one(stack: contextlib.ExitStack, broker: Broker, size: int, plan: Plan) -> dict[str, Any]:
    slow = plan.slow(size)
    idle = _idle(broker)
    fleet = Fleet(stack, broker, size, slow)
    found: dict[str, Any] = {"members": size, "slow": slow, "broker": True}
    found["start"] = fleet.over(fleet.start)
    found["resident"] = fleet.counts()["resident"]

    resting = fleet.over(lambda: fleet.order("sleep", seconds=max(plan.rest, REST_SLOWED * slow)), 0.0)
    resting["broker"] -= idle * resting["seconds"]
    # In the time of a fleet that is not slowed down.
    found["rest"] = {name: value * slow / resting["seconds"] for name, value in resting.items() if name != "seconds"}

    found["start"]["delivered"] -= found["start"].pop("delivered sign", 0.0)
    fleet.order("users", each=USERS)
    fleet.order("settle")

    found["questions"] = {}
    times = 10 if size <= 100 else 5
    for name, (what, arguments) in QUESTIONS.items():
        answers: list[Any] = []
        cost = fleet.over(partial(_ask, fleet.processes[0], answers, what=what, times=times, arguments=arguments))
        found["questions"][name] = {**per(_of(cost, "ask", "answer", "records"), times), **answers[0]}

    def churn() -> None:
        fleet.order("leave", each=5)
        fleet.order("users", each=5)

    found["change of a user"] = per(_of(fleet.over(churn, 1.0), "news"), 2 * 5 * size)
    for name, everybody, bursts in (("to one", False, 2000), ("to all", True, max(20, 4000 // size))):
        cost = fleet.over(partial(_burst, fleet.processes[0], times=bursts, everybody=everybody))
        for part in ("cpu", "broker"):
            cost[part] -= resting[part] / resting["seconds"] * cost["seconds"]
        found[f"burst {name}"] = per(cost, bursts)
    death = fleet.over(partial(_die, fleet), 0.0)
    death["delivered"] -= death.pop("delivered sign", 0.0)
    for name in ("cpu", "broker"):
        death[name] -= resting[name] / resting["seconds"] * death["seconds"]
    found["death"] = {**death, "silence": SILENCE * slow}
    return found


def _die(fleet: Fleet) -> None:
    fleet.processes[-1].order("die")
    fleet.order("know", total=fleet.size - 1)
    fleet.order("settle")


def _of(counts: Mapping[str, float], *kinds: str) -> dict[str, float]:
    """Return the counts of some kinds of messages alone: signs of life come meanwhile."""
    return {what: sum(counts.get(f"{what} {kind}", 0.0) for kind in kinds) for what in ("published", "delivered")} | {
        kind: counts[kind] for kind in kinds if kind == "records" and kind in counts
    }

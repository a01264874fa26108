"""The memory and the CPU time that a process of a fleet has for a million users: the gateway's own tables.

A process takes the same messages in which its peers tell their users. Each case is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import hashlib
import json
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from msgspec import Raw

from benchmarks.fleet.members import authenticate
from benchmarks.fleet.simulation import Network, SimulatedMember
from nuropb_gateway_asgi.authorization import ExposePolicy
from nuropb_gateway_asgi.fleet import OnlineWatch
from nuropb_gateway_asgi.fleet.directory import partition_of
from nuropb_gateway_asgi.fleet.messages import Alive, News, Roster, encode
from nuropb_gateway_asgi.fleet.presence import DEBOUNCE
from nuropb_gateway_asgi.fleet.roster import PARTITIONS
from nuropb_gateway_asgi.handler_manager import HandlerManager
from nuropb_gateway_asgi.settings import Settings

__all__ = ["CASES", "measure_users"]

USERS: Final = 1_000_000
#: Users in one message of a peer process.
IN_A_MESSAGE: Final = 1000
#: Name, members of the fleet, and whether presence events are on.
CASES: Final = (
    ("where users are", 1000, False),
    ("where users are", 17, False),
    ("presence", 1000, True),
    ("presence", 17, True),
    ("presence", 16, True),
)


def user_id(number: int) -> str:
    """Return a user id of 36 characters, as many as a UUID has."""
    text = hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def told_users(size: int, partitions: set[int]) -> Iterator[tuple[str, list[str]]]:
    """Yield the users that each of the other members tells to the registrar of ``partitions``."""
    for member in range(1, size):
        users = (user_id(number) for number in range(member - 1, USERS, size - 1))
        own = [each for each in users if not partitions or partition_of(each) in partitions]
        for first in range(0, len(own), IN_A_MESSAGE):
            yield f"address-{member:04}", own[first : first + IN_A_MESSAGE]


async def _measure(size: int, presence: bool, traced: bool) -> dict[str, float]:
    network = Network()
    member = SimulatedMember(network, 0)
    now = 0.0
    watch = None
    fleet = member.fleet
    if presence:
        handlers = HandlerManager(Settings(targeted_topics=()), authenticate, ExposePolicy([], []))
        mesh: Any = member.mesh
        watch = OnlineWatch(fleet, handlers, mesh, lambda: now)
    member.start()
    registrars: dict[int, str] = {}
    if size > 16:
        count = min(size, PARTITIONS)
        names = [member.mesh.address, *(f"address-{each:04}" for each in range(1, count))]
        registrars = {each: names[each % count] for each in range(PARTITIONS)}
    addresses = {f"address-{each:04}": f"instance-{each}" for each in range(1, size)}
    for address, instance_id in addresses.items():
        fleet.on_message(encode(Alive(address, instance_id, version=2)))
    roster = Roster("address-0001", "instance-1", 5, 0, members=addresses, registrars=registrars, tells_all=True)
    fleet.on_message(encode(roster))
    partitions = {each for each, address in registrars.items() if address == member.mesh.address}
    topic = "users" if presence else "whereabouts"
    messages = []
    users = 0
    for address, ids in told_users(size, partitions):
        news: Any = {"came": ids}
        if presence:
            news = dict.fromkeys(ids, True)
            topic = "changed"
        messages.append(encode(News(address, topic, Raw(msgspec.json.encode(news)))))
        users += len(ids)
    gc.collect()
    if traced:
        tracemalloc.start()
    began = time.process_time()
    for message in messages:
        fleet.on_message(message)
    took = time.process_time() - began
    if watch is not None:
        now = DEBOUNCE + 1
        watch.presence.settle(now)
        assert len(watch.presence.online) == users
    else:
        assert len(member.whereabouts.directory) == users
    gc.collect()
    held = tracemalloc.get_traced_memory()[0] if traced else 0
    member.die()
    return {"users": users, "bytes": held, "seconds": took}


def measure_users() -> Iterator[dict[str, Any]]:
    """Measure all cases; yield the figures of each."""
    for name, size, presence in CASES:
        found: dict[str, Any] = {"table": name, "members": size}
        for traced in (True, False):
            command = (sys.executable, "-m", "benchmarks.fleet.users", str(size), str(int(presence)), str(int(traced)))
            measured = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            found["users"] = measured["users"]
            found["bytes" if traced else "seconds"] = measured["bytes" if traced else "seconds"]
        yield found


def main() -> None:
    parser = argparse.ArgumentParser(description="Take in the users of a fleet's other members.")
    for name in ("size", "presence", "traced"):
        parser.add_argument(name, type=int)
    options = parser.parse_args()
    print(json.dumps(asyncio.run(_measure(options.size, bool(options.presence), bool(options.traced)))))


if __name__ == "__main__":
    main()

"""What the processes of a benchmark have in common."""

from __future__ import annotations

import asyncio
import ctypes
import importlib
import importlib.util
import signal
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine on uvloop if that is there, and on asyncio's own event loop otherwise."""
    if importlib.util.find_spec("uvloop") is None:
        asyncio.run(main)
    else:
        importlib.import_module("uvloop").run(main)


def end_with_parent() -> None:
    """Have the kernel end this process when its parent ends, however that comes about."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def family(pid: int) -> list[int]:
    """A process and those that it started, and they in turn, as of now."""
    found = [pid]
    for each in found:
        for task in Path(f"/proc/{each}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads of a process (utime + stime in its /proc/PID/stat), to the nanosecond."""
    return time.clock_gettime((~pid << 3) | 2)


def busy_seconds() -> float:
    """The time that all processors of this machine were not idle, by the kernel's clock ticks (1/100 s)."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system + irq + softirq) / 100


def resident_bytes(pid: int) -> int:
    """The memory of a process that is in RAM (VmRSS)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(f"process {pid} has ended")

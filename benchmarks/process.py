"""Helpers for the processes of a run: event loop, parent, CPU time and memory."""

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
    """Run a coroutine on uvloop if it is installed, else on asyncio's own event loop."""
    if importlib.util.find_spec("uvloop") is None:
        asyncio.run(main)
    else:
        importlib.import_module("uvloop").run(main)


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, for whatever reason."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def family(pid: int) -> list[int]:
    """Return the ids of a process and all its current descendants."""
    found = [pid]
    for each in found:
        for task in Path(f"/proc/{each}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def cpu_seconds(pid: int) -> float:
    """Return user and system time of all threads of a process (utime + stime in /proc/PID/stat), to the nanosecond."""
    return time.clock_gettime((~pid << 3) | 2)


def busy_seconds() -> float:
    """Return the busy time of all processors of this machine, in the kernel's clock ticks (1/100 s)."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system + irq + softirq) / 100


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process (VmRSS)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(f"process {pid} has ended")

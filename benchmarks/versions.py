"""Versions of machine and packages: ``python -m benchmarks.versions PACKAGE...`` prints those of its own Python."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["machine", "python_with"]


def machine() -> str:
    """Describe processors, memory and operating system."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    system = f"{platform.system()} {platform.release().split('-')[0]}"
    return f"{os.cpu_count()} x {names[0] if names else platform.machine()}, {memory:.0f} GiB, {system}"


def python_with(packages: Iterable[str]) -> str:
    """Describe this Python and the installed ones of ``packages``."""
    found = []
    for name in packages:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return f"{platform.python_implementation()} {platform.python_version()}: {', '.join(found)}"


if __name__ == "__main__":
    print(python_with(sys.argv[1:]))

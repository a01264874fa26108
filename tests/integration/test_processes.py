"""Processes of the tests that begin as forks: they differ from others in nothing that a program sees."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any, Final

import pytest

from tests.kit.processes import run_forked, run_module

PROGRAM: Final = """
import os, signal, sys
print(__name__, sys.argv, sys.orig_argv[1:], os.getcwd(), sys.path[0])
print(sorted(name for name in os.environ if name.startswith("NUROPB_GATEWAY_")), os.environ["OWN"])
print([signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)])
print(sys.stdin.read(), sorted(os.listdir("/proc/self/fd"))[:3], len(os.listdir("/proc/self/fd")), os.getpgrp())
sys.stdout.flush()
{end}
"""
ENDS: Final = {
    "its end": ("", 0),
    "an exit": ("sys.exit(3)", 3),
    "words": ("sys.exit('no')", 1),
    "an exception": ("raise ValueError('of its own')", 1),
    "a signal": ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    "an interrupt": ("os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT),
}


@pytest.mark.parametrize(("end", "status"), ENDS.values(), ids=ENDS)
async def test_a_fork_is_as_a_process_of_its_own(end: str, status: int, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM.format(end=end))
    seen: list[Any] = []
    for run in (run_module, run_forked):
        arguments = ("program", "--one", "two")
        options: dict[str, Any] = {"settings": {"JWT_KEY": "k"}, "environment": {"OWN": "1"}, "cwd": tmp_path}
        async with run(*arguments, **options) as process:
            assert await process.wait() == status
            seen.append((process.stdout, process.stderr[-1:]))
    assert seen[0] == seen[1]


async def test_a_variable_of_python_takes_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import sys\nprint(sys.flags.optimize)")
    async with run_forked("program", environment={"PYTHONOPTIMIZE": "2"}, cwd=tmp_path) as process:
        assert await process.wait() == 0
    assert process.stdout == ["2"]

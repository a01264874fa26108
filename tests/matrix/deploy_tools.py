"""The tools that check the files of ``deploy/``, in an environment of their own: Python 3.12 or newer."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, Final

from tests.kit.processes import ROOT
from tests.servers.processes import unavailable

__all__ = ["ask", "find_deploy_tool", "run_tool"]

#: Where `make matrix` puts the tools that come from PyPI.
TOOLS: Final = ROOT / ".venv-deploy" / "bin"


def find_deploy_tool(name: str) -> Path:
    """Return the path of a tool. Without it the test is skipped."""
    program = TOOLS / name
    if not program.exists():
        unavailable(f"{name} is not in .venv-deploy: `make matrix` installs it")
    return program


def run_tool(name: str, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a tool, with ``text`` as its standard input."""
    command = [str(find_deploy_tool(name)), *arguments]
    return subprocess.run(command, cwd=ROOT, input=text or "", capture_output=True, text=True, check=False)


def ask(script: str, **values: Any) -> Any:
    """Run Python code with these ``values`` as variables, and return the JSON that it prints."""
    done = run_tool(
        "python", "-c", f"import json, sys\nglobals().update(json.load(sys.stdin))\n{script}", text=json.dumps(values)
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)

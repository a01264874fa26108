"""A runner of notebooks without Jupyter: ``python -m tests.kit.notebook FILE``.

As in Jupyter, all cells share their names, and the value of a cell's last line is printed.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

__all__ = ["run"]


def run(path: Path) -> None:
    """Run the code cells in order, up to the first exception."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"], 1):
        if cell["cell_type"] != "code":
            continue
        assert cell["outputs"] == [], f"cell {number} has outputs of somebody's own run"
        statements = ast.parse("".join(cell["source"]))
        last = statements.body.pop() if isinstance(statements.body[-1], ast.Expr) else None
        name = f"{path.name}[{number}]"
        exec(compile(statements, name, "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), name, "eval"), names)
            print(f"[{number}] {value!r}" if value is not None else f"[{number}]", flush=True)


if __name__ == "__main__":
    run(Path(sys.argv[1]))

"""Prints constraints for pip: the oldest versions that pyproject.toml allows. ``python -m tests.kit.oldest``."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

__all__ = ["constraints"]

_REQUIREMENT = re.compile(r"([\w.-]+)(?:\[[^\]]*\])?\s*>=\s*([\w.]+)[^;]*(;.*)?")


def constraints(path: Path) -> Iterator[str]:
    """Yield a line for each package that users install, those of extras included; tools for development may be new."""
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    for requirement in (*project["dependencies"], *(each for extra in extras for each in extra)):
        match = _REQUIREMENT.fullmatch(requirement)
        if match is None:
            raise ValueError(f"{requirement}: no oldest version; expected name>=version")
        yield f"{match[1]}=={match[2]}{match[3] or ''}"


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in constraints(Path(__file__).parents[2] / "pyproject.toml"))

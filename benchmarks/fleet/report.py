"""Tables and pictures of docs/scale.md."""

from __future__ import annotations

from typing import Any


def write(results: list[dict[str, Any]], before: list[dict[str, Any]] | None, *, into_docs: bool) -> str:
    return ""

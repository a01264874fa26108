"""The log of tool calls: one line for each, with caller, tool, outcome and time."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from ..protocol import encode_json

__all__ = ["log_call"]

logger = logging.getLogger(__name__)

#: Characters of a call's arguments in the log.
MAX_ARGUMENTS: Final = 1000


def log_call(
    user_id: str, tool: str, outcome: str, seconds: float, trace_id: str, arguments: Mapping[str, Any] | None
) -> None:
    """Log a call of ``tool`` (``service.method``). ``outcome`` is "ok" or an error code; no ``arguments``: None."""
    said = "" if arguments is None else f" arguments={_shown(arguments)}"
    logger.info(
        "tool call user=%s tool=%s outcome=%s ms=%d trace=%s%s",
        _plain(user_id),
        tool,
        outcome,
        round(seconds * 1000),
        _plain(trace_id),
        said,
        extra={"trace_id": trace_id},
    )


def _plain(text: str) -> str:
    return text if text.isprintable() and " " not in text else ascii(text)


def _shown(arguments: Mapping[str, Any]) -> str:
    text = encode_json(arguments).decode()
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= MAX_ARGUMENTS else f"{text[:MAX_ARGUMENTS]}..."

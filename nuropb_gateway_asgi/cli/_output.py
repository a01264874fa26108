"""Output: results as JSON, and text without control characters, which could take over a terminal."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import click

__all__ = ["counted", "dump", "printable", "printable_lines", "say"]

_ASTRAL = 0xFFFF


def printable(text: str) -> str:
    """Escape everything in ``text`` that is not printable, such as sequences that move a cursor."""
    return "".join(each if each.isprintable() else _escaped(each) for each in text)


def printable_lines(text: str) -> str:
    """Escape as :func:`printable` does, except for tabs and the ends of lines."""
    return re.sub(r"[^\n\t]+", lambda match: printable(match[0]), text)


def counted(number: int, noun: str) -> str:
    """Write a number of things: ``1 method``, ``2 methods``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def dump(value: Any, *, pretty: bool = False) -> str:
    """Encode ``value`` as JSON: in one line, or indented if ``pretty``."""
    separators = None if pretty else (",", ":")
    text = json.dumps(value, ensure_ascii=not _speaks_unicode(), indent=2 if pretty else None, separators=separators)
    # Characters to escape are in strings only: the rest of JSON is printable. So the result is still JSON.
    return "\n".join(printable(line) for line in text.split("\n"))


def say(text: str) -> None:
    """Print a line to standard error."""
    click.echo(f"nuropb-gateway: {printable(text)}", err=True)


def _escaped(character: str) -> str:
    number = ord(character)
    if number > _ASTRAL:
        number -= 0x10000
        return f"\\u{0xD800 + (number >> 10):04x}\\u{0xDC00 + (number & 0x3FF):04x}"
    return f"\\u{number:04x}"


def _speaks_unicode() -> bool:
    return re.match("utf", sys.stdout.encoding or "", re.IGNORECASE) is not None

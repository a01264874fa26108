"""Trees of values that know their lines, and the limits of the files that they come from."""

from __future__ import annotations

import math
import re
from typing import Any, Final

from ..exceptions import SettingsError

__all__ = [
    "MAX_DEPTH",
    "MAX_NODES",
    "MAX_NUMBER",
    "MAX_SIZE",
    "Flaw",
    "MockFileError",
    "Node",
    "checked_number",
    "kind",
    "number",
]

#: Bytes of a file.
MAX_SIZE: Final = 1 << 20
#: Levels of lists and mappings. Answers may have as many as a client's frame by default, and stand some levels deep.
MAX_DEPTH: Final = 40
#: Values of a file.
MAX_NODES: Final = 50_000
#: Above it JavaScript reads another integer.
MAX_NUMBER: Final = 2**53


class MockFileError(SettingsError):
    """A file of mocks has a mistake; the message names the file, the line, the fact and the expected value."""


class Flaw(Exception):
    """A mistake at a node, or at a line. The reader of the file makes a MockFileError of it."""

    def __init__(self, where: Node | int, reason: str) -> None:
        super().__init__(reason)
        self.where = where
        self.reason = reason


class Node:
    """A value of a file, with its line: a scalar, a list of nodes, or a dict of nodes."""

    __slots__ = ("key_lines", "line", "path", "value")

    def __init__(self, value: Any, line: int, path: tuple[str | int, ...] = ()) -> None:
        self.value = value
        #: 0 if the format does not tell lines; then ``path`` leads there.
        self.line = line
        self.path = path
        #: The lines of the keys of a mapping.
        self.key_lines: dict[str, int] = {}

    @property
    def plain(self) -> Any:
        """The value without lines. Its depth is limited."""
        if isinstance(self.value, dict):
            return {name: each.plain for name, each in self.value.items()}
        if isinstance(self.value, list):
            return [each.plain for each in self.value]
        return self.value

    def mapping(self, what: str) -> dict[str, Node]:
        """Return the members of a mapping. Raises Flaw for any other value."""
        if not isinstance(self.value, dict):
            raise Flaw(self, f"{what} is {kind(self.value)}; expected a mapping")
        return self.value

    def items(self, what: str) -> list[Node]:
        """Return the items of a list. Raises Flaw for any other value."""
        if not isinstance(self.value, list):
            raise Flaw(self, f"{what} is {kind(self.value)}; expected a list")
        return self.value

    def text(self, what: str) -> str:
        """Return a text. Raises Flaw for any other value."""
        if not isinstance(self.value, str):
            raise Flaw(self, f"{what} is {kind(self.value)}; expected a text")
        return self.value

    def check_keys(self, what: str, allowed: frozenset[str]) -> None:
        """Raise Flaw for a member that is not allowed."""
        for name, each in self.mapping(what).items():
            if name not in allowed:
                at = self.key_lines.get(name, 0) or each
                raise Flaw(at, f"{what} has an unknown key {name[:40]!r}; expected {', '.join(sorted(allowed))}")


def kind(value: object) -> str:
    """Name the kind of a value, for messages."""
    names = {dict: "a mapping", list: "a list", str: "a text", bool: "true or false", type(None): "empty"}
    return names.get(type(value), "a number")


def number(text: str, line: int) -> int | float:
    """Read a number, or raise Flaw for one that JSON or JavaScript cannot express."""
    if len(text) > 40:
        raise Flaw(line, f"a number has {len(text)} characters; expected at most 40")
    found = int(text) if re.fullmatch(r"[-+]?[0-9]+", text) else float(text)
    return checked_number(found, line)


def checked_number(found: float, where: Node | int) -> int | float:
    """Return ``found``, or raise Flaw if JSON or JavaScript cannot express it."""
    if not math.isfinite(found) or (isinstance(found, int) and abs(found) > MAX_NUMBER):
        raise Flaw(where, "a number is out of range; expected a finite one, and an integer of at most 2**53")
    return found

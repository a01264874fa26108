"""The lines of rules and keys in a policy file, for error messages: Python's TOML reader does not tell them. Pure."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["Lines"]


class Lines:
    """The lines of all ``[[rule]]`` tables and keys of a valid TOML document."""

    def __init__(self, text: str) -> None:
        #: The line of each ``[[rule]]``, and those of its keys.
        self.rules: list[tuple[int, dict[str, int]]] = []
        self._keys: dict[str, int] = {}
        for line, statement, table in _statements(text):
            is_header = statement.startswith("[")
            if statement.startswith("[[") and table == {"rule": [{}]}:
                self.rules.append((line, {}))
            elif is_header and self.rules and list(table) == ["rule"]:  # [rule.when] belongs to the last rule
                _note(self.rules[-1][1], _only_table(table["rule"]), line)
            elif is_header or not self.rules:
                _note(self._keys, table, line)
            else:
                _note(self.rules[-1][1], table, line)

    def of_key(self, key: str) -> int:
        """Return the line of a key outside of the rules."""
        return self._keys.get(key, 1)


def _note(keys: dict[str, int], table: Mapping[str, Any], line: int) -> None:
    for key in table:
        keys.setdefault(key, line)


def _only_table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _statements(text: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield the statements of a valid document: the first line, the text, and the content as a document of its own.

    A statement ends with the first line at which the text since the last statement is a valid document by itself: while
    a string or a list is open, it is not. So the TOML reader finds the statements, and does not take a ``[[rule]]``
    within a string of several lines for a rule.
    """
    begun: list[str] = []
    first = 0
    for number, line in enumerate(text.split("\n"), start=1):
        if not begun:
            if not line.strip(" \t") or line.lstrip(" \t").startswith("#"):
                continue
            first = number
        elif not any(end in line for end in ("]", "}", '"""', "'''")):
            begun.append(line)
            continue  # a string or list that is open before this line stays open after it
        begun.append(line)
        statement = "\n".join(begun).lstrip(" \t")
        try:
            table = tomllib.loads(statement)
        except ValueError:
            continue
        begun.clear()
        yield first, statement, table

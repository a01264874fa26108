"""Texts of services, made fit for an agent: bounded, and without characters that people do not see. Pure."""

from __future__ import annotations

import unicodedata
from typing import Final

__all__ = ["plain_text"]

#: Categories of characters that are invisible, or have no meaning of their own: control and format characters
#: (directions, zero widths, tags), surrogates, private and unassigned ones.
_INVISIBLE: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
#: Invisible characters of other categories: fillers, the combining grapheme joiner, the blank Braille pattern, line
#: and paragraph separators.
_BLANK: Final = frozenset("\u115f\u1160\u3164\uffa0\u034f\u17b4\u17b5\u2800\u2028\u2029")


def plain_text(text: str, most: int) -> str:
    """Return ``text`` with at most ``most`` characters, ending in "..." if it was longer.

    Invisible characters are left out, so that an agent and a person read the same. White space becomes
    single spaces; line breaks stay.
    """
    # More than this is not looked at: a description may be megabytes.
    text = text[: 2 * most]
    lines = (" ".join(_visible_of(line).split()) for line in text.split("\n"))
    text = "\n".join(line for line in lines if line)
    return text if len(text) <= most else f"{text[: max(most - 3, 0)].rstrip()}..."


def _visible_of(line: str) -> str:
    return line if line.isascii() and line.isprintable() else "".join(map(_visible, line))


def _visible(character: str) -> str:
    if character.isspace() and character not in _BLANK:
        return " "
    if character in _BLANK or unicodedata.category(character) in _INVISIBLE or _is_variation(character):
        return ""
    return character


def _is_variation(character: str) -> bool:
    """Return whether it selects a variant of the character before it; a row of them can hold a hidden text."""
    return "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"

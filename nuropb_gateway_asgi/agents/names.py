"""Names of tools: ``service__method``, of characters that every host takes. Pure."""

from __future__ import annotations

import hashlib
import re
from typing import Final

__all__ = ["MAX_LENGTH", "method_of", "tool_name"]

#: Characters of a name; some hosts refuse longer ones.
MAX_LENGTH: Final = 64
_SEPARATOR: Final = "__"
#: Hexadecimal digits of the suffix of a name that cannot be read back.
_DIGITS: Final = 10
_NOT_TAKEN = re.compile(r"[^A-Za-z0-9_-]")
#: Names that can be read back in one way only: no part has the separator, nor an underscore beside it. A method has no
#: hyphen, so no such name ends as one with a suffix does.
_SERVICE = re.compile(r"(?!.*__)[A-Za-z0-9_-]*[A-Za-z0-9-]")
_METHOD = re.compile(r"(?!.*__)[A-Za-z0-9][A-Za-z0-9_]*")


def tool_name(service: str, method: str) -> str:
    """Return the name of the tool for a method.

    The name depends on the method alone. Where ``service__method`` would be too long, could be read as another
    method, or has characters that a host may refuse, it is shortened and ends with a digest of the full name.
    """
    name = f"{service}{_SEPARATOR}{method}"
    if len(name) <= MAX_LENGTH and _SERVICE.fullmatch(service) and _METHOD.fullmatch(method):
        return name
    digest = hashlib.sha256(f"{service}.{method}".encode()).hexdigest()[:_DIGITS]
    return f"{_NOT_TAKEN.sub('_', name)[: MAX_LENGTH - _DIGITS - 1]}-{digest}"


def method_of(name: str) -> tuple[str, str] | None:
    """Return the service and the method that a name tells by itself, or None for any other name."""
    service, _, method = name.partition(_SEPARATOR)
    fits = len(name) <= MAX_LENGTH and _SERVICE.fullmatch(service) and _METHOD.fullmatch(method)
    return (service, method) if fits else None

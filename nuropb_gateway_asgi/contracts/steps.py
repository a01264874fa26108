"""Documents in slices: generators that yield between two slices of work, and return the result. Pure."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any, TypeVar

from ..limits.slices import METHODS_PER_SLICE
from ..protocol import encode_json

__all__ = ["encode_in_steps", "finish"]

T = TypeVar("T")


def finish(steps: Generator[None, None, T]) -> T:
    """Do all steps at once, and return the result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


def encode_in_steps(document: Mapping[str, Any], levels: int = 2) -> Generator[None, None, bytes]:
    """Encode a document as JSON; the objects of the first ``levels`` are encoded member by member."""
    members = []
    for key, value in document.items():
        if levels and isinstance(value, dict):
            text = yield from encode_in_steps(value, levels - 1)
        else:
            text = encode_json(value)
        members.append(b"%b:%b" % (encode_json(key), text))
        if len(members) % METHODS_PER_SLICE == 0:
            yield
    return b"{%b}" % b",".join(members)

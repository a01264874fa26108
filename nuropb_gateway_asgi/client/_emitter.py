"""Listeners by name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

__all__ = ["Emitter", "guarded"]


class Emitter:
    """Whom to tell of what."""

    def __init__(self, names: frozenset[str]) -> None:
        self._listeners: dict[str, list[Callable[[Any], object]]] = {name: [] for name in names}

    def on(self, name: str, listener: Callable[[Any], object]) -> Callable[[], None]:
        """Call ``listener`` from now on; the result ends that. Raises ValueError for a name that is never told of."""
        if name not in self._listeners:
            raise ValueError(f"there is no {name!r}; there are {', '.join(sorted(self._listeners))}")
        listeners = self._listeners[name]

        # A function of its own for every call, so that a listener can be added twice and removed once.
        def entry(value: Any) -> object:
            return listener(value)

        def remove() -> None:
            if entry in listeners:
                listeners.remove(entry)

        listeners.append(entry)
        return remove

    def emit(self, name: str, value: object) -> bool:
        """Tell everybody; whether there was anybody."""
        listeners = tuple(self._listeners[name])
        for listener in listeners:
            guarded(listener, value)
        return bool(listeners)


def guarded(function: Callable[[Any], object], value: object) -> None:
    """Call an application's function; what it raises is reported to the event loop, and nothing fails over it."""
    try:
        function(value)
    except Exception as error:
        context = {"message": "A listener of the gateway client raised an exception", "exception": error}
        asyncio.get_running_loop().call_exception_handler(context)

"""Listeners, by the names of the events that they hear."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

__all__ = ["Emitter", "guarded"]


class Emitter:
    """The listeners of an object. ``names`` are the names under which it emits values."""

    def __init__(self, names: frozenset[str]) -> None:
        self._listeners: dict[str, list[Callable[[Any], object]]] = {name: [] for name in names}

    def on(self, name: str, listener: Callable[[Any], object]) -> Callable[[], None]:
        """Call ``listener`` for every ``name`` from now on. Returns a function that removes it.

        Raises ValueError for an unknown name.
        """
        if name not in self._listeners:
            raise ValueError(f"unknown name {name!r}; expected one of {', '.join(sorted(self._listeners))}")
        listeners = self._listeners[name]

        # A function for each call of on(), so that a listener added twice can be removed once.
        def entry(value: Any) -> object:
            return listener(value)

        def remove() -> None:
            if entry in listeners:
                listeners.remove(entry)

        listeners.append(entry)
        return remove

    def emit(self, name: str, value: object) -> bool:
        """Call the listeners of ``name``. Returns whether there were any."""
        listeners = tuple(self._listeners[name])
        for listener in listeners:
            guarded(listener, value)
        return bool(listeners)


def guarded(function: Callable[[Any], object], value: object) -> None:
    """Call an application's function. Its exceptions go to the event loop's exception handler, and no further."""
    try:
        function(value)
    except Exception as error:
        context = {"message": "A listener of the gateway client raised an exception", "exception": error}
        asyncio.get_running_loop().call_exception_handler(context)

"""The gateway's protocols in a uvicorn that another program configures and starts.

uvicorn reads the classes of its protocols from its configuration for every connection, and it accepts the first
connection after the lifespan has started. So the lifespan can still put classes in place: with ``uvicorn
nuropb_gateway_asgi:app``, in an application that mounts the gateway, in workers, under gunicorn's worker for uvicorn,
and in a server that a program runs in its own event loop or thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from ..settings import ENV_PREFIX
from ._uvicorn import unplaced, unprotected
from .process import limit_event_loop, provide_files

if TYPE_CHECKING:
    import uvicorn

__all__ = ["protocols_in_place"]

#: Choices of uvicorn's ``--http`` and ``--ws`` that the gateway's protocols extend: nothing, or the base class by name.
#: Any other choice is the operator's, and stays.
EXTENDED_HTTP: Final = ("auto", "h11")
EXTENDED_WS: Final = ("auto", "websockets-sansio")
#: The module of uvicorn's lifespan, which is imported wherever uvicorn runs.
_LIFESPAN: Final = "uvicorn.lifespan.on"
#: The attributes of uvicorn's configuration with the classes in use, and the connections that they serve.
_HTTP: Final = "http_protocol_class"
_WS: Final = "ws_protocol_class"
_KINDS: Final = {_HTTP: "HTTP", _WS: "WebSocket"}


@contextlib.contextmanager
def protocols_in_place(max_connections: int) -> Iterator[None]:
    """Put the gateway's protocols in place of uvicorn's own, for as long as the context lasts.

    To be entered by the lifespan. It changes nothing under another server, under a uvicorn whose protocols the operator
    has chosen, and where the gateway's are in place already. ``max_connections`` is the number to provide files for.
    """
    # The gateway's own logger may have no handler in the application; uvicorn's has one.
    log = logging.getLogger("uvicorn.error")
    config, problem = None, None
    if _LIFESPAN in sys.modules and (problem := unplaced()) is None:
        config = _starting_server()
    replaced = {} if config is None else _replaceable(config)
    if replaced and (problem := unprotected()) is not None:
        replaced = {}
    if problem is not None and _are_uvicorns():
        log.warning(
            "request heads, fragments and pings have only uvicorn's own limits: %s; install an older release of it, or "
            "a newer release of the gateway",
            problem,
        )
    if config is None or not replaced:
        yield
        return
    for name, class_ in _own_classes(replaced).items():
        setattr(config, name, class_)
    limit_event_loop(asyncio.get_running_loop(), tls=config.is_ssl)
    provide_files(max_connections)
    log.info(
        "the gateway's protocols serve this uvicorn's %s connections; %sSERVER_PROTOCOLS=off leaves them to uvicorn",
        " and ".join(_KINDS[name] for name in replaced),
        ENV_PREFIX,
    )
    try:
        yield
    finally:
        for name, class_ in replaced.items():
            setattr(config, name, class_)


def _starting_server() -> uvicorn.Config | None:
    """Return the configuration of the uvicorn in this event loop whose lifespan is starting.

    uvicorn runs the lifespan in a task of its own. The application gets only a scope, from which nothing leads to the
    server; and the signal handlers, which are methods of the server, exist in the main thread alone. None if there is
    no such task, or more than one.
    """
    lifespans: Any = sys.modules[_LIFESPAN]
    main = lifespans.LifespanOn.main.__code__
    found = []
    for task in asyncio.all_tasks():
        coroutine: Any = task.get_coro()
        if getattr(coroutine, "cr_code", None) is main and coroutine.cr_frame is not None:
            lifespan = coroutine.cr_frame.f_locals["self"]
            if not lifespan.startup_event.is_set():
                found.append(lifespan.config)
    return found[0] if len(found) == 1 else None


def _replaceable(config: uvicorn.Config) -> dict[str, Any]:
    """Return the protocol classes in a configuration that the operator has not chosen, by the attribute's name."""
    classes: dict[str, Any] = {}
    if config.http in EXTENDED_HTTP:
        classes[_HTTP] = config.http_protocol_class
    if config.ws in EXTENDED_WS:
        classes[_WS] = config.ws_protocol_class
    return {
        name: class_ for name, class_ in classes.items() if getattr(class_, "__module__", "").startswith("uvicorn.")
    }


def _own_classes(names: Iterable[str]) -> dict[str, type[asyncio.Protocol]]:
    from .http import HTTPProtocol
    from .websocket import PlacedWebSocketProtocol

    own: dict[str, type[asyncio.Protocol]] = {_HTTP: HTTPProtocol, _WS: PlacedWebSocketProtocol}
    return {name: own[name] for name in names}


def _are_uvicorns() -> bool:
    """Whether uvicorn's configuration names none of the gateway's protocols: it would have imported them."""
    return f"{__package__}.http" not in sys.modules

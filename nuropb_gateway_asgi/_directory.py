"""What the services of the mesh are: their descriptions, asked for when they are needed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TypeAlias

import msgspec
from msgspec import Raw

from .mesh.description import Description, parse_description
from .protocol import ErrorCode, Failure

__all__ = ["Directory", "Fetch"]

logger = logging.getLogger(__name__)

#: Asks a service to describe itself, and calls back with the result (JSON) or with why there is none.
Fetch: TypeAlias = Callable[[str, Callable[[bytes | Raw | Failure], None]], None]


class Directory:
    """Descriptions by service name.

    Only services that answered are in it, so that clients cannot make it grow. However many callers wait for a
    description, the service is asked once.
    """

    __slots__ = ("_clock", "_descriptions", "_fetch", "_lookups")

    def __init__(self, fetch: Fetch, clock: Callable[[], float]) -> None:
        self._fetch = fetch
        self._clock = clock
        self._descriptions: dict[str, Description] = {}
        self._lookups: dict[str, list[Callable[[Description | Failure], None]]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._descriptions))

    def get(self, service: str) -> Description | None:
        """What is known of ``service``, however old."""
        return self._descriptions.get(service)

    def look_up(self, service: str, max_age: float, then: Callable[[Description | Failure], None]) -> None:
        """Call ``then`` with a description that is not older than ``max_age`` seconds: at once, or when it came."""
        known = self.get(service)
        if known is not None and self._clock() - known.fetched_at <= max_age:
            then(known)
            return
        waiting = self._lookups.get(service)
        if waiting is not None:
            waiting.append(then)
            return
        self._lookups[service] = [then]
        self._fetch(service, lambda result: self._on_described(service, result, first=None))

    def _on_described(self, service: str, result: bytes | Raw | Failure, first: Description | None) -> None:
        outcome: Description | Failure
        if isinstance(result, Failure):
            outcome = self._on_not_described(service, result)
        else:
            description = parse_description(service, result, self._clock())
            known = self.get(service)
            if first is not None:
                description = msgspec.structs.replace(
                    description, keys_differ=description.public_key != first.public_key
                )
                if description.keys_differ:
                    logger.error("service %s shows several public keys; encrypted calls to it are refused", service)
            elif description.encrypts and (
                known is None or known.keys_differ or known.public_key != description.public_key
            ):
                # Another instance may have another key: ask again before this one is trusted.
                self._fetch(service, lambda again: self._on_described(service, again, first=description))
                return
            if description.methods is None:
                logger.warning("service %s cannot describe itself; its methods are not checked before a call", service)
            self._descriptions[service] = description
            outcome = description
        for then in self._lookups.pop(service, ()):
            then(outcome)

    def _on_not_described(self, service: str, failure: Failure) -> Description | Failure:
        if failure.code is ErrorCode.SERVICE_UNAVAILABLE:
            self._descriptions.pop(service, None)
            return failure
        known = self.get(service)
        if known is not None and known.methods is not None:
            return known  # it is slow or in trouble now, but what it said before still holds
        if failure.code in (ErrorCode.TIMEOUT, ErrorCode.MESH_UNAVAILABLE):
            description = f"Service {service} did not describe itself in time"
            unavailable = Failure(ErrorCode.SERVICE_UNAVAILABLE, description)
            return failure if failure.code is ErrorCode.MESH_UNAVAILABLE else unavailable
        # It is there, and its describe fails, as nuropb's does for string annotations: nothing is known of it.
        description_ = Description(service, self._clock())
        logger.warning("service %s cannot describe itself; its methods are not checked before a call", service)
        self._descriptions[service] = description_
        return description_

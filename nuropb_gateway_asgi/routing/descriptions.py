"""Descriptions of the services of the mesh, fetched when they are first needed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

import msgspec
from msgspec import Raw

from ..protocol import ErrorCode, Failure
from ..wire.description import Description, parse_description

__all__ = ["Descriptions", "Fetch"]

logger = logging.getLogger(__name__)

_UNREADABLE: Final = Failure(ErrorCode.SERVICE_ERROR, "The description cannot be read")

#: Asks a service to describe itself, and calls back with the result (JSON) or a failure.
Fetch: TypeAlias = Callable[[str, Callable[[bytes | Raw | Failure], None]], None]


class Descriptions:
    """Descriptions by service name.

    Only services that answered have an entry, so clients cannot make it grow. A service is asked once, however many
    callers wait for its description. ``clock`` is a monotonic clock, in seconds.
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
        """Return the last description of ``service``, however old, or None."""
        return self._descriptions.get(service)

    def look_up(self, service: str, max_age: float, then: Callable[[Description | Failure], None]) -> None:
        """Call ``then`` with a description not older than ``max_age`` seconds, at once or once it was fetched."""
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

    def renew(self, service: str) -> None:
        """Fetch the description of ``service`` anew, unless that is under way."""
        if service not in self._lookups:
            self._lookups[service] = []
            self._fetch(service, lambda result: self._on_described(service, result, first=None))

    @property
    def waiting(self) -> int:
        """The number of services whose description is being fetched."""
        return len(self._lookups)

    def _on_described(self, service: str, result: bytes | Raw | Failure, first: Description | None) -> None:
        outcome: Description | Failure
        description = None if isinstance(result, Failure) else parse_description(service, result, self._clock())
        if description is None or description.methods is None:
            failure = result if isinstance(result, Failure) else _UNREADABLE
            outcome = self._on_not_described(service, failure, first)
        else:
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
                # Another instance of the service may have another key: ask again before trusting this one.
                self._fetch(service, lambda again: self._on_described(service, again, first=description))
                return
            self._descriptions[service] = description
            outcome = description
        for then in self._lookups.pop(service, ()):
            then(outcome)

    def _on_not_described(self, service: str, failure: Failure, first: Description | None) -> Description | Failure:
        if failure.code is ErrorCode.SERVICE_UNAVAILABLE:
            self._descriptions.pop(service, None)
            return failure
        # A second question is asked where the key has changed, and then the old description does not hold any more.
        known = self.get(service) if first is None else None
        if known is not None and known.methods is not None:
            return known  # the service is slow or in trouble, but its last description still holds
        if failure.code is ErrorCode.TIMEOUT:
            return Failure(ErrorCode.SERVICE_UNAVAILABLE, f"Service {service} did not describe itself in time")
        if failure.code in (ErrorCode.MESH_UNAVAILABLE, ErrorCode.INTERNAL):
            return failure
        if first is not None:
            description = msgspec.structs.replace(first, keys_differ=True)  # its key is not confirmed
        else:
            # The service runs, but its describe fails, as nuropb's does for string annotations.
            description = Description(service, self._clock())
            logger.warning(
                "service %s cannot describe itself; only methods that the policy names in full can be called", service
            )
        self._descriptions[service] = description
        return description

"""What the services of the mesh are: their descriptions, asked for when they are needed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

import msgspec
from msgspec import Raw

from ..protocol import ErrorCode, Failure
from ..wire.description import Description, parse_description

__all__ = ["Directory", "Fetch"]

logger = logging.getLogger(__name__)

_UNREADABLE: Final = Failure(ErrorCode.SERVICE_ERROR, "The description cannot be read")

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
                # Another instance may have another key: ask again before this one is trusted.
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
        # The second question is asked because the key is not the known one, so that holds no longer.
        known = self.get(service) if first is None else None
        if known is not None and known.methods is not None:
            return known  # it is slow or in trouble now, but what it said before still holds
        if failure.code is ErrorCode.TIMEOUT:
            return Failure(ErrorCode.SERVICE_UNAVAILABLE, f"Service {service} did not describe itself in time")
        if failure.code in (ErrorCode.MESH_UNAVAILABLE, ErrorCode.INTERNAL):
            return failure
        if first is not None:
            description = msgspec.structs.replace(first, keys_differ=True)  # nobody has confirmed its key
        else:
            # It is there, and its describe fails, as nuropb's does for string annotations: nothing is known of it.
            description = Description(service, self._clock())
            logger.warning(
                "service %s cannot describe itself; only methods that the policy names in full can be called", service
            )
        self._descriptions[service] = description
        return description

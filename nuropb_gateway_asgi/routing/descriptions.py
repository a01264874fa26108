"""Descriptions of the services of the mesh, fetched when they are first needed."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

import msgspec
from msgspec import Raw

from ..protocol import ErrorCode, Failure
from ..wire.description import Description, parse_description

__all__ = ["DESCRIBE_PATIENCE", "Descriptions", "Fetch"]

logger = logging.getLogger(__name__)

#: Seconds that a client waits for the description of a service which does not answer; the others come without it.
DESCRIBE_PATIENCE: Final = 3.0
_UNREADABLE: Final = Failure(ErrorCode.SERVICE_ERROR, "The description cannot be read")

#: Asks a service to describe itself, and calls back with the result (JSON) or a failure.
Fetch: TypeAlias = Callable[[str, Callable[[bytes | Raw | Failure], None]], None]


def _silent(service: str) -> Failure:
    return Failure(ErrorCode.SERVICE_UNAVAILABLE, f"Service {service} did not describe itself in time")


class _LookUp:
    """The fetch of a description: when it began, and the callers that wait for it, each up to a time."""

    __slots__ = ("began", "waiting")

    def __init__(self, began: float, waiting: list[tuple[float, Callable[[Description | Failure], None]]]) -> None:
        self.began = began
        self.waiting = waiting


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
        self._lookups: dict[str, _LookUp] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._descriptions))

    def get(self, service: str) -> Description | None:
        """Return the last description of ``service``, however old, or None."""
        return self._descriptions.get(service)

    def look_up(
        self,
        service: str,
        max_age: float,
        then: Callable[[Description | Failure], None],
        *,
        patience: float = math.inf,
    ) -> None:
        """Call ``then`` with a description not older than ``max_age`` seconds, at once or once it was fetched.

        ``patience`` is how many seconds the fetch may take, from its beginning, which another caller may have caused.
        Then ``then`` gets the last description, however old, or a failure, and the fetch goes on.
        """
        known = self.get(service)
        if known is not None and self._clock() - known.fetched_at <= max_age:
            then(known)
            return
        look_up = self._lookups.get(service)
        if look_up is not None:
            if self._clock() >= look_up.began + patience:
                then(known or _silent(service))
            else:
                look_up.waiting.append((look_up.began + patience, then))
            return
        now = self._clock()
        self._lookups[service] = _LookUp(now, [(now + patience, then)])
        self._fetch(service, lambda result: self._on_described(service, result, first=None))

    def renew(self, service: str) -> None:
        """Fetch the description of ``service`` anew, unless that is under way."""
        if service not in self._lookups:
            self._lookups[service] = _LookUp(self._clock(), [])
            self._fetch(service, lambda result: self._on_described(service, result, first=None))

    def sweep(self, now: float) -> None:
        """Answer the callers whose patience is over at ``now``."""
        for service, look_up in tuple(self._lookups.items()):
            over = [then for until, then in look_up.waiting if now >= until]
            if over:
                look_up.waiting = [each for each in look_up.waiting if now < each[0]]
            for then in over:
                then(self.get(service) or _silent(service))

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
        look_up = self._lookups.pop(service, None)
        for _, then in () if look_up is None else look_up.waiting:
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
            return _silent(service)
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

"""The services and methods that one caller may use, with their descriptions."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Generator, Mapping
from typing import Any, Final

import anyio
from msgspec import Raw

from ..authentication import Identity
from ..authorization import Policy
from ..authorization.policy import callable_methods
from ..limits.slices import METHODS_PER_SLICE
from ..protocol import ErrorCode, Failure, encode_json
from ..wire.description import MAX_AGE_SECONDS, Description, describe_for_clients
from ..wire.interface import HostingMesh, Mesh
from .descriptions import Descriptions
from .failures import call_error

__all__ = ["Catalogue"]

_DID_NOT_SAY: Final = Failure(ErrorCode.SERVICE_UNAVAILABLE, "It did not describe itself in time")


class Catalogue:
    """Descriptions of services, cut down to what the policy allows an identity."""

    def __init__(self, policy: Policy, descriptions: Descriptions, mesh: Mesh) -> None:
        self._policy = policy
        self._descriptions = descriptions
        self._mesh = mesh

    def services_for(self, identity: Identity) -> set[str]:
        """Return the known services on which this identity may call something.

        Of those that the mesh runs itself, the ones without a description yet belong to them, too.
        """
        known = {name for name in self._descriptions if self._callable(identity, name)}
        if isinstance(self._mesh, HostingMesh):
            known.update(name for name in self._mesh.hosted if self._descriptions.get(name) is None)
        return known.union(self._policy.services(identity))

    def entry(
        self, identity: Identity, service: str, description: Description
    ) -> Generator[None, None, dict[str, Any] | None]:
        """Return a service's description for a client, with the methods that this identity may call.

        Yields between two slices of the work. The methods are JSON already. Returns None if these are none: the
        description tells nothing of such a service. A service that cannot describe itself has an entry without methods,
        if a rule names the service.
        """
        methods: dict[str, Raw] = {}
        every = list(description.methods or ())
        for start in range(0, len(every), METHODS_PER_SLICE):
            if start:
                yield
            some = every[start : start + METHODS_PER_SLICE]
            allowed = callable_methods(self._policy, identity, service, some, is_gateway=description.is_gateway)
            shown = describe_for_clients(description, allowed)["methods"]
            methods |= {name: Raw(encode_json(method)) for name, method in shown.items()}
        if not methods and (description.methods is not None or service not in self._policy.services(identity)):
            return None
        return describe_for_clients(description, []) | {"methods": methods}

    async def describe_for(self, identity: Identity, *, patience: float) -> Mapping[str, Description | Failure]:
        """Return a description, or a failure, for each service on which this identity may call something.

        All services are asked at the same time, unless their descriptions are fresh. A service that does not answer
        within ``patience`` seconds keeps its last description, if it has one; its answer is remembered when it comes.
        """
        services = self.services_for(identity)
        found: dict[str, Description | Failure] = {}
        complete = asyncio.Event()

        def on_description(service: str, description: Description | Failure) -> None:
            found[service] = description
            if len(found) == len(services):
                complete.set()

        for service in sorted(services):
            then = functools.partial(on_description, service)
            self._descriptions.look_up(service, MAX_AGE_SECONDS, then, patience=patience)
        if services:
            with anyio.move_on_after(patience):
                await complete.wait()
        late = {service: self._descriptions.get(service) or _DID_NOT_SAY for service in services - found.keys()}
        return found | late

    async def describe(self, service: str) -> Description:
        """Ask a service for its description; raises CallError. Cancelling it stops nothing but the wait."""
        future: asyncio.Future[Description | Failure] = asyncio.get_running_loop().create_future()

        def on_description(found: Description | Failure) -> None:
            if not future.done():
                future.set_result(found)

        self._descriptions.look_up(service, -1.0, on_description)
        found = await future
        if isinstance(found, Failure):
            raise call_error(found)
        return found

    def _callable(self, identity: Identity, service: str) -> bool:
        description = self._descriptions.get(service)
        if description is None:
            return False
        is_gateway = description.is_gateway
        return any(
            callable_methods(self._policy, identity, service, (method,), is_gateway=is_gateway)
            for method in description.methods or ()
        )

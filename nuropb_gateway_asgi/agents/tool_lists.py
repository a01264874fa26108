"""Lists of tools: those of each caller, kept for a few seconds."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from ..authentication import Identity
from ..authorization.tool_policy import ToolPolicy
from ..contracts.endpoints import take_turns
from ..contracts.model import contract_in_steps
from ..generation_cache import GenerationCache
from ..service_mesh_manager import ServiceMeshManager
from .tools import Tool, tools_in_steps

__all__ = ["ToolLists"]

logger = logging.getLogger(__name__)

#: Seconds that services have to describe themselves; a service that needs longer is left out.
PATIENCE: Final = 3.0
#: Seconds for which a list is reused, unless the policy changes.
CACHE_SECONDS: Final = 5.0
#: The lists that are kept at least.
CACHE_SIZE: Final = 128
#: Services that are remembered as away, for the log; the names in rules may hold those of users.
MAX_AWAY: Final = 1024


class ToolLists:
    """The tools of callers. ``clock`` is a monotonic clock, in seconds."""

    def __init__(
        self, manager: ServiceMeshManager, policy: ToolPolicy, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._manager = manager
        self._policy = policy
        self._clock = clock
        self._lists: GenerationCache[bytes, tuple[float, Sequence[Tool]]] = GenerationCache(CACHE_SIZE)
        self._away: set[str] = set()

    @property
    def policy(self) -> ToolPolicy:
        """The policy of tools."""
        return self._policy

    def forget(self) -> None:
        """Forget all lists, because the policy has changed."""
        self._lists = GenerationCache(CACHE_SIZE)

    async def tools(self, identity: Identity, token: str) -> Sequence[Tool]:
        """Return the tools of the caller with this token, in the order of their names.

        Waits up to PATIENCE seconds for the descriptions of services.
        """
        # The key is a digest of the token of the request: an authenticator may give many identities the same token.
        key = hashlib.sha256(token.encode()).digest()
        kept = self._lists.get(key)
        if kept is not None and self._clock() - kept[0] <= CACHE_SECONDS:
            return kept[1]
        lists = self._lists
        found = await self._manager.describe_for(identity, patience=PATIENCE)
        contract = await take_turns(contract_in_steps(identity, self._policy, found))
        self._note_away({service.name for service in contract.services}, contract.unavailable)
        tools = await take_turns(tools_in_steps(contract, identity, self._policy))
        if lists is self._lists:  # else the policy changed meanwhile
            lists.add(key, (self._clock(), tools))
        return tools

    async def find(self, identity: Identity, token: str, name: str) -> Tool | None:
        """Return the caller's tool of this name, or None."""
        return next((tool for tool in await self.tools(identity, token) if tool.name == name), None)

    def _note_away(self, present: set[str], away: Sequence[str]) -> None:
        """Log each service once when it goes away and once when it comes back."""
        for service in sorted(self._away & present):
            logger.info("service %s describes itself again; its tools are back", service)
        self._away -= present
        for service in away:
            if service not in self._away and len(self._away) < MAX_AWAY:
                logger.warning("service %s does not describe itself; its tools are left out", service)
                self._away.add(service)

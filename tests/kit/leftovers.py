"""A search for leftovers: what an object still holds of a connection that has ended."""

from __future__ import annotations

import gc
from types import FunctionType, ModuleType

from nuropb_gateway_asgi.generation_cache import GenerationCache

__all__ = ["holding"]


def holding(owner: object, key: str) -> list[object]:
    """Return the dictionaries and sets reachable from ``owner`` that have ``key`` as a key or member.

    Caches are left out: they are bounded, and remember some ended sessions on purpose.
    """
    gc.collect()
    found: list[object] = []
    seen = {id(owner)}
    waiting = [owner]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict | set) and key in each:
            found.append(each)
        for referent in [each.__closure__] if isinstance(each, FunctionType) else gc.get_referents(each):
            # Types and modules lead to everything in the process.
            if id(referent) not in seen and not isinstance(referent, type | ModuleType | GenerationCache):
                seen.add(id(referent))
                waiting.append(referent)
    return found

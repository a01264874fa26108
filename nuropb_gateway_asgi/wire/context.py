"""The context of a call: the service's view of its caller. Pure."""

from __future__ import annotations

from ..authentication import Identity
from ..protocol import encode_json

__all__ = ["context_for", "context_of"]


def context_for(identity: Identity | None, trace_id: str, session_id: str | None) -> dict[str, str | None]:
    """Make the context of a call from the caller's identity alone, never from anything that a client sent."""
    return {
        "user_id": None if identity is None else identity.user_id,
        "Authorization": None if identity is None else f"Bearer {identity.token}",
        "trace_id": trace_id,
        "session_id": session_id,
    }


def context_of(identity: Identity | None, trace_id: str, session_id: str | None) -> bytes:
    """Make the context of a call, as JSON."""
    return encode_json(context_for(identity, trace_id, session_id))

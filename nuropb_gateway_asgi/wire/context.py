"""The context of a call: the service's view of its caller. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from ..authentication import Identity
from ..protocol import encode_json

__all__ = ["context_for", "context_of"]


def context_for(identity: Identity | None, trace_id: str, session_id: str | None) -> dict[str, str | None]:
    """Make the context of a call from the caller's identity, which no client can forge."""
    return {
        "user_id": None if identity is None else identity.user_id,
        "Authorization": None if identity is None else f"Bearer {identity.token}",
        "trace_id": trace_id,
        "session_id": session_id,
    }


def context_of(
    identity: Identity | None,
    trace_id: str,
    session_id: str | None,
    idempotency_key: str | None = None,
    trace: Mapping[str, str] | None = None,
) -> bytes:
    """Make the context of a call, as JSON. ``idempotency_key`` is the client's own word, if it gave one.

    ``trace`` has the members of the W3C's trace context.
    """
    context = context_for(identity, trace_id, session_id)
    if trace is not None:
        context |= trace
    if idempotency_key is not None:
        context["idempotency_key"] = idempotency_key
    return encode_json(context)

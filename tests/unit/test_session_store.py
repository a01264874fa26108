"""The sessions of a process: how many of them are kept without a connection, and whose keys are good."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from nuropb_gateway_asgi.authentication import Identity
from nuropb_gateway_asgi.sessions.store import SESSION_OVERHEAD, Past, Record, SessionStore


def session(user: str, number: int) -> Any:
    identity = Identity(user_id=user, username=user, token="")
    outbox = SimpleNamespace(memory=0, overflowed=False)
    return SimpleNamespace(
        session_id=f"{user}-{number}", identity=identity, outbox=outbox, proven=True, connected=False
    )


def park(store: SessionStore, user: str, number: int) -> bytes:
    """Make a session that loses its connection; end those that are too many. Returns the digest of its key."""
    digest = f"{user}-{number}".encode()
    store.park(store.add(session(user, number), digest), number)
    while (surplus := store.surplus(user)) is not None:
        store.remove(surplus, Past(user, "expired"))
    return digest


@pytest.mark.parametrize(
    ("memory", "per_user", "kept"),
    [(2**26, 20, 20), (100 * SESSION_OVERHEAD, float("inf"), 99)],
    ids=["by number", "by bytes"],
)
def test_ten_thousand_sessions_of_one_user_without_connections_are_bounded_and_push_out_nobody_elses(
    memory: int, per_user: float, kept: int
) -> None:
    store = SessionStore(memory, per_user)
    other = park(store, "bob", 0)
    digests = [park(store, "mallory", number) for number in range(10_000)]
    assert (store.parked, len(store)) == (kept + 1, kept + 1)
    assert store.parked_size == (kept + 1) * SESSION_OVERHEAD
    assert isinstance(store.find(other, "bob"), Record)
    assert isinstance(store.find(digests[-1], "mallory"), Record)
    ended = [store.find(digest, "mallory") for digest in digests[:-kept]]
    assert set(ended) == {Past("mallory", "expired")}
    # For another user, a key of an ended session looks like one that never was.
    assert store.find(digests[0], "bob") == store.find(b"never", "bob") == Past("bob", "unknown")

from __future__ import annotations

import time
from typing import Any

import pytest

from nuropb_gateway_asgi.authentication import Identity
from nuropb_gateway_asgi.authentication.revocation import Revocation, fingerprint
from nuropb_gateway_asgi.authentication.session_tokens import MAX_USED, Affected, SessionTokens, UsedToken, affected_by

NOW = 1_800_000_000.0


def identity(user_id: str = "alice", token: str = "t", *, expires_at: float | None = None, **claims: Any) -> Identity:
    return Identity(user_id=user_id, username=user_id, token=token, claims=claims, expires_at=expires_at)


@pytest.mark.parametrize(
    ("fields", "affected"),
    [
        ({"user_id": "a", "issued_before": NOW}, ("user", "a")),
        ({"token_id": "j"}, ("token_id", "j")),
        ({"token": "f"}, ("token", "f")),
        ({"token": "f", "of_session": "s"}, ("token", "f")),
        ({"issued_before": NOW}, ("everybody", "")),
        ({"session_id": "s"}, ("none", "")),
    ],
)
def test_a_revocation_affects_the_sessions_of_its_user_or_token(fields: dict[str, Any], affected: Affected) -> None:
    assert affected_by(Revocation(until=NOW, **fields)) == affected


def test_sessions_are_found_by_user_token_id_and_token() -> None:
    tokens = SessionTokens()
    tokens.begin("1", identity("alice", "t1", jti="j"))
    tokens.begin("2", identity("alice", "t2"))
    tokens.begin("3", identity("bob", "t2", jti=["j"]))
    assert set(tokens.sessions(("user", "alice"))) == {"1", "2"}
    assert tokens.sessions(("token_id", "j")) == ("1",)
    assert set(tokens.sessions(("token", fingerprint("t2")))) == {"2", "3"}
    assert set(tokens.sessions(("everybody", ""))) == {"1", "2", "3"}
    for nothing in (("user", "carol"), ("token_id", "['j']"), ("token", "t1"), ("none", "")):
        assert tokens.sessions(nothing) == ()
        assert not tokens.any(nothing)
    assert tokens.any(("user", "alice"))
    assert tokens.any(("everybody", ""))


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("brief", [False, True])
def test_an_ended_session_is_found_no_more(count: int, brief: bool) -> None:
    tokens = SessionTokens()
    who = identity(jti="j")
    for number in range(count):
        tokens.begin(str(number), who, brief=brief)
    assert len(tokens) == count
    for number in range(count):
        assert len(tokens.sessions(("user", "alice"))) == count - number
        tokens.end(str(number), who, brief=brief)
    for affected in (("user", "alice"), ("token_id", "j"), ("token", fingerprint("t")), ("everybody", "")):
        assert tokens.sessions(affected) == ()
        assert not tokens.any(affected)
    assert len(tokens) == 0
    assert bool(tokens.used_by("0")) is not brief


def test_a_brief_session_that_ends_before_any_revocation_leaves_nothing() -> None:
    tokens = SessionTokens()
    tokens.begin("s", identity(), brief=True)
    assert len(tokens) == 1
    tokens.end("s", identity(), brief=True)
    assert len(tokens) == 0
    assert tokens.used_by("s") == ()


def test_a_session_is_found_by_its_present_token_and_has_used_the_earlier_ones() -> None:
    tokens = SessionTokens()
    first, second = identity(token="t1", expires_at=NOW + 10, jti="j1"), identity(token="t2", jti="j2")
    tokens.begin("s", first)
    tokens.refresh("s", first, second, NOW)
    assert tokens.sessions(("token", fingerprint("t2"))) == tokens.sessions(("token_id", "j2")) == ("s",)
    assert tokens.sessions(("token", fingerprint("t1"))) == tokens.sessions(("token_id", "j1")) == ()
    assert tokens.used_by("s") == (UsedToken(fingerprint("t1"), NOW + 10), UsedToken(fingerprint("t2"), None))


def test_expired_tokens_are_not_kept_and_the_same_token_is_kept_once() -> None:
    tokens = SessionTokens()
    first, second = identity(token="t1", expires_at=NOW + 10), identity(token="t2", expires_at=NOW + 20)
    tokens.begin("s", first)
    tokens.refresh("s", first, first, NOW)
    assert tokens.used_by("s") == (UsedToken(fingerprint("t1"), NOW + 10),)
    tokens.refresh("s", first, second, NOW + 10)
    assert tokens.used_by("s") == (UsedToken(fingerprint("t2"), NOW + 20),)


def test_a_session_has_a_bounded_number_of_tokens_the_latest_ones() -> None:
    tokens = SessionTokens()
    former = identity(token="t0")
    tokens.begin("s", former)
    for number in range(1, 2 * MAX_USED):
        newer = identity(token=f"t{number}")
        tokens.refresh("s", former, newer, NOW)
        former = newer
    assert len(tokens.used_by("s")) == MAX_USED
    assert tokens.used_by("s")[-1].token == fingerprint(former.token)


def test_the_tokens_of_ended_connections_are_kept_for_a_while() -> None:
    tokens = SessionTokens(ended=2)
    who = identity()
    for session_id in ("1", "2", "3", "4", "5"):
        tokens.begin(session_id, who)
        tokens.end(session_id, who)
    assert tokens.used_by("5") == tokens.used_by("4") == (UsedToken(fingerprint("t"), None),)
    assert tokens.used_by("1") == ()
    assert len(tokens) == 0


def test_a_session_is_revoked_until_its_end() -> None:
    tokens = SessionTokens()
    tokens.revoke("s")
    assert not tokens.is_revoked("s")
    tokens.begin("s", identity())
    tokens.revoke("s")
    assert tokens.is_revoked("s")
    tokens.end("s", identity())
    assert not tokens.is_revoked("s")


def test_tokens_cannot_be_read_out_of_it() -> None:
    tokens = SessionTokens()
    tokens.begin("s", identity(token="secret", expires_at=time.time()))
    assert "secret" not in str(tokens.used_by("s"))

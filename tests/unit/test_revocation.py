from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from nuropb_gateway_asgi.authentication import Identity
from nuropb_gateway_asgi.authentication.revocation import (
    FORGET_AT_ONCE,
    MAX_KEPT,
    Revocation,
    RevocationCheck,
    Revocations,
    Unrevocation,
    decode_record,
    decode_revocation,
    encode_record,
    fingerprint,
)
from nuropb_gateway_asgi.exceptions import AuthenticationUnavailable

NOW = 1_800_000_000.0


def identity(user_id: str = "alice", token: str = "t", **claims: Any) -> Identity:
    return Identity(user_id=user_id, username=user_id, token=token, claims={"iat": NOW - 100, **claims})


def revoked(**fields: Any) -> Revocations:
    revocations = Revocations()
    revocations.add(Revocation(**({"until": NOW + 1000} | fields)), NOW)
    return revocations


BEFORE = {"issued_before": NOW}
TABLE: list[tuple[dict[str, Any], Identity, bool]] = [
    # a user's tokens
    ({"user_id": "alice", **BEFORE}, identity(), True),
    ({"user_id": "alice", **BEFORE}, identity(iat=NOW - 0.001), True),
    ({"user_id": "alice", **BEFORE}, identity(iat=NOW), False),
    ({"user_id": "alice", **BEFORE}, identity(iat=NOW + 1), False),
    ({"user_id": "alice", **BEFORE}, identity("bob"), False),
    ({"user_id": "alice", **BEFORE}, identity("alice2"), False),
    # a token without a time of issue counts as issued before
    ({"user_id": "alice", **BEFORE}, Identity(user_id="alice", username="a", token="t"), True),
    ({"user_id": "alice", **BEFORE}, identity(iat="1900000000"), True),
    ({"user_id": "alice", **BEFORE}, identity(iat=True), True),
    ({"user_id": "alice", **BEFORE}, identity(iat=None), True),
    # one token
    ({"token_id": "j1"}, identity(jti="j1"), True),
    ({"token_id": "j1"}, identity(jti="j2"), False),
    ({"token_id": "j1"}, identity(), False),
    ({"token_id": "j1"}, identity(jti=["j1"]), False),
    ({"token_id": "1"}, identity(jti=1), False),
    ({"token": fingerprint("t")}, identity(), True),
    ({"token": fingerprint("t")}, identity("bob"), True),
    ({"token": fingerprint("t")}, identity(token="t2"), False),
    # all users
    (BEFORE, identity(), True),
    (BEFORE, identity("bob"), True),
    (BEFORE, identity(iat=NOW), False),
    # of a session, whose token another process knows
    ({"session_id": "s1"}, identity(), False),
]


@pytest.mark.parametrize(("fields", "who", "refused"), TABLE)
def test_what_is_revoked(fields: dict[str, Any], who: Identity, refused: bool) -> None:
    assert revoked(**fields).refuses(who) is refused


def test_nothing_revoked_refuses_nobody() -> None:
    assert not Revocations().refuses(identity())
    assert len(Revocations()) == 0


WRONG: list[dict[str, Any]] = [
    {},
    {"user_id": "alice"},
    {"user_id": "alice", "token_id": "j"},
    {"user_id": "alice", "session_id": "s", "issued_before": NOW},
    {"token_id": "j", "issued_before": NOW},
    {"session_id": "s", "token": "t"},
    {"user_id": "", "issued_before": NOW},
    {"token_id": "x" * 1025},
    {"issued_before": math.nan},
    {"token_id": "j", "until": math.inf},
]


@pytest.mark.parametrize("fields", WRONG)
def test_what_means_nothing_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected exactly one|issued_before|a time|a name"):
        Revocation(**({"until": NOW} | fields))


@pytest.mark.parametrize(
    "record", [b"", b"{}", b"[]", b'{"until":1}', b'{"token":1,"until":1}', b"\xff", b'{"token":"t"}']
)
def test_a_record_that_is_none_is_refused(record: bytes) -> None:
    with pytest.raises(ValueError, match=r"not the record of a revocation|invalid start byte"):
        decode_revocation(record)


@pytest.mark.parametrize("fields", [fields for fields, _, _ in TABLE])
def test_a_revocation_survives_its_record(fields: dict[str, Any]) -> None:
    revocation = Revocation(**({"until": NOW} | fields))
    assert decode_revocation(msgspec.json.encode(revocation)) == revocation


@pytest.mark.parametrize("fields", [{"user_id": "alice", **BEFORE}, {"token_id": "j"}, {"token": "t"}, BEFORE])
def test_it_is_forgotten_when_it_is_over(fields: dict[str, Any]) -> None:
    revocations = revoked(**fields)
    revocations.forget(NOW + 999)
    assert len(revocations) == 1
    revocations.forget(NOW + 1000)
    assert len(revocations) == 0


def test_what_is_over_is_not_taken_in() -> None:
    assert len(revoked(token="t", until=NOW)) == 0


def test_nothing_is_kept_for_ever() -> None:
    revocations = revoked(token="t", until=NOW + 1e9)
    revocations.forget(NOW + MAX_KEPT)
    assert len(revocations) == 0


def test_the_later_of_two_holds_whatever_their_order() -> None:
    early = Revocation(user_id="alice", issued_before=NOW - 50, until=NOW + 2000)
    late = Revocation(user_id="alice", issued_before=NOW, until=NOW + 1000)
    for first, second in ((early, late), (late, early)):
        revocations = Revocations()
        revocations.add(first, NOW)
        revocations.add(second, NOW)
        assert revocations.refuses(identity(iat=NOW - 1))
        revocations.forget(NOW + 1999)
        assert len(revocations) == 1


def test_a_token_that_is_revoked_again_is_kept_for_the_longer_time() -> None:
    revocations = revoked(token="t", until=NOW + 100)
    revocations.add(Revocation(token="t", until=NOW + 50), NOW)
    revocations.forget(NOW + 99)
    assert len(revocations) == 1


def test_the_token_cannot_be_read_out_of_what_is_remembered() -> None:
    assert len(fingerprint("secret")) == 64
    assert fingerprint("secret") != fingerprint("secret2")


def test_a_second_signature_makes_no_second_token() -> None:
    assert fingerprint("head.body.signature") == fingerprint("head.body.another")
    assert fingerprint("head.body.signature") != fingerprint("head.other.signature")
    assert fingerprint("a.b") != fingerprint("a.c")


async def test_an_authenticator_with_the_check_accepts_nothing_revoked() -> None:
    revocations = Revocations()

    async def authenticate(token: str) -> Identity | None:
        return None if token == "bad" else identity(token=token)

    check = RevocationCheck(authenticate, revocations)
    assert (await check("a")) == identity(token="a")
    assert await check("bad") is None
    revocations.add(Revocation(token=fingerprint("a"), until=NOW * 2), NOW)
    assert await check("a") is None
    assert await check("b") is not None


async def test_until_all_revocations_are_known_no_token_is_accepted() -> None:
    revocations = Revocations()
    asked: list[str] = []

    async def authenticate(token: str) -> Identity | None:
        asked.append(token)
        return identity(token=token)

    check = RevocationCheck(authenticate, revocations)
    revocations.complete = False
    with pytest.raises(AuthenticationUnavailable, match="revocations"):
        await check("a")
    assert asked == []
    revocations.complete = True
    assert await check("a") is not None


@pytest.mark.parametrize(
    ("fields", "changed"),
    [
        ({"token": "a", "until": NOW + 1000}, False),
        ({"token": "a", "until": NOW + 1001}, True),
        ({"token": "b", "until": NOW + 1}, True),
        ({"token": "b", "until": NOW}, False),
        ({"token_id": "a", "until": NOW + 1000}, False),
        ({"token_id": "a", "until": NOW + 1001}, True),
        ({"user_id": "alice", "issued_before": NOW, "until": NOW + 1000}, False),
        ({"user_id": "alice", "issued_before": NOW + 1, "until": NOW + 1000}, True),
        ({"user_id": "bob", "issued_before": NOW - 1, "until": NOW + 1000}, True),
        ({"issued_before": NOW, "until": NOW + 1000}, False),
        ({"issued_before": NOW + 1, "until": NOW + 1}, True),
        ({"session_id": "s", "until": NOW + 1000}, False),
    ],
)
def test_a_revocation_that_is_known_changes_nothing(fields: dict[str, Any], changed: bool) -> None:
    revocations = Revocations()
    for known in ({"token": "a"}, {"token_id": "a"}, {"user_id": "alice", **BEFORE}, BEFORE):
        assert revocations.add(Revocation(until=NOW + 1000, **known), NOW)
    assert revocations.add(Revocation(**fields), NOW) is changed


def test_many_are_forgotten_a_bounded_number_at_once() -> None:
    revocations = Revocations()
    for number in range(FORGET_AT_ONCE + 10):
        revocations.add(Revocation(token_id=str(number), until=NOW + 1), NOW)
    assert not revocations.forget(NOW + 1)
    assert len(revocations) == 10
    assert revocations.forget(NOW + 1)
    assert len(revocations) == 0
    assert revocations.forget(NOW + 1)


def test_what_was_revoked_again_meanwhile_is_not_forgotten() -> None:
    revocations = revoked(token_id="j", until=NOW + 10)
    for number in range(FORGET_AT_ONCE):
        revocations.add(Revocation(token=str(number), until=NOW + 1000), NOW)
    assert not revocations.forget(NOW + 5)
    revocations.add(Revocation(token_id="j", until=NOW + 100), NOW)
    assert revocations.forget(NOW + 50)
    assert revocations.refuses(identity(jti="j"))


# --- revocations that are taken back ----------------------------------------------------------------------------


@pytest.mark.parametrize(("fields", "who", "refused"), TABLE)
def test_a_revocation_that_is_taken_back_refuses_nobody(fields: dict[str, Any], who: Identity, refused: bool) -> None:
    revocations = revoked(**fields)
    revocations.remove(Revocation(until=NOW, **fields))
    assert not revocations.refuses(who)
    assert len(revocations) == 0


@pytest.mark.parametrize(
    ("fields", "taken_back"),
    [
        ({"user_id": "alice", **BEFORE}, {"user_id": "bob", **BEFORE}),
        ({"user_id": "alice", **BEFORE}, {"user_id": "alice", "issued_before": NOW - 1}),
        ({"user_id": "alice", **BEFORE}, BEFORE),
        (BEFORE, {"issued_before": NOW - 1}),
        (BEFORE, {"user_id": "alice", **BEFORE}),
        ({"token_id": "j"}, {"token_id": "k"}),
        ({"token_id": "j"}, {"token": "j"}),
        ({"token": fingerprint("t")}, {"token": "another"}),
        ({"token": fingerprint("t")}, {"session_id": "s"}),
        ({"token": fingerprint("t"), "of_session": "s"}, {"session_id": "r"}),
    ],
)
def test_other_revocations_stay(fields: dict[str, Any], taken_back: dict[str, Any]) -> None:
    revocations = revoked(**fields)
    revocations.remove(Revocation(until=NOW, **taken_back))
    assert revocations.refuses(identity(jti="j"))


def test_the_revocation_of_a_session_is_taken_back_with_all_its_tokens() -> None:
    revocations = revoked(token=fingerprint("t1"), of_session="s")
    revocations.add(Revocation(token=fingerprint("t2"), of_session="s", until=NOW + 1000), NOW)
    revocations.add(Revocation(token=fingerprint("t3"), of_session="r", until=NOW + 1000), NOW)
    revocations.remove(Revocation(session_id="s", until=NOW))
    assert [revocations.refuses(identity(token=token)) for token in ("t1", "t2", "t3")] == [False, False, True]
    assert len(revocations) == 1


@pytest.mark.parametrize("first", ["s", "r"])
def test_a_token_of_two_revoked_sessions_is_refused_until_both_are_taken_back(first: str) -> None:
    revocations = revoked(token=fingerprint("t"), of_session="s")
    of_other = Revocation(token=fingerprint("t"), of_session="r", until=NOW + 100)
    assert revocations.add(of_other, NOW)  # so that other processes are told
    assert not revocations.add(of_other, NOW)
    for session_id, refused in ((first, True), ("r" if first == "s" else "s", False)):
        revocations.remove(Revocation(session_id=session_id, until=NOW))
        assert revocations.refuses(identity()) is refused
    assert not len(revocations)


def test_nothing_is_kept_for_a_session_whose_tokens_have_expired() -> None:
    revocations = revoked(token=fingerprint("t"), of_session="s")
    revocations.forget(NOW + 1000)
    revocations.add(Revocation(token=fingerprint("t"), until=NOW + 2000), NOW)
    revocations.remove(Revocation(session_id="s", until=NOW))
    assert revocations.refuses(identity())


@pytest.mark.parametrize("fields", [fields for fields, _, _ in TABLE])
def test_a_record_says_whether_it_revokes_or_takes_back(fields: dict[str, Any]) -> None:
    revocation = Revocation(**({"until": NOW} | fields))
    assert decode_record(encode_record(revocation)) == revocation
    assert decode_record(encode_record(Unrevocation(revocation))) == Unrevocation(revocation)


def test_older_releases_do_not_take_one_for_the_other() -> None:
    with pytest.raises(ValueError, match="not the record of a revocation"):
        decode_revocation(encode_record(Unrevocation(Revocation(token_id="j", until=NOW))))


@pytest.mark.parametrize(
    "record", [b'{"unrevoke"', b'{"unrevoke":{}}', b'{"unrevoke":null}', b'{"unrevoke":{"until":1}}']
)
def test_a_record_that_takes_nothing_back_is_refused(record: bytes) -> None:
    with pytest.raises(ValueError, match="not the record of a revocation"):
        decode_record(record)

"""Authenticators: by JSON web tokens, by a function of the host application, and for its HTTP routes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import threading
from collections.abc import Awaitable, Iterator, Mapping
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest
from anyio.lowlevel import checkpoint
from starlette.applications import Starlette
from starlette.authentication import AuthenticationError
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import Message
from starlette.websockets import WebSocket

from nuropb_gateway_asgi.authentication import (
    Authenticator,
    Credentials,
    FunctionAuthenticator,
    Identity,
    JWTAuthenticator,
    KeySet,
    TokenAuthenticationBackend,
    function_authenticator,
    jwt_authenticator,
)
from nuropb_gateway_asgi.authentication.fetching import Document
from nuropb_gateway_asgi.authentication.keys import Key, KeyRing, read_key
from nuropb_gateway_asgi.authentication.strict_json import Unacceptable
from nuropb_gateway_asgi.authentication.tokens import Compact
from nuropb_gateway_asgi.authentication.verified_tokens import VerifiedTokens
from nuropb_gateway_asgi.exceptions import (
    AuthenticationUnavailable,
    NotStartedError,
    SettingsError,
    TokenExpired,
    UnknownKey,
)
from tests.kit.token_table import clock_of_the_table
from tests.kit.tokens import (
    AUDIENCE,
    CLAIMS,
    ISSUER,
    NOW,
    RSA_KEY,
    RSA_OTHER,
    SECRET,
    as_json,
    b64,
    claims,
    jwk,
    key_set,
    make,
    without,
)

from .fakes import Clock, until

HS = JWTAuthenticator(SECRET, ["HS256"], ISSUER, AUDIENCE)
TOKEN = make()
SUBPROTOCOL = f"base64url.bearer.nuropb.{b64(TOKEN.encode())}"


@pytest.fixture(scope="module", autouse=True)
def _stopped_clock() -> Iterator[None]:
    with clock_of_the_table():
        yield


# --- JSON web tokens


async def test_user_and_name_come_from_the_configured_claims() -> None:
    authenticator = JWTAuthenticator(SECRET, user_claim="email", username_claim="nick")
    identity = await authenticator(make(claims(email="a@example.com", nick="Al")))
    assert identity is not None
    assert (identity.user_id, identity.username) == ("a@example.com", "Al")
    assert await authenticator(make()) is None
    assert await authenticator(make(claims(email=1))) is None
    assert await authenticator(make({"email": "a@example.com", "exp": NOW + 60})) is not None


@pytest.mark.parametrize("name", [None, "", 1, ["Alice"], "a\nb", "a" * 257])
async def test_username_is_the_user_id_when_the_token_has_none_that_can_be_shown(name: object) -> None:
    identity = await HS(make(claims(preferred_username=name)))
    assert identity is not None
    assert identity.username == "alice"


async def test_no_leeway_means_none() -> None:
    authenticator = JWTAuthenticator(SECRET, leeway=0)
    with pytest.raises(TokenExpired):
        await authenticator(make(claims(exp=NOW)))
    assert await authenticator(make(claims(exp=NOW + 1))) is not None
    assert await authenticator(make(claims(nbf=NOW + 1))) is None
    assert await authenticator(make(claims(nbf=NOW, iat=NOW))) is not None


@pytest.mark.parametrize("aud", [1, None, [1], {"gateway": 1}])
async def test_malformed_audience_is_refused_even_when_none_is_configured(aud: object) -> None:
    assert await JWTAuthenticator(SECRET)(make(claims(aud=aud))) is None


async def test_unexpected_exception_refuses_the_token_and_is_logged_by_its_type(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verify(key: Key, compact: Compact) -> None:
        raise MemoryError(TOKEN)

    monkeypatch.setattr(Key, "verify", verify)
    assert await JWTAuthenticator(SECRET)(TOKEN) is None
    assert caplog.messages == ["Token refused after an unexpected MemoryError"]
    assert TOKEN not in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"issuer": ""}, "JWT_ISSUER"),
        ({"audience": ""}, "JWT_AUDIENCE"),
        ({"audience": []}, "JWT_AUDIENCE"),
        ({"audience": ["a", ""]}, "JWT_AUDIENCE"),
        ({"client_id": ""}, "JWT_CLIENT_ID"),
        ({"client_id": []}, "JWT_CLIENT_ID"),
        ({"user_claim": ""}, "JWT_USER_CLAIM"),
        ({"username_claim": ""}, "JWT_USERNAME_CLAIM"),
        ({"leeway": -1}, "JWT_LEEWAY"),
        ({"leeway": float("nan")}, "JWT_LEEWAY"),
        ({"leeway": float("inf")}, "JWT_LEEWAY"),
    ],
)
def test_setting_that_would_switch_a_check_off_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        JWTAuthenticator(SECRET, **arguments)


# --- JSON web tokens with the keys of a provider


class Provider:
    """A provider of keys; without any it does not answer."""

    def __init__(self, *keys: object) -> None:
        self.keys = keys
        self.asked = 0

    async def __call__(self, url: str) -> Document:
        self.asked += 1
        if not self.keys:
            raise Unacceptable("nobody answers")
        return Document(key_set(*self.keys), None)


def provided(provider: Provider, clock: Clock, **arguments: Any) -> JWTAuthenticator:
    return JWTAuthenticator(KeySet("https://issuer.example/keys", fetch=provider, clock=clock), **arguments)


async def test_a_new_key_is_fetched_when_a_token_names_it_and_a_dropped_one_is_worth_nothing() -> None:
    old, new = make(alg="RS256", key=RSA_KEY, kid="old"), make(alg="RS256", key=RSA_OTHER, kid="new")
    provider, clock = Provider(jwk(RSA_KEY, "old")), Clock(0.0)
    async with provided(provider, clock) as authenticator:
        assert await authenticator(old) is not None
        assert await authenticator(new) is None
        provider.keys = (jwk(RSA_KEY, "old"), jwk(RSA_OTHER, "new"))
        clock.now += 30
        assert await authenticator(new) is not None
        assert await authenticator(old) is not None
        provider.keys = (jwk(RSA_OTHER, "new"),)
        clock.now += 30
        assert await authenticator(make(alg="RS256", key=RSA_KEY, kid="unknown")) is None
        assert await authenticator(old) is None  # although its signature was verified before
        assert await authenticator(new) is not None
        assert provider.asked == 3


async def test_a_token_with_a_new_key_is_not_refused_for_good_while_made_up_keys_use_up_the_fetches() -> None:
    new = make(alg="RS256", key=RSA_OTHER, kid="new")
    provider, clock = Provider(jwk(RSA_KEY, "old")), Clock(0.0)
    async with provided(provider, clock) as authenticator:
        clock.now += 30
        assert await authenticator(make(alg="RS256", key=RSA_KEY, kid="made up")) is None
        provider.keys = (jwk(RSA_KEY, "old"), jwk(RSA_OTHER, "new"))
        for _ in range(29):
            clock.now += 1
            with pytest.raises(UnknownKey, match="no key with the token's kid"):
                await authenticator(new)
            with pytest.raises(UnknownKey):
                await authenticator(make(alg="RS256", key=RSA_KEY, kid=f"made up {clock.now}"))
        clock.now += 1
        assert await authenticator(make(alg="RS256", key=RSA_KEY, kid="made up again")) is None
        assert await authenticator(new) is not None
        assert provider.asked == 3


async def test_a_token_is_refused_for_good_if_the_keys_are_newer_than_the_token() -> None:
    provider, clock = Provider(jwk(RSA_KEY, "old")), Clock(0.0)
    async with provided(provider, clock) as authenticator:
        clock.now += 20
        # The leeway of 10 s is for the clocks of the provider and the gateway.
        assert await authenticator(make(claims(iat=NOW - 31), alg="RS256", key=RSA_KEY, kid="gone")) is None
        for iat in (NOW - 29, NOW, NOW + 9):
            with pytest.raises(UnknownKey):
                await authenticator(make(claims(iat=iat), alg="RS256", key=RSA_KEY, kid="gone"))
        with pytest.raises(UnknownKey):
            await authenticator(make(without("iat"), alg="RS256", key=RSA_KEY, kid="gone"))
        assert provider.asked == 1


@pytest.mark.parametrize(
    "made_up", [claims(exp=NOW - 60), claims(iss="https://other.example"), claims(aud="other"), without("sub"), b"{"]
)
async def test_a_token_that_no_key_could_make_valid_causes_no_fetch_of_keys(made_up: Any) -> None:
    provider, clock = Provider(jwk(RSA_KEY, "old")), Clock(0.0)
    async with provided(provider, clock, issuer=ISSUER, audience=AUDIENCE) as authenticator:
        assert await authenticator(make(alg="RS256", key=RSA_KEY, kid="old")) is not None
        clock.now += 30
        assert await authenticator(make(made_up, alg="RS256", key=RSA_KEY, kid="new")) is None
        assert provider.asked == 1


async def test_a_key_that_changes_under_its_name_is_another_key() -> None:
    provider, clock = Provider(jwk(RSA_KEY, "a")), Clock(0.0)
    token = make(alg="RS256", key=RSA_KEY, kid="a")
    async with provided(provider, clock) as authenticator:
        assert await authenticator(token) is not None
        provider.keys = (jwk(RSA_OTHER, "a"),)
        clock.now += 30
        assert await authenticator(make(alg="RS256", key=RSA_KEY, kid="unknown")) is None
        assert await authenticator(token) is None


async def test_a_remembered_token_is_worth_nothing_when_the_keys_are_too_old() -> None:
    provider, clock = Provider(jwk(RSA_KEY, "a")), Clock(0.0)
    token = make(alg="RS256", key=RSA_KEY, kid="a")
    async with provided(provider, clock) as authenticator:
        assert await authenticator(token) is not None
        provider.keys = ()
        clock.now += 86401
        with pytest.raises(AuthenticationUnavailable):
            await authenticator(token)


async def test_without_keys_no_token_is_judged_but_nonsense_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    async with provided(Provider(), Clock(0.0)) as authenticator:
        for token in (make(alg="RS256", key=RSA_KEY, kid="a"), make(alg="RS256", key=RSA_KEY)):
            with pytest.raises(AuthenticationUnavailable, match="keys: the key set: nobody answers"):
                await authenticator(token)
        assert await authenticator("nonsense") is None
        assert authenticator.problem == "keys: the key set: nobody answers"
        assert authenticator.warning is None


async def test_what_a_key_set_lacks_is_told_by_its_authenticator() -> None:
    provider, clock = Provider(jwk(RSA_KEY, "a")), Clock(0.0)
    async with provided(provider, clock) as authenticator:
        assert await authenticator(make(alg="RS256", key=RSA_KEY)) is not None
        assert (authenticator.warning, authenticator.problem) == (None, None)
        provider.keys = ()
        clock.now += 30
        with pytest.raises(AuthenticationUnavailable):
            await authenticator(make(alg="RS256", key=RSA_KEY, kid="unknown"))
        told = (authenticator.warning, authenticator.problem)
        assert told == ("keys: using those of 30 s ago: the key set: nobody answers", None)


async def test_a_given_key_has_no_lifetime_and_no_problem() -> None:
    async with JWTAuthenticator(SECRET) as authenticator:
        assert await authenticator(TOKEN) is not None
        assert (authenticator.key_set, authenticator.problem, authenticator.warning) == (None, None, None)
    assert await authenticator(TOKEN) is not None


async def test_an_authenticator_that_was_not_entered_says_so() -> None:
    authenticator = JWTAuthenticator(KeySet("https://issuer.example/keys"))
    with pytest.raises(NotStartedError, match="'async with'"):
        await authenticator(make(alg="RS256", key=RSA_KEY))


async def test_the_issuer_of_the_keys_is_that_of_the_tokens() -> None:
    class Discovery(Provider):
        async def __call__(self, url: str) -> Document:
            if url.endswith("openid-configuration"):
                return Document(as_json({"issuer": ISSUER, "jwks_uri": "https://issuer.example/keys"}), None)
            return await super().__call__(url)

    keys = KeySet(issuer=ISSUER, fetch=Discovery(jwk(RSA_KEY, "a")))
    for given in (None, ISSUER):
        async with JWTAuthenticator(keys, issuer=given) as authenticator:
            assert await authenticator(make(alg="RS256", key=RSA_KEY)) is not None
            for issuer in (f"{ISSUER}/", "https://evil.example", None, ""):
                assert await authenticator(make(claims(iss=issuer), alg="RS256", key=RSA_KEY)) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"issuer": f"{ISSUER}/"}, "JWT_ISSUER: different from JWT_OIDC_ISSUER"),
        ({"issuer": ""}, "JWT_ISSUER: empty"),
        ({"algorithms": ["RS256"]}, "JWT_ALGORITHMS: a key set has its own"),
    ],
)
def test_what_contradicts_the_key_set_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        JWTAuthenticator(KeySet(issuer=ISSUER), **arguments)


# --- how long it takes


class CountingKey(Key):
    """A key that records the thread of each verification, and waits for ``release`` there."""

    def __init__(self, *, is_slow: bool = False) -> None:
        key = read_key(SECRET)
        super().__init__(key.material, key.algorithms, is_slow=is_slow)
        self.threads: list[threading.Thread] = []
        self.release = threading.Event()
        self.release.set()

    def verify(self, compact: Compact) -> None:
        self.threads.append(threading.current_thread())
        assert self.release.wait(10)
        super().verify(compact)


def counted(*, is_slow: bool = False) -> tuple[JWTAuthenticator, CountingKey]:
    """Return an authenticator with a key that counts."""
    key = CountingKey(is_slow=is_slow)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jwt_authenticator, "read_key", lambda *_: key)
        return JWTAuthenticator(SECRET), key


async def test_the_signature_of_a_token_is_verified_once_and_its_claims_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    authenticator, key = counted()
    for _ in range(3):
        identity = await authenticator(TOKEN)
        assert identity is not None
        assert identity.claims == CLAIMS
    assert len(key.threads) == 1
    monkeypatch.setattr(jwt_authenticator, "time", SimpleNamespace(time=lambda: NOW + 70 - 0.1))
    assert await authenticator(TOKEN) is not None  # within the leeway
    assert len(key.threads) == 1
    monkeypatch.setattr(jwt_authenticator, "time", SimpleNamespace(time=lambda: NOW + 70))
    with pytest.raises(TokenExpired):
        await authenticator(TOKEN)
    assert authenticator.remembered == 0


async def test_what_a_token_says_cannot_be_changed_for_the_next_one_who_brings_it() -> None:
    authenticator, _ = counted()
    token = make(claims(roles=["user"]))
    for _ in range(2):
        identity = await authenticator(token)
        assert identity is not None
        assert identity.claims["roles"] == ["user"]
        identity.claims["roles"].append("admin")


@pytest.mark.parametrize(
    "token", [make(key="another-secret-of-at-least-32-bytes!!"), make(claims(exp=1)), make(claims(sub=""))]
)
async def test_a_token_that_is_refused_is_not_remembered(token: str) -> None:
    authenticator, key = counted()
    for _ in range(2):
        with contextlib.suppress(TokenExpired):
            assert await authenticator(token) is None
    assert len(key.threads) == 2
    assert authenticator.remembered == 0


async def test_a_token_that_differs_in_anything_is_another_one() -> None:
    authenticator, _ = counted()
    assert await authenticator(TOKEN) is not None
    for hostile in (f"{TOKEN.rpartition('.')[0]}.{b64(bytes(32))}", f"{TOKEN[:-4]}AAAA", TOKEN[:-1], f"{TOKEN} "):
        assert await authenticator(hostile) is None
    bob = await authenticator(make(claims(sub="bob")))
    assert bob is not None
    assert bob.user_id == "bob"


async def test_only_so_many_tokens_are_remembered_and_none_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    digests: list[bytes] = []

    class Recording(VerifiedTokens):
        def add(self, digest: bytes, ring: KeyRing, until: float) -> None:
            digests.append(digest)
            super().add(digest, ring, until)

    monkeypatch.setattr(jwt_authenticator, "MAX_REMEMBERED", 3)
    monkeypatch.setattr(jwt_authenticator, "VerifiedTokens", Recording)
    authenticator, key = counted()
    tokens = [make(claims(n=n)) for n in range(5)]
    for token in (*tokens[:3], tokens[0], tokens[3]):  # the second token is the least recently used one
        assert await authenticator(token) is not None
    assert len(key.threads) == 4
    assert authenticator.remembered == 3
    for token in (tokens[0], tokens[2], tokens[3]):
        assert await authenticator(token) is not None
    assert len(key.threads) == 4
    assert await authenticator(tokens[1]) is not None
    assert len(key.threads) == 5
    assert [len(digest) for digest in digests] == [32] * 5


async def test_a_fast_key_is_used_in_the_event_loop_and_a_slow_one_is_not() -> None:
    for is_slow in (False, True):
        authenticator, key = counted(is_slow=is_slow)
        assert await authenticator(TOKEN) is not None
        assert (key.threads == [threading.current_thread()]) is not is_slow
        assert await authenticator(make(key="another-secret-of-at-least-32-bytes!!")) is None


async def test_the_event_loop_goes_on_while_a_slow_key_is_used_and_few_threads_are_enough() -> None:
    authenticator, key = counted(is_slow=True)
    key.release.clear()
    tokens = [make(claims(n=n)) for n in range(8)]
    pending = [asyncio.create_task(authenticator(token)) for token in tokens]
    await until(lambda: len(key.threads) == 2)
    assert not any(task.done() for task in pending)
    key.release.set()
    assert None not in await asyncio.gather(*pending)
    assert len(set(key.threads)) == 2


async def test_a_verification_that_takes_too_long_is_given_up_and_says_nothing_of_the_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jwt_authenticator, "VERIFY_TIMEOUT", 0.01)
    authenticator, key = counted(is_slow=True)
    key.release.clear()
    with pytest.raises(AuthenticationUnavailable, match=r"verifying a token took longer than 0.01 s"):
        await authenticator(TOKEN)
    key.release.set()
    monkeypatch.undo()
    assert authenticator.remembered == 0
    assert await authenticator(TOKEN) is not None


async def test_a_token_whose_key_goes_while_it_is_verified_is_not_remembered() -> None:
    ring, other = KeyRing([]), KeyRing([])
    remembered = VerifiedTokens(2)
    assert not remembered.has(b"a", ring, 0.0)
    assert not remembered.has(b"b", other, 0.0)  # the keys have changed
    remembered.add(b"a", ring, 10.0)
    assert len(remembered) == 0
    remembered.add(b"b", other, 10.0)
    assert remembered.has(b"b", other, 9.9)
    assert not remembered.has(b"b", other, 10.0)
    assert len(remembered) == 0


# --- Identity


def test_identity_does_not_show_its_token_or_claims() -> None:
    identity = Identity(user_id="7", username="al", token=TOKEN, claims={"ssn": "078-05"}, expires_at=1.5)
    assert repr(identity) == "Identity(user_id='7', username='al', expires_at=1.5, leeway=0.0)"
    shown = f"{identity} {identity.__rich_repr__()} {Credentials(TOKEN, 'header')!r}"
    assert TOKEN not in shown
    assert "078-05" not in shown


def test_identity_cannot_be_changed() -> None:
    source = {"role": "user"}
    identity = Identity(user_id="7", username="al", token="t", claims=source)
    source["role"] = "admin"
    assert identity.claims == {"role": "user"}
    with pytest.raises(TypeError):
        identity.claims["role"] = "admin"  # type: ignore[index]
    with pytest.raises(AttributeError):
        identity.user_id = "8"  # type: ignore[misc]
    assert {identity: 1}[Identity(user_id="7", username="al", token="t", claims={"role": "user"})] == 1


# --- A function of the host application


def legacy_authorise(token: str) -> dict[str, Any] | None:
    """Answer as nuropb_gw's own stub."""
    if token != "accesstokentest1":
        return None
    return {"session_id": "s", "bearer_token": token, "user_id": "al@example.com", "username": "al"}


async def async_authorise(token: str) -> Mapping[str, Any] | None:
    await checkpoint()
    return legacy_authorise(token)


class Service:
    async def __call__(self, token: str) -> Mapping[str, Any] | None:
        return await async_authorise(token)

    def method(self, token: str) -> Mapping[str, Any] | None:
        return legacy_authorise(token)


def returns_awaitable(token: str) -> Awaitable[Mapping[str, Any] | None]:
    return async_authorise(token)


@pytest.mark.parametrize(
    "function",
    [
        legacy_authorise,
        async_authorise,
        Service(),
        Service().method,
        returns_awaitable,
        functools.partial(async_authorise),
        functools.partial(Service()),
    ],
)
async def test_function_of_nuropb_gw_identifies_its_user(function: Any) -> None:
    authenticator: Authenticator = FunctionAuthenticator(function)
    identity = await authenticator("accesstokentest1")
    assert identity is not None
    assert (identity.user_id, identity.username) == ("al@example.com", "al")
    assert (identity.token, identity.claims) == ("accesstokentest1", {"session_id": "s"})
    assert await authenticator("accesstokentest2") is None


LATER = datetime.fromtimestamp(NOW + 60, UTC)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"user_id": "7"}, ("7", "7", None)),
        ({"user_id": 7}, ("7", "7", None)),
        ({"user_id": 0}, ("0", "0", None)),
        ({"user_id": "7", "username": None}, ("7", "7", None)),
        ({"user_id": "7", "username": 8}, ("7", "7", None)),
        ({"user_id": "7", "exp": NOW + 60}, ("7", "7", NOW + 60)),
        ({"user_id": "7", "expires_at": NOW + 0.5, "exp": 1}, ("7", "7", NOW + 0.5)),
        ({"user_id": "7", "expires_at": None, "exp": None}, ("7", "7", None)),
        ({"user_id": "7", "expires_at": LATER}, ("7", "7", NOW + 60)),
        ({"user_id": "7", "expires_at": LATER.replace(tzinfo=None)}, ("7", "7", NOW + 60)),
        ({"user_id": "7", "expires_at": LATER.isoformat()}, ("7", "7", NOW + 60)),
        ({"user_id": "7", "expires_at": f"{LATER:%Y-%m-%dT%H:%M:%S}Z"}, ("7", "7", NOW + 60)),
    ],
)
async def test_answer_of_the_function_is_read(answer: dict[str, Any], expected: tuple[object, ...]) -> None:
    identity = await FunctionAuthenticator(lambda token: answer)("t")
    assert identity is not None
    assert (identity.user_id, identity.username, identity.expires_at) == expected
    assert identity.claims == {}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, None),
        ({}, None),
        (False, None),
        ({"user_id": "7", "exp": NOW}, None),
        (True, "it is not a dict"),
        ("alice", "it is not a dict"),
        ({"username": "al"}, "user_id"),
        ({"user_id": None}, "user_id"),
        ({"user_id": ""}, "user_id"),
        ({"user_id": True}, "user_id"),
        ({"user_id": 1.5}, "user_id"),
        ({"user_id": "a\nb"}, "user_id"),
        ({"user_id": "7", "exp": "soon"}, "expires_at"),
        ({"user_id": "7", "exp": True}, "expires_at"),
        ({"user_id": "7", "exp": float("nan")}, "expires_at"),
        ({"user_id": "7", "expires_at": [NOW]}, "expires_at"),
    ],
)
async def test_answer_that_names_nobody_or_is_not_usable_gives_none(
    answer: Any, reason: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    assert await FunctionAuthenticator(lambda token: answer)("t") is None
    if reason is None:
        assert not caplog.records
    else:
        assert f"returned an unusable answer: {reason}" in caplog.text


@pytest.mark.parametrize("token", ["", " ", "a b", "a\n", "\0", "é", "\ud800", "x" * 16385])
async def test_function_is_not_asked_about_what_cannot_be_a_token(token: str) -> None:
    def function(token: str) -> None:
        pytest.fail("it was asked")

    assert await FunctionAuthenticator(function)(token) is None


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO])
@pytest.mark.parametrize("is_async", [True, False])
async def test_exception_of_the_function_gives_none_and_its_message_is_not_logged(
    is_async: bool, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    def raises(token: str) -> None:
        try:
            raise KeyError(token)
        except KeyError as exc:
            raise PermissionError(f"{token} is not known") from exc

    async def async_raises(token: str) -> None:
        raises(token)

    caplog.set_level(level)
    assert await FunctionAuthenticator(async_raises if is_async else raises)("t0p-s3cret") is None
    assert "raised PermissionError" in caplog.text
    assert ("in raises" in caplog.text) == (level == logging.DEBUG)
    assert "t0p-s3cret" not in caplog.text


@pytest.mark.parametrize("is_async", [True, False])
async def test_function_that_cannot_tell_now_is_believed(is_async: bool) -> None:
    def cannot_tell(token: str) -> None:
        raise AuthenticationUnavailable("the database is away")

    async def async_cannot_tell(token: str) -> None:
        cannot_tell(token)

    with pytest.raises(AuthenticationUnavailable, match="the database is away"):
        await FunctionAuthenticator(async_cannot_tell if is_async else cannot_tell)("t")


async def test_synchronous_function_does_not_run_in_the_event_loop() -> None:
    threads = []

    def function(token: str) -> None:
        threads.append(threading.current_thread())

    await FunctionAuthenticator(function)("t")
    assert threads != [threading.current_thread()]


async def test_cancelling_ends_an_asynchronous_function() -> None:
    ended = []

    async def function(token: str) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(token)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(FunctionAuthenticator(function), "t")
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert ended == ["t"]


async def test_cancelling_does_not_wait_for_a_synchronous_function() -> None:
    entered, release = threading.Event(), threading.Event()
    returned = []

    def function(token: str) -> None:
        entered.set()
        release.wait(10)
        returned.append(token)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(FunctionAuthenticator(function), "t")
        await anyio.to_thread.run_sync(entered.wait, 10)
        tasks.cancel_scope.cancel()
    assert returned == []
    release.set()


async def test_function_that_hangs_does_not_get_more_threads_by_cancelling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(function_authenticator, "MAX_THREADS", 1)
    entered, release = threading.Event(), threading.Event()

    def function(token: str) -> dict[str, Any]:
        if token == "hang":
            entered.set()
            release.wait(10)
        return {"user_id": token}

    authenticator = FunctionAuthenticator(function)
    assert await authenticator("a") is not None
    assert await authenticator("b") is not None
    task = asyncio.create_task(authenticator("hang"))
    await anyio.to_thread.run_sync(entered.wait, 10)
    task.cancel()  # as asyncio.timeout does: a shield of anyio would not stop it
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(AuthenticationUnavailable, match="1 calls of the authentication function have not returned yet"):
        await authenticator("c")
    release.set()


# --- The HTTP routes of a host application


def identity_of(connection: HTTPConnection) -> str:
    """The identity of a user; Starlette 1.0 has none for those that it does not know."""
    user_id: str = connection.user.identity if connection.user.is_authenticated else ""
    return user_id


async def whoami(request: Request) -> Response:
    return JSONResponse(
        [request.user.is_authenticated, identity_of(request), request.user.display_name, request.auth.scopes]
    )


async def whoami_socket(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_json([identity_of(websocket), websocket.auth.scopes])
    await websocket.close()


def host_app(cookie_name: str | None = "session") -> Starlette:
    backend = TokenAuthenticationBackend(JWTAuthenticator(SECRET), cookie_name)
    return Starlette(
        routes=[Route("/", whoami, methods=["GET", "POST"]), WebSocketRoute("/ws", whoami_socket)],
        middleware=[Middleware(AuthenticationMiddleware, backend=backend)],
    )


ANONYMOUS = [False, "", "", []]
ALICE = [True, "alice", "Alice", ["authenticated"]]


@pytest.mark.parametrize(
    ("method", "headers", "expected"),
    [
        ("GET", {}, ANONYMOUS),
        ("GET", {"Authorization": f"Bearer {TOKEN}"}, ALICE),
        ("POST", {"Authorization": f"Bearer :{TOKEN}"}, ALICE),
        ("GET", {"Cookie": f"session={TOKEN}"}, ALICE),
        ("POST", {"Cookie": f"session={TOKEN}"}, ANONYMOUS),
        ("GET", {"Cookie": f"other={TOKEN}"}, ANONYMOUS),
        ("GET", {"Sec-WebSocket-Protocol": SUBPROTOCOL}, ANONYMOUS),
        ("GET", {"Authorization": "Bearer wrong"}, None),
        ("GET", {"Authorization": "Basic dXNlcjpwYXNz"}, None),
        ("GET", {"Authorization": f"Bearer {TOKEN}", "Cookie": "session=other"}, None),
        ("GET", {"Cookie": "session="}, None),
    ],
)
async def test_host_application_knows_the_user_of_a_request(
    method: str, headers: dict[str, str], expected: list[Any] | None
) -> None:
    transport = httpx.ASGITransport(app=host_app())
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.request(method, f"/?token={TOKEN}", headers=headers)
    if expected is None:
        assert (response.status_code, response.text) == (400, "Invalid bearer token")
    else:
        assert (response.status_code, response.json()) == (200, expected)


@pytest.mark.parametrize(
    ("headers", "subprotocols", "expected"),
    [
        ([("Authorization", f"Bearer {TOKEN}")], [], '["alice",["authenticated"]]'),
        ([], ["nuropb.v1", SUBPROTOCOL], '["alice",["authenticated"]]'),
        ([("Cookie", f"session={TOKEN}")], [], '["",[]]'),
        ([("Authorization", "Bearer wrong")], [], None),
    ],
)
async def test_host_application_knows_the_user_of_a_websocket(
    headers: list[tuple[str, str]], subprotocols: list[str], expected: str | None
) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    raw = [(name.lower().encode(), value.encode()) for name, value in headers]
    scope = {"type": "websocket", "path": "/ws", "headers": raw, "subprotocols": subprotocols}
    await host_app()(scope, receive, send)
    if expected is None:
        assert [message["type"] for message in sent] == ["websocket.close"]
    else:
        assert sent[1] == {"type": "websocket.send", "text": expected}


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("read write", ["read", "write"]),
        (" read  ", ["read"]),
        ("read\u00a0admin\troot", ["read\u00a0admin\troot"]),
        (["read", 1, "write"], ["read", "write"]),
        ("", []),
        (None, []),
        (1, []),
        ({"read": 1}, []),
    ],
)
async def test_scopes_come_from_the_scope_claim(scope: object, expected: list[str]) -> None:
    backend = TokenAuthenticationBackend(JWTAuthenticator(SECRET))
    authorization = f"Bearer {make(claims(scope=scope))}".encode()
    conn = HTTPConnection({"type": "http", "method": "GET", "headers": [(b"authorization", authorization)]})
    result = await backend.authenticate(conn)
    assert result is not None
    credentials, user = result
    assert credentials.scopes == ["authenticated", *expected]
    assert user.full_identity.user_id == "alice"


async def test_host_application_gets_the_same_error_for_every_reason() -> None:
    backend = TokenAuthenticationBackend(JWTAuthenticator(SECRET))
    for value in (b"Bearer wrong", b"Basic x", f"Bearer {make(claims(exp=1))}".encode()):
        conn = HTTPConnection({"type": "http", "method": "GET", "headers": [(b"authorization", value)]})
        with pytest.raises(AuthenticationError, match=r"^Invalid bearer token$"):
            await backend.authenticate(conn)


async def test_host_application_can_tell_a_token_that_is_bad_from_one_that_cannot_be_checked() -> None:
    def cannot_tell(token: str) -> None:
        raise AuthenticationUnavailable("the database is away")

    backend = TokenAuthenticationBackend(FunctionAuthenticator(cannot_tell))
    conn = HTTPConnection({"type": "http", "method": "GET", "headers": [(b"authorization", b"Bearer t")]})
    with pytest.raises(AuthenticationError, match=r"^Tokens cannot be checked now$") as caught:
        await backend.authenticate(conn)
    assert isinstance(caught.value.__cause__, AuthenticationUnavailable)

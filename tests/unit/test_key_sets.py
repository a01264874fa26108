"""Key sets: the times of fetches, the lifetime of keys, and the checks of a provider's documents."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import anyio
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nuropb_gateway_asgi import KeySet, SettingsError
from nuropb_gateway_asgi.authentication import freshness
from nuropb_gateway_asgi.authentication.fetching import URL_PATTERN, Document, check_url, max_age_of
from nuropb_gateway_asgi.authentication.freshness import Freshness
from nuropb_gateway_asgi.authentication.strict_json import Unacceptable
from nuropb_gateway_asgi.exceptions import AuthenticationUnavailable, NotStartedError
from nuropb_gateway_asgi.loopback import is_loopback_host
from tests.kit.tokens import ISSUER, P256_KEY, RSA_KEY, RSA_OTHER, as_json, jwk, key_set, private_jwk

from .fakes import PATIENCE, Clock, until

URL = "https://issuer.example/keys"
DISCOVERY = "https://issuer.example/.well-known/openid-configuration"
ONE = key_set(jwk(RSA_KEY, "one"))
TWO = key_set(jwk(RSA_KEY, "one"), jwk(P256_KEY, "two"))
DAY = 86400.0


class Provider:
    """A web server: documents or exceptions by URL; every other URL is Unacceptable."""

    def __init__(self) -> None:
        self.pages: dict[str, Any] = {}
        self.asked: list[str] = []
        #: If given, all fetches wait for it.
        self.gate: asyncio.Event | None = None

    def publish(self, body: bytes | Exception, *, max_age: float | None = None, url: str = URL) -> None:
        self.pages[url] = body if isinstance(body, Exception) else Document(body, max_age)

    def go_down(self) -> None:
        self.pages.clear()

    async def __call__(self, url: str) -> Document:
        self.asked.append(url)
        if self.gate is not None:
            await self.gate.wait()
        page = self.pages.get(url, Unacceptable("nobody answers"))
        if isinstance(page, Exception):
            raise page
        document: Document = page
        return document


class Scene:
    """A key set, its provider, and a clock that only the test moves."""

    def __init__(self, url: str | None = None, **options: Any) -> None:
        self.provider = Provider()
        self.clock = Clock(1000.0)
        self.keys = KeySet(url, fetch=self.provider, clock=self.clock, chance=lambda: 1.0, **options)

    async def fetches(self, count: int) -> None:
        """Wait for the end of the attempt with this number."""
        await until(lambda: len(self.provider.asked) == count and not self.keys.is_fetching)

    async def kids(self) -> list[str | None]:
        return [key.kid for key in (await self.keys.ring()).keys]


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    """Run a key set that has fetched its keys."""
    set_ = Scene(URL)
    set_.provider.publish(ONE)
    async with set_.keys:
        await set_.fetches(1)
        yield set_


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the key set compare its timetable with the test's clock every other millisecond."""
    for name in ("FIRST_RETRY", "LAST_RETRY", "SHORTEST_LIFETIME", "DEFAULT_LIFETIME", "LONGEST_LIFETIME"):
        monkeypatch.setattr(freshness, name, 0.002)


# --- when to fetch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_age", "earliest", "latest"),
    [
        (None, 240.0, 285.0),
        (0.0, 48.0, 57.0),
        (59.0, 48.0, 57.0),
        (600.0, 480.0, 570.0),
        (3600.0, 2880.0, 3420.0),
        (1e10, 2880.0, 3420.0),
    ],
)
def test_keys_are_fetched_again_before_their_time_is_over(
    max_age: float | None, earliest: float, latest: float
) -> None:
    for chance, due in ((0.0, earliest), (1.0, latest)):
        mine = Freshness()
        mine.tried_at = 1000.0
        mine.on_fetched(max_age, chance)
        assert mine.due_at - 1000.0 == pytest.approx(due)


def test_attempts_that_fail_are_made_less_and_less_often_and_never_all_at_once() -> None:
    mine = Freshness()
    delays = []
    for _ in range(9):
        mine.on_failed(0.0, 1.0)
        delays.append(mine.due_at)
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    mine.on_failed(0.0, 0.0)
    assert mine.due_at == 30
    mine.on_fetched(None, 1.0)
    mine.on_failed(0.0, 1.0)
    assert mine.due_at == 1


def test_unknown_keys_are_looked_for_once_in_30_seconds() -> None:
    mine = Freshness()
    assert mine.may_ask(0.0)
    mine.tried_at = 100.0
    assert not mine.may_ask(129.9)
    assert mine.may_ask(130.0)


def test_keys_serve_for_a_day_after_they_were_fetched() -> None:
    mine = Freshness()
    assert not mine.serves(0.0)
    mine.tried_at = 100.0
    mine.on_fetched(None, 1.0)
    mine.tried_at = 200.0
    mine.on_failed(200.0, 1.0)
    assert mine.serves(100.0 + DAY)
    assert not mine.serves(100.1 + DAY)


# --- fetching ---------------------------------------------------------------------------------------------------


async def test_keys_are_fetched_when_it_is_entered_and_not_for_each_token(scene: Scene) -> None:
    for _ in range(3):
        assert await scene.kids() == ["one"]
    assert scene.provider.asked == [URL]
    assert (scene.keys.problem, scene.keys.warning, scene.keys.size, scene.keys.failures) == (None, None, 1, 0)
    scene.clock.now += 7
    assert scene.keys.age == 7


@pytest.mark.usefixtures("impatient")
async def test_keys_are_fetched_again_by_themselves_when_it_is_time(scene: Scene) -> None:
    scene.provider.publish(TWO)
    scene.clock.now += 1
    await scene.fetches(2)
    assert await scene.kids() == ["one", "two"]


async def test_the_same_document_is_the_same_ring(scene: Scene) -> None:
    before = await scene.keys.ring()
    scene.clock.now += 30
    assert await scene.keys.newer_ring() is before
    scene.provider.publish(TWO)
    scene.clock.now += 30
    after = await scene.keys.newer_ring()
    assert after is not before
    assert await scene.keys.ring() is after


async def test_whoever_comes_during_the_first_fetch_waits_for_it() -> None:
    scene = Scene(URL)
    scene.provider.publish(ONE)
    scene.provider.gate = asyncio.Event()
    async with scene.keys, anyio.create_task_group() as tasks:
        impatient = asyncio.create_task(scene.keys.ring())
        for _ in range(20):
            tasks.start_soon(scene.kids)
        await anyio.wait_all_tasks_blocked()
        impatient.cancel()  # the other callers are not affected
        await anyio.wait_all_tasks_blocked()
        assert impatient.cancelled()
        assert scene.keys.problem == "not fetched yet"
        scene.provider.gate.set()
        assert await scene.kids() == ["one"]
    assert scene.provider.asked == [URL]


async def test_a_key_that_is_not_there_is_looked_for_once_for_all_who_ask(scene: Scene) -> None:
    scene.provider.publish(TWO)
    scene.clock.now += 30
    scene.provider.gate = asyncio.Event()
    async with anyio.create_task_group() as tasks:
        impatient = asyncio.create_task(scene.keys.newer_ring())
        for _ in range(20):
            tasks.start_soon(scene.keys.newer_ring)
        await anyio.wait_all_tasks_blocked()
        impatient.cancel()
        await anyio.wait_all_tasks_blocked()
        scene.provider.gate.set()
    assert await scene.kids() == ["one", "two"]
    assert len(scene.provider.asked) == 2


async def test_a_key_that_is_not_there_is_not_looked_for_again_within_30_seconds(scene: Scene) -> None:
    scene.provider.publish(TWO)
    scene.clock.now += 29.9
    ring = await scene.keys.newer_ring()
    assert [key.kid for key in ring.keys] == ["one"]
    assert len(scene.provider.asked) == 1
    scene.clock.now += 0.1
    ring = await scene.keys.newer_ring()
    assert [key.kid for key in ring.keys] == ["one", "two"]
    for _ in range(3):
        await scene.keys.newer_ring()
    assert len(scene.provider.asked) == 2


# --- a provider that is away ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
async def test_a_provider_may_come_after_the_gateway(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="nuropb_gateway_asgi")
    scene = Scene(URL)
    async with scene.keys:
        with pytest.raises(AuthenticationUnavailable, match="keys: the key set: nobody answers"):
            await scene.keys.ring()
        for attempts in range(2, 5):
            scene.clock.now += 1
            await scene.fetches(attempts)
            assert scene.keys.problem == "the key set: nobody answers"
        assert (scene.keys.size, scene.keys.warning, scene.keys.failures) == (0, None, 4)
        assert scene.keys.age == math.inf
        scene.provider.gate = asyncio.Event()
        scene.clock.now += 1
        await until(lambda: scene.keys.is_fetching)
        with pytest.raises(AuthenticationUnavailable):  # at once, because the last attempt failed, too
            await scene.keys.ring()
        scene.provider.publish(ONE)
        scene.provider.gate.set()
        await scene.fetches(5)
        assert await scene.kids() == ["one"]
        assert scene.keys.size == 1
        assert not scene.keys.problem
    assert caplog.messages == [
        f"keys: fetching from {URL} failed: the key set: nobody answers",
        f"keys: 1 of {URL}",
        f"keys: fetching from {URL} works again",
    ]


@pytest.mark.usefixtures("impatient")
async def test_keys_serve_for_a_day_while_the_provider_is_away(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="nuropb_gateway_asgi")
    scene.provider.go_down()
    scene.clock.now += DAY - 1
    await scene.fetches(2)
    assert await scene.kids() == ["one"]
    assert (scene.keys.problem, scene.keys.size, scene.keys.failures) == (None, 1, 1)
    assert scene.keys.warning == "using those of 86399 s ago: the key set: nobody answers"
    scene.clock.now += 0.9
    await scene.fetches(3)
    assert await scene.kids() == ["one"]
    scene.clock.now += 0.2
    with pytest.raises(AuthenticationUnavailable, match="keys: older than a day: the key set: nobody"):
        await scene.keys.ring()  # before and after the next attempt
    await scene.fetches(4)
    with pytest.raises(AuthenticationUnavailable, match="keys: the key set: nobody answers"):
        await scene.keys.ring()
    assert not scene.keys.warning
    assert scene.keys.size == 0
    scene.provider.publish(ONE)
    scene.clock.now += 1
    await scene.fetches(5)
    assert await scene.kids() == ["one"]
    assert caplog.messages == [
        f"keys: fetching from {URL} failed: the key set: nobody answers",
        "keys: older than a day, so no token can be checked any more: the key set: nobody answers",
        f"keys: 1 of {URL}",
        f"keys: fetching from {URL} works again",
    ]


async def test_nobody_knows_of_an_unknown_key_while_the_provider_is_away(scene: Scene) -> None:
    scene.provider.go_down()
    scene.clock.now += 30
    with pytest.raises(AuthenticationUnavailable, match="keys: the key set: nobody answers"):
        await scene.keys.newer_ring()
    with pytest.raises(AuthenticationUnavailable):
        await scene.keys.newer_ring()
    assert len(scene.provider.asked) == 2
    assert await scene.kids() == ["one"]  # the known keys stay in use


async def test_an_error_of_the_gateway_itself_is_like_a_provider_that_is_away(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.provider.publish(RuntimeError("a gap"))
    scene.clock.now += 30
    with pytest.raises(AuthenticationUnavailable, match="keys: RuntimeError"):
        await scene.keys.newer_ring()
    assert "keys: unexpected error while fetching" in caplog.text
    assert await scene.kids() == ["one"]


async def test_what_is_no_key_set_leaves_the_keys_as_they_were(scene: Scene) -> None:
    scene.provider.publish(b"<html>")
    scene.clock.now += 30
    with pytest.raises(AuthenticationUnavailable, match="keys: the key set is not strict JSON"):
        await scene.keys.newer_ring()
    assert await scene.kids() == ["one"]


async def test_keys_that_are_not_published_any_more_are_gone_even_if_that_is_all_of_them(scene: Scene) -> None:
    scene.provider.publish(key_set(), max_age=3600)
    scene.clock.now += 30
    with pytest.raises(AuthenticationUnavailable, match="keys: the provider has no key that can be used"):
        await scene.keys.newer_ring()
    assert scene.keys.problem == "the provider has no key that can be used"
    assert scene.keys.size == 0
    # Soon, whatever lifetime the provider states.
    assert scene.keys.due_in == pytest.approx(57)


# --- log lines ---------------------------------------------------------------------------------------------


async def test_keys_that_are_not_used_are_told_with_the_reason_and_private_ones_loudly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="nuropb_gateway_asgi")
    scene = Scene(URL)
    secret = private_jwk(RSA_OTHER, "x")
    scene.provider.publish(key_set(jwk(RSA_KEY, "one"), {"kty": "oct"}, secret))
    async with scene.keys:
        assert await scene.kids() == ["one"]
    assert caplog.messages == [
        f"keys: 1 of {URL}; number 2 is ignored: its kty is neither RSA nor EC nor OKP; "
        "number 3 is ignored: it shows its private part",
        f"keys: {URL} publishes private keys, and every reader can sign tokens with them; replace these keys",
    ]
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    assert secret["d"] not in caplog.text


# --- running -------------------------------------------------------------------------------------------


async def test_outside_of_its_context_it_says_what_to_do() -> None:
    for function in (KeySet(URL).ring, KeySet(URL).newer_ring):
        with pytest.raises(NotStartedError, match="'async with'"):
            await function()


async def test_it_may_be_entered_by_several_in_any_order() -> None:
    scene = Scene(URL)
    scene.provider.publish(ONE)
    await scene.keys.__aenter__()
    async with scene.keys:
        assert await scene.kids() == ["one"]
        await scene.keys.__aexit__(None, None, None)  # by the first user, while the second still runs it
        assert await scene.kids() == ["one"]
    assert scene.provider.asked == [URL]
    with pytest.raises(NotStartedError):
        await scene.keys.ring()


async def test_whoever_waits_when_it_ends_is_not_left_waiting() -> None:
    scene = Scene(URL)
    scene.provider.gate = asyncio.Event()
    async with scene.keys:
        waiting = asyncio.create_task(scene.keys.ring())
        await anyio.wait_all_tasks_blocked()
    with anyio.fail_after(PATIENCE), pytest.raises(AuthenticationUnavailable):
        await waiting


async def test_when_it_runs_again_the_keys_that_it_had_serve_until_the_first_fetch_which_is_waited_for() -> None:
    scene = Scene(URL)
    scene.provider.publish(ONE)
    async with scene.keys:
        await scene.keys.ring()
    scene.provider.publish(TWO)
    scene.clock.now += 60
    scene.provider.gate = asyncio.Event()
    async with scene.keys:
        assert await scene.kids() == ["one"]
        asking = asyncio.create_task(scene.keys.newer_ring())
        await anyio.wait_all_tasks_blocked()
        scene.provider.gate.set()
        assert [key.kid for key in (await asking).keys] == ["one", "two"]
        await anyio.wait_all_tasks_blocked()
    assert len(scene.provider.asked) == 2


def test_it_may_run_again_in_another_event_loop() -> None:
    scene = Scene(URL)
    scene.provider.publish(ONE)

    async def run() -> list[str | None]:
        async with scene.keys:
            scene.clock.now += 30
            await scene.keys.newer_ring()
            return await scene.kids()

    assert asyncio.run(run()) == ["one"]
    scene.provider.publish(TWO)
    assert asyncio.run(run()) == ["one", "two"]


# --- an OpenID provider -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("issuer", "discovery"),
    [
        ("https://issuer.example", DISCOVERY),
        ("https://issuer.example/", DISCOVERY),
        ("https://issuer.example/realms/a", "https://issuer.example/realms/a/.well-known/openid-configuration"),
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080/.well-known/openid-configuration"),
    ],
)
async def test_an_issuer_tells_where_its_keys_are(issuer: str, discovery: str) -> None:
    scene = Scene(issuer=issuer)
    scene.provider.publish(as_json({"issuer": issuer, "jwks_uri": URL, "claims_supported": ["sub"]}), url=discovery)
    scene.provider.publish(ONE)
    async with scene.keys:
        assert await scene.kids() == ["one"]
    assert scene.provider.asked == [discovery, URL]


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (as_json({"issuer": f"{ISSUER}/", "jwks_uri": URL}), "names another issuer; check the slash at the end"),
        (as_json({"issuer": "https://evil.example", "jwks_uri": URL}), "names another issuer"),
        (as_json({"issuer": ISSUER.upper(), "jwks_uri": URL}), "names another issuer"),
        (as_json({"issuer": [ISSUER], "jwks_uri": URL}), "names another issuer"),
        (as_json({"jwks_uri": URL}), "names another issuer"),
        (as_json({"issuer": ISSUER}), "has no jwks_uri"),
        (as_json({"issuer": ISSUER, "jwks_uri": [URL]}), "has no jwks_uri"),
        (
            as_json({"issuer": ISSUER, "jwks_uri": "http://issuer.example/keys"}),
            "jwks_uri: http is accepted only",
        ),
        (as_json({"issuer": ISSUER, "jwks_uri": "http://127.0.0.1/keys"}), "leads from https to http"),
        (as_json({"issuer": ISSUER, "jwks_uri": "https://me:pw@issuer.example/"}), "jwks_uri: not an accepted URL"),
        (as_json({"issuer": ISSUER, "jwks_uri": "file:///etc/passwd"}), "jwks_uri: not an accepted URL"),
        (b'{"issuer":"https://issuer.example","issuer":"https://evil.example"}', "is not strict JSON"),
        (b"[]", "is not an object"),
        (b"", "is not strict JSON"),
    ],
)
async def test_a_discovery_document_that_cannot_be_trusted_is_not(document: bytes, reason: str) -> None:
    scene = Scene(issuer=ISSUER)
    scene.provider.publish(document, url=DISCOVERY)
    scene.provider.publish(ONE)
    async with scene.keys:
        with pytest.raises(AuthenticationUnavailable, match=f"keys: the discovery document.*{reason}"):
            await scene.keys.ring()
    assert scene.provider.asked == [DISCOVERY]


# --- settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "https://issuer.example",
        "https://issuer.example/",
        "https://issuer.example:65535/keys",
        f"https://{'a' * 63}.example/keys",
        "https://issuer.example:8443/realms/main/protocol/openid-connect/certs",
        "https://issuer.example/keys?policy=b2c_1_a&x=%20",
        "HTTPS://Issuer.Example/keys",
        "https://xn--mnchen-3ya.example/keys",
        "https://[2001:db8::1]:8443/keys",
        "https://192.0.2.1/keys",
        "http://localhost:8080/keys",
        "http://LOCALHOST/keys",
        "http://127.0.0.1:8080/keys",
        "http://127.8.9.10/keys",
        "http://[::1]:8080/keys",
    ],
)
def test_keys_may_come_from_https_or_from_this_machine(url: str) -> None:
    check_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "issuer.example",
        "//issuer.example/keys",
        "https:issuer.example/keys",
        "https:///keys",
        "https://",
        "http://issuer.example/keys",
        "http://localhost.evil.example/keys",
        "http://127.0.0.1.evil.example/keys",
        "http://127.1/keys",
        "http://0.0.0.0/keys",
        "http://[::ffff:192.0.2.1]/keys",
        "http://2130706433/keys",
        "http://10.0.0.1/keys",
        "ftp://issuer.example/keys",
        "file:///etc/passwd",
        "https://me:hunter2@issuer.example/keys",
        "https://me@issuer.example/keys",
        "http://127.0.0.1@evil.example/keys",
        "http://127.0.0.1\\@evil.example/keys",
        "https://issuer.example/keys#one",
        "https://issuer.example:port/keys",
        "https://issuer.example/a b",
        "https://issuer.example/\n",
        "https://issuer.example\n",
        " https://issuer.example",
        "https://issuer.example/é",
        "https://münchen.example/keys",
        "https://[::1/keys",
        "https://a..b.example/keys",
        "https://issuer.example:65536/keys",
        "https://[1.2.3]/keys",
        f"https://{'a' * 64}.example/keys",
        f"https://{'a.' * 130}example/keys",
        f"https://issuer.example/{'a' * 2000}",
    ],
)
def test_keys_may_not_come_from_anywhere_else(url: str) -> None:
    with pytest.raises(Unacceptable):
        check_url(url)
    for name, make in (("JWT_JWKS_URL", partial(KeySet, url)), ("JWT_OIDC_ISSUER", partial(KeySet, issuer=url))):
        with pytest.raises(SettingsError, match=f"^{name}: ") as caught:
            make()
        assert "hunter2" not in str(caught.value)
        assert "\n" not in str(caught.value)


@given(st.from_regex(URL_PATTERN, fullmatch=True))
@settings(database=None)
def test_the_library_that_fetches_goes_where_the_check_has_looked(url: str) -> None:
    try:
        check_url(url)
    except Unacceptable:
        return
    try:
        read = httpx.URL(url)
    except httpx.InvalidURL:
        return  # httpx refuses the URL
    match = URL_PATTERN.fullmatch(url)
    assert match is not None
    assert read.scheme == match[1].lower()
    assert read.raw_host.decode().lower() == match[2].lower().strip("[]")  # httpx keeps the case of IPv6 addresses
    assert read.port in (None, int(match[3] or 0))
    assert (read.userinfo, read.fragment) == (b"", "")
    assert read.scheme == "https" or is_loopback_host(read.host)


def test_an_issuer_has_no_query() -> None:
    with pytest.raises(SettingsError, match="JWT_OIDC_ISSUER: the issuer has a query"):
        KeySet(issuer="https://issuer.example/?tenant=a")


def test_it_has_one_origin() -> None:
    with pytest.raises(SettingsError, match="JWT_JWKS_URL: JWT_OIDC_ISSUER is set, too"):
        KeySet(URL, issuer=ISSUER)
    with pytest.raises(SettingsError, match="JWT_JWKS_URL: not an accepted URL"):
        KeySet()


@pytest.mark.parametrize("algorithms", [[], ["HS256"], ["RS256", "HS256"], ["none"], "RS256", ["ES256K"], ["rs256"]])
def test_algorithms_of_a_set_are_never_for_secrets(algorithms: Any) -> None:
    with pytest.raises(SettingsError, match=r"JWT_ALGORITHMS: .*; expected some of RS256, RS384"):
        KeySet(URL, algorithms=algorithms)


async def test_algorithms_narrow_what_keys_are_for() -> None:
    scene = Scene(URL, algorithms=["ES256"])
    scene.provider.publish(TWO)
    async with scene.keys:
        assert await scene.kids() == ["two"]


def test_a_missing_library_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(SettingsError, match=r"JWT_OIDC_ISSUER: httpx .*; install nuropb-gateway-asgi\[oidc\]"):
        KeySet(issuer=ISSUER)


# --- documents --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cache_control", "max_age"),
    [
        ("", None),
        ("public", None),
        ("max-age=600", 600),
        ("public, max-age=600, must-revalidate", 600),
        ("Max-Age=600", 600),
        ('max-age="600"', 600),
        ("max-age=0", 0),
        ("no-store", 0),
        ("max-age=600, No-Cache", 0),
        ("max-age=600, max-age=60", 60),
        ("s-maxage=600", None),
        ("max-age=-1", None),
        ("max-age=1e9", None),
        ("max-age=", None),
        ("max-age=99999999999999999999", None),
        ("max-age = 600", None),
    ],
)
def test_how_long_a_document_may_be_kept(cache_control: str, max_age: float | None) -> None:
    assert max_age_of(cache_control) == max_age


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("http://keys.svc.cluster.local:8080/keys", True),
        ("http://10.0.0.7/keys", True),
        ("https://issuer.example/keys", True),
        ("http://user@keys.svc/keys", False),
        ("ftp://keys.svc/keys", False),
        ("http:/keys", False),
    ],
)
def test_http_from_other_machines_has_to_be_allowed(url: str, allowed: bool) -> None:
    if url.startswith("http:"):
        with pytest.raises(SettingsError, match=r"JWT_JWKS_URL: (http is accepted only|not an accepted URL)"):
            KeySet(url)
    if allowed:
        KeySet(url, allow_http=True)
    else:
        with pytest.raises(SettingsError, match="JWT_JWKS_URL: not an accepted URL"):
            KeySet(url, allow_http=True)


@pytest.mark.parametrize(
    ("issuer", "jwks_url", "allow_http", "problem"),
    [
        ("http://id.svc", "http://id.svc/keys", True, None),
        ("http://id.svc", "https://id.svc/keys", True, None),
        ("https://id.svc", "http://id.svc/keys", True, "the discovery document leads from https to http"),
        ("https://id.svc", "http://id.svc/keys", False, "the discovery document's jwks_uri: http is accepted only"),
        ("http://127.0.0.1", "http://id.svc/keys", False, "the discovery document's jwks_uri: http is accepted only"),
    ],
)
async def test_a_discovery_document_leads_to_http_only_where_it_came_by_http(
    issuer: str, jwks_url: str, allow_http: bool, problem: str | None
) -> None:
    scene = Scene(issuer=issuer, allow_http=allow_http)
    document = as_json({"issuer": issuer, "jwks_uri": jwks_url})
    scene.provider.publish(document, url=f"{issuer}/.well-known/openid-configuration")
    scene.provider.publish(ONE, url=jwks_url)
    async with scene.keys:
        await until(lambda: not scene.keys.is_fetching)
        if problem is None:
            assert scene.keys.problem is None
        else:
            assert (scene.keys.problem or "").startswith(problem)

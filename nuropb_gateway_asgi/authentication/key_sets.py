"""The public keys of whoever issues the tokens: fetched, and fetched again before they are too old."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Final, Self

from ..exceptions import AuthenticationUnavailable, NotStartedError, SettingsError
from .fetching import Document, Fetcher, check_url, is_secure
from .keys import SET_ALGORITHMS, IgnoredKey, KeyRing, check_algorithms, read_key_set
from .strict_json import Unacceptable, parse_object

__all__ = ["Freshness", "KeySet"]

logger = logging.getLogger(__name__)

#: Seconds for an attempt, from the name of the host to the last byte, wherever it goes: a server may also send one byte
#: at a time. Less than clients have for their authorisation.
FETCH_TIMEOUT: Final = 5.0
#: For how long keys are taken for fresh, in seconds: the least, the most, and when the provider does not say.
SHORTEST_LIFETIME: Final = 60.0
LONGEST_LIFETIME: Final = 3600.0
DEFAULT_LIFETIME: Final = 300.0
#: For how long they serve when they cannot be fetched, in seconds.
LAST_RESORT: Final = 86400.0
#: Tokens that name a key which is not there cause one fetch in so many seconds, whoever made them up.
ASK_INTERVAL: Final = 30.0
#: Seconds between attempts that fail, from the first to the last, each with jitter.
FIRST_RETRY: Final = 1.0
LAST_RETRY: Final = 60.0

_NOT_STARTED: Final = (
    "the key set was not started: enter it (or the JWTAuthenticator that has it) with 'async with', or give it to a "
    "Gateway, whose lifespan does so"
)


class Freshness:
    """When keys are fetched, and how long those at hand serve.

    Pure: it is told the time, in seconds of a clock that only goes forward, and ``chance``, a number from 0 to 1 that
    keeps many processes from doing the same in one moment.
    """

    def __init__(self) -> None:
        #: When the last attempt began, and when the last one that succeeded did.
        self.tried_at = -math.inf
        self.fetched_at = -math.inf
        #: When the next attempt is to begin.
        self.due_at = -math.inf
        self._retry = FIRST_RETRY

    def on_fetched(self, max_age: float | None, chance: float) -> None:
        """The attempt succeeded. The next one comes before the keys' lifetime is over."""
        lifetime = DEFAULT_LIFETIME if max_age is None else min(max(max_age, SHORTEST_LIFETIME), LONGEST_LIFETIME)
        self.fetched_at = self.tried_at
        self.due_at = self.fetched_at + lifetime * (0.8 + 0.15 * chance)
        self._retry = FIRST_RETRY

    def on_failed(self, now: float, chance: float) -> None:
        """The attempt failed."""
        self.due_at = now + self._retry * (0.5 + 0.5 * chance)
        self._retry = min(2 * self._retry, LAST_RETRY)

    def may_ask(self, now: float) -> bool:
        """Whether a token that names an unknown key is a reason to fetch."""
        return now - self.tried_at >= ASK_INTERVAL

    def serves(self, now: float) -> bool:
        """Whether the keys at hand may be used."""
        return now - self.fetched_at <= LAST_RESORT


class KeySet:
    """The keys at a URL (RFC 7517), or those of an OpenID provider, which tells where they are (OpenID Discovery 1.0).

    ``issuer`` is compared exactly, with what the provider says of itself and with the tokens' ``iss``. ``algorithms``
    narrows what the keys are used for: all of RS256, RS384, RS512, ES256, ES384 and ES512 that they are made for.

    It runs from ``__aenter__`` to ``__aexit__``, which may be nested; entering does not wait for the provider. Raises
    SettingsError for a URL that keys may not come from, and when httpx (the extra ``oidc``) is not installed.
    """

    def __init__(
        self, jwks_url: str | None = None, *, issuer: str | None = None, algorithms: Sequence[str] | None = None
    ) -> None:
        if jwks_url is not None and issuer is not None:
            raise SettingsError("JWT_JWKS_URL: JWT_OIDC_ISSUER is given, too, which finds the keys by itself; give one")
        name, url = ("JWT_JWKS_URL", jwks_url) if issuer is None else ("JWT_OIDC_ISSUER", issuer)
        try:
            check_url(url or "")
            if issuer is not None and "?" in issuer:  # OpenID Connect Core 1.0, 2
                raise Unacceptable("an issuer has no query")
            self._fetch: Callable[[str], Awaitable[Document]] = Fetcher()
        except (Unacceptable, SettingsError) as error:
            raise SettingsError(f"{name}: {error}") from error
        self.issuer = issuer
        self._url = url or ""
        self._algorithms = None if algorithms is None else check_algorithms(algorithms, SET_ALGORITHMS)
        self._clock = time.monotonic
        self._chance = random.random
        self._freshness = Freshness()
        self._body: bytes | None = None
        self._ring: KeyRing | None = None
        #: Why the keys are not those of now.
        self._failure: str | None = "they have not been fetched yet"
        self._failures = 0
        self._is_down = False
        self._users = 0
        self._task: asyncio.Task[None] | None = None

    # --- for as long as it runs -------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._users += 1
        if self._task is None:
            # They belong to the event loop in which they are first waited for.
            self._asked = asyncio.Event()
            self._attempt = asyncio.Event()
            self._begin_attempt()
            self._task = asyncio.create_task(self._run(), name="keys")
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._users -= 1
        if self._users == 0 and self._task is not None:
            task, self._task = self._task, None
            task.cancel()
            await asyncio.wait([task])
            self._end_attempt()
            if not task.cancelled():
                task.result()

    async def _run(self) -> None:
        """Fetch the keys whenever it is time to, until cancelled."""
        while True:
            await self._renew()
            self._end_attempt()
            while not self._asked.is_set() and (delay := self._freshness.due_at - self._clock()) > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await self._asked.wait()
            self._asked.clear()
            self._begin_attempt()

    def _begin_attempt(self) -> None:
        self._is_fetching = True
        self._freshness.tried_at = self._clock()

    def _end_attempt(self) -> None:
        """Wake whoever waits for the end of the attempt, and let others wait for the end of the next one."""
        self._is_fetching = False
        self._attempt.set()
        self._attempt = asyncio.Event()

    async def _renew(self) -> None:
        try:
            async with asyncio.timeout(FETCH_TIMEOUT):
                url = await self._find_url()
                document = await self._fetched("the key set", url)
            ring = self._ring
            if ring is None or document.body != self._body:
                ring, ignored = read_key_set(document.body, self._algorithms)
                self._body, self._ring = document.body, ring
                _log_keys(url, ring, ignored)
        except Unacceptable as error:
            self._on_failed(str(error))
        except TimeoutError:
            self._on_failed(f"they did not come within {FETCH_TIMEOUT:g} s")
        except Exception as error:
            # A gap in the rules must not take the gateway down; the keys at hand go on serving.
            logger.exception("keys: an error of the gateway itself")
            self._on_failed(type(error).__name__)
        else:
            if self._is_down:
                logger.info("keys: they can be fetched again from %s", self._url)
            # A provider that has no key at all is in trouble, and will not be for as long as it says.
            self._freshness.on_fetched(document.max_age if ring.keys else 0.0, self._chance())
            self._failure, self._is_down = None, False

    def _on_failed(self, reason: str) -> None:
        now = self._clock()
        if self._ring is not None and not self._freshness.serves(now):
            logger.error("keys: they are older than a day, and no token can be checked any more: %s", reason)
            self._ring = None
        elif not self._is_down:
            logger.warning("keys: they cannot be fetched from %s: %s", self._url, reason)
        self._failure, self._is_down = reason, True
        self._failures += 1
        self._freshness.on_failed(now, self._chance())

    async def _find_url(self) -> str:
        if self.issuer is None:
            return self._url
        # OpenID Discovery 1.0, 4: a slash at the end of the issuer is not doubled.
        url = self.issuer.removesuffix("/") + "/.well-known/openid-configuration"
        document = await self._fetched("the discovery document", url)
        said = parse_object(document.body, "discovery document", max_depth=8)
        # OpenID Discovery 1.0, 4.3: without this, one provider could speak for another.
        if said.get("issuer") != self.issuer:
            raise Unacceptable("the discovery document is another issuer's: mind the slash at the end")
        jwks_url = said.get("jwks_uri")
        if not isinstance(jwks_url, str):
            raise Unacceptable("the discovery document has no jwks_uri")
        try:
            check_url(jwks_url)
        except Unacceptable as error:
            raise Unacceptable(f"the discovery document's jwks_uri: {error}") from error
        if is_secure(self.issuer) and not is_secure(jwks_url):
            raise Unacceptable("the discovery document leads from https to http")
        return jwks_url

    async def _fetched(self, what: str, url: str) -> Document:
        try:
            return await self._fetch(url)
        except Unacceptable as error:
            raise Unacceptable(f"{what}: {error}") from error

    # --- for whoever checks tokens ----------------------------------------------------------------------------

    async def ring(self) -> KeyRing:
        """Return the keys at hand.

        Raises AuthenticationUnavailable when there are none; while they are fetched for the first time, it waits for
        that. Raises NotStartedError outside of the context. Cancellation takes effect at once, and disturbs nobody.
        """
        if self._task is None:
            raise NotStartedError(_NOT_STARTED)
        if self._ring is None and self._is_fetching and self._failures == 0:
            await self._attempt.wait()
        if self._ring is None or self.problem is not None:
            raise AuthenticationUnavailable(f"keys: {self.problem}")
        return self._ring

    async def newer_ring(self) -> KeyRing:
        """Return the keys after another look at the provider, for a token that names a key which is not there.

        The look is shared by all who ask, and made once in 30 seconds. Raises AuthenticationUnavailable when the last
        one failed, since nobody knows then. Cancellation takes effect at once, and disturbs nobody.
        """
        if self._task is None:
            raise NotStartedError(_NOT_STARTED)
        if self._freshness.may_ask(self._clock()):
            self._asked.set()
        if self._is_fetching or self._asked.is_set():
            await self._attempt.wait()
        if self._failure is not None:
            raise AuthenticationUnavailable(f"keys: {self._failure}")
        return await self.ring()

    async def probe(self) -> str:
        """Fetch the keys once, and say what was found. Raises ConnectionError."""
        async with self:
            with contextlib.suppress(AuthenticationUnavailable):
                await self.ring()
            if self.problem is not None:
                raise ConnectionError(self.problem)
            return f"{self.size} keys of {self._url}"

    # --- for whoever operates it ------------------------------------------------------------------------------

    @property
    def problem(self) -> str | None:
        """Why no token can be checked, or None."""
        if self._ring is None:
            return self._failure
        if not self._ring.keys:
            return "the provider has none that can be used"
        return None if self._freshness.serves(self._clock()) else f"they are older than a day: {self._failure}"

    @property
    def warning(self) -> str | None:
        """Why tokens will not be checked for ever, if it stays like this, or None."""
        if self.problem is not None or self._failure is None:
            return None
        return f"those of {self.age:.0f} s ago serve: {self._failure}"

    @property
    def age(self) -> float:
        """Seconds since the keys were fetched; infinity if they never were."""
        return self._clock() - self._freshness.fetched_at

    @property
    def failures(self) -> int:
        """How often they could not be fetched."""
        return self._failures

    @property
    def size(self) -> int:
        """How many keys there are that tokens can be checked with."""
        return 0 if self._ring is None or self.problem is not None else len(self._ring.keys)


def _log_keys(url: str, ring: KeyRing, ignored: Sequence[IgnoredKey]) -> None:
    reasons = "".join(f"; number {key.position} is ignored: {key.reason}" for key in ignored)
    logger.info("keys: %d of %s%s", len(ring.keys), url, reasons)
    if any(key.shows_secret for key in ignored):
        logger.warning("keys: %s shows private keys to everybody; whoever has read them can sign tokens", url)

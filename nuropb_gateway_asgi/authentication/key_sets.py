"""Key sets: the public keys of a token issuer, fetched and kept fresh."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Final, Self

from ..exceptions import AuthenticationUnavailable, NotStartedError, SettingsError, UnknownKey
from .fetching import Document, Fetcher, check_url, is_secure
from .freshness import Freshness
from .key_documents import log_keys, read_document
from .keys import PUBLIC_ALGORITHMS, Key, KeyRing, check_algorithms
from .strict_json import Unacceptable, parse_object
from .tokens import Compact

__all__ = ["KeySet"]

logger = logging.getLogger(__name__)

#: Seconds for one attempt, from the resolution of the host's name to the last byte, because a server may send one byte
#: at a time. Less than clients have for their authorisation.
FETCH_TIMEOUT: Final = 5.0

_NOT_STARTED: Final = (
    "the key set is not running; enter it (or the JWTAuthenticator that has it) with 'async with', or give it to a "
    "Gateway, whose lifespan enters it"
)


class KeySet:
    """The keys at a URL (RFC 7517), or those of an OpenID provider, which publishes the URL (OpenID Discovery 1.0).

    ``issuer`` is compared exactly with the issuer in the provider's discovery document and with the ``iss`` of tokens.
    With ``allow_http`` keys may come by plain http from other machines.
    ``algorithms`` narrows the algorithms that keys are used with. By default each key is used with the algorithms that
    it is made for, among RS256 to RS512, PS256 to PS512, ES256 to ES512 and EdDSA. ``fetch`` gets a document; the
    default is httpx (the extra ``oidc``). ``clock`` is monotonic, and ``chance`` random, from 0 to 1.

    A key set runs between ``__aenter__`` and ``__aexit__``, which may be nested. Entering does not wait for the
    provider. Raises SettingsError for a URL that keys must not come from, and if httpx is needed and not installed.
    """

    def __init__(
        self,
        jwks_url: str | None = None,
        *,
        issuer: str | None = None,
        algorithms: Sequence[str] | None = None,
        allow_http: bool = False,
        fetch: Callable[[str], Awaitable[Document]] | None = None,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        if jwks_url is not None and issuer is not None:
            raise SettingsError("JWT_JWKS_URL: JWT_OIDC_ISSUER is set, too; set only one, as the issuer has the URL")
        name, url = ("JWT_JWKS_URL", jwks_url) if issuer is None else ("JWT_OIDC_ISSUER", issuer)
        try:
            check_url(url or "", allow_http=allow_http)
            if issuer is not None and "?" in issuer:  # OpenID Connect Core 1.0, 2
                raise Unacceptable("the issuer has a query; expected a URL without one")
            self._fetch: Callable[[str], Awaitable[Document]] = Fetcher() if fetch is None else fetch
        except (Unacceptable, SettingsError) as error:
            raise SettingsError(f"{name}: {error}") from error
        self.issuer = issuer
        self._url = url or ""
        self._algorithms = None if algorithms is None else check_algorithms(algorithms, PUBLIC_ALGORITHMS)
        self.allow_http = allow_http
        self._clock = clock
        self._chance = chance
        self._freshness = Freshness()
        self._body: bytes | None = None
        self._ring: KeyRing | None = None
        #: The reason why the keys are not up to date, or None.
        self._failure: str | None = "not fetched yet"
        self._failures = 0
        self._is_down = False
        self._is_fetching = False
        self._users = 0
        self._task: asyncio.Task[None] | None = None

    # --- running ----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._users += 1
        if self._task is None:
            # Events belong to the event loop that first waits for them.
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
        """Fetch the keys whenever they are due or asked for, until cancelled."""
        while True:
            await self._renew()
            self._end_attempt()
            while not self._asked.is_set() and (delay := self.due_in) > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await self._asked.wait()
            self._asked.clear()
            self._begin_attempt()

    def _begin_attempt(self) -> None:
        self._is_fetching = True
        self._freshness.tried_at = self._clock()

    def _end_attempt(self) -> None:
        """Wake all tasks that wait for the end of this attempt; later tasks wait for the end of the next one."""
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
                ring, ignored = await read_document(document.body, self._algorithms)
                self._body, self._ring = document.body, ring
                log_keys(url, ring, ignored)
        except Unacceptable as error:
            self._on_failed(str(error))
        except TimeoutError:
            self._on_failed(f"no complete answer within {FETCH_TIMEOUT:g} s")
        except Exception as error:
            # A defect here must not stop the gateway; it goes on with the present keys.
            logger.exception("keys: unexpected error while fetching")
            self._on_failed(type(error).__name__)
        else:
            if self._is_down:
                logger.info("keys: fetching from %s works again", self._url)
            # A provider without any key has a fault, so the next fetch is soon, whatever lifetime the provider states.
            self._freshness.on_fetched(document.max_age if ring.keys else 0.0, self._chance())
            self._failure, self._is_down = None, False

    def _on_failed(self, reason: str) -> None:
        now = self._clock()
        if self._ring is not None and not self._freshness.serves(now):
            logger.error("keys: older than a day, so no token can be checked any more: %s", reason)
            self._ring = None
        elif not self._is_down:
            logger.warning("keys: fetching from %s failed: %s", self._url, reason)
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
        # OpenID Discovery 1.0, 4.3: without this check, one provider could speak for another.
        if said.get("issuer") != self.issuer:
            raise Unacceptable("the discovery document names another issuer; check the slash at the end")
        jwks_url = said.get("jwks_uri")
        if not isinstance(jwks_url, str):
            raise Unacceptable("the discovery document has no jwks_uri")
        try:
            check_url(jwks_url, allow_http=self.allow_http)
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

    # --- for authenticators -----------------------------------------------------------------------------------

    async def ring(self) -> KeyRing:
        """Return the present keys; during the very first fetch, wait for its end.

        Raises AuthenticationUnavailable if there are none, and NotStartedError if the key set is not running.
        Cancellation takes effect at once, and does not affect other callers.
        """
        if self._task is None:
            raise NotStartedError(_NOT_STARTED)
        if self._ring is None and self._is_fetching and self._failures == 0:
            await self._attempt.wait()
        if self._ring is None or self.problem is not None:
            raise AuthenticationUnavailable(f"keys: {self.problem}")
        return self._ring

    async def newer_ring(self) -> KeyRing:
        """Return the keys after another fetch, for a token that names an unknown key.

        All callers share the fetch, and there is one in 30 seconds. Raises AuthenticationUnavailable if the last fetch
        failed, because the key may exist then. Cancellation takes effect at once, and does not affect other callers.
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

    async def find_newer(self, compact: Compact, token_age: float = 0.0) -> tuple[Key, KeyRing]:
        """Return the key of a token that names a key unknown until now, and its ring, after another fetch if allowed.

        ``token_age``: the key signed the token at least so many seconds ago, so it was published by then. Raises
        Unacceptable if the keys were fetched since then and lack it. Raises UnknownKey if they were not: a client that
        makes up names of keys uses up the fetches, and must not cause final refusals of tokens with a new key. Raises
        AuthenticationUnavailable like :meth:`newer_ring`.
        """
        signed_at = self._clock() - token_age
        ring = await self.newer_ring()
        key = ring.find(compact)
        if key is not None:
            return key, ring
        if self._freshness.fetched_at < signed_at:
            raise UnknownKey(f"keys: no key with the token's kid {self.age:.0f} s ago, when they were fetched")
        raise Unacceptable("there is no key with the token's kid")

    async def probe(self) -> str:
        """Fetch the keys once and describe them. Raises ConnectionError."""
        async with self:
            with contextlib.suppress(AuthenticationUnavailable):
                await self.ring()
            if self.problem is not None:
                raise ConnectionError(self.problem)
            return f"{self.size} {'key' if self.size == 1 else 'keys'} of {self._url}"

    # --- for operators ----------------------------------------------------------------------------------------

    def renew(self) -> None:
        """Fetch the keys now, if the key set runs; the present ones stay in use if that fails."""
        if self._task is not None:
            self._asked.set()

    @property
    def problem(self) -> str | None:
        """The reason why no token can be checked now, or None."""
        if self._ring is None:
            return self._failure
        if not self._ring.keys:
            return "the provider has no key that can be used"
        return None if self._freshness.serves(self._clock()) else f"older than a day: {self._failure}"

    @property
    def warning(self) -> str | None:
        """The reason why tokens can no longer be checked after a day, if it persists, or None."""
        if self.problem is not None or self._failure is None:
            return None
        return f"using those of {self.age:.0f} s ago: {self._failure}"

    @property
    def age(self) -> float:
        """Seconds since the last successful fetch; infinity before the first."""
        return self._clock() - self._freshness.fetched_at

    @property
    def due_in(self) -> float:
        """Seconds until the next fetch; negative while it is overdue or going on."""
        return self._freshness.due_at - self._clock()

    @property
    def is_fetching(self) -> bool:
        """Whether a fetch is going on."""
        return self._is_fetching

    @property
    def failures(self) -> int:
        """The number of failed fetches."""
        return self._failures

    @property
    def size(self) -> int:
        """The number of keys that tokens can be checked with now."""
        return 0 if self._ring is None or self.problem is not None else len(self._ring.keys)

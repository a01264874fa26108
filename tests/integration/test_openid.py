"""Tokens of a real OpenID provider, from its keys to the services, also while the provider is down."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import re
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

import httpx
import pytest

from nuropb_gateway_asgi import Gateway, KeySet, Settings, SettingsError, assembly
from nuropb_gateway_asgi.__main__ import main
from nuropb_gateway_asgi.authentication.fetching import Document, Fetcher
from tests.kit.clients import bearer_subprotocol, connect, refusal, turned_away
from tests.kit.gateways import RunningGateway, eventually, run_gateway
from tests.kit.processes import run_forked
from tests.kit.tokens import ED25519_KEY, P256_KEY, P384_KEY, RSA_KEY, RSA_OTHER, jwk, private_jwk
from tests.servers.openid import OpenIDProvider, installed
from tests.servers.processes import unavailable
from tests.unit.fakes import Clock

ORIGIN = "https://app.example.com"
AUDIENCE = "gateway"
OLD = private_jwk(RSA_KEY, "old", alg="RS256", use="sig")
NEW = private_jwk(RSA_OTHER, "new", alg="RS256", use="sig")
CURVE = private_jwk(P384_KEY, "curve", alg="ES384", use="sig")
PSS = private_jwk(RSA_OTHER, "pss", alg="PS256", use="sig")
EDWARDS = private_jwk(ED25519_KEY, "edwards", alg="EdDSA", use="sig")


@pytest.fixture(scope="module")
def shared() -> Iterator[OpenIDProvider]:
    if not installed():
        unavailable("oidc-provider is not installed: run 'python -m tests.servers.provision openid'")
    with OpenIDProvider([OLD]) as provider:
        yield provider


@pytest.fixture
def provider(shared: OpenIDProvider) -> OpenIDProvider:
    """A running provider that signs with OLD."""
    if not shared.is_running:
        shared.start()
    shared.publish([OLD])
    return shared


class Site:
    """A gateway with the keys of a provider. Only the test moves the clock for the age of keys."""

    def __init__(self, running: RunningGateway, clock: Clock, fetched: list[str]) -> None:
        self.gateway = running.gateway
        self.url = running.url
        self.clock = clock
        #: The URLs of all fetched documents.
        self.fetched = fetched
        self._http = running.site.http()

    async def get(self, path: str) -> httpx.Response:
        async with httpx.AsyncClient(base_url=self._http, trust_env=False) as client:
            return await client.get(path)

    @property
    def is_ready(self) -> bool:
        return not self.gateway.not_ready()


@contextlib.asynccontextmanager
async def gateway_of(provider: OpenIDProvider, *, ready: bool = True, **settings: Any) -> AsyncIterator[Site]:
    settings = {"jwt_oidc_issuer": provider.issuer, "jwt_audience": AUDIENCE, "allowed_origins": [ORIGIN]} | settings
    clock, fetched, fetcher = Clock(0.0), list[str](), Fetcher()

    async def fetch(url: str) -> Document:
        fetched.append(url)
        return await fetcher(url)

    class ObservedKeySet(KeySet):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options, clock=clock, fetch=fetch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "KeySet", ObservedKeySet)
        gateway = Gateway(Settings(**settings))
    async with run_gateway(gateway) as running:
        site = Site(running, clock, fetched)
        if ready:
            await eventually(lambda: site.is_ready)
        yield site


async def client_credentials(provider: OpenIDProvider, audience: str = AUDIENCE) -> str:
    form = {"grant_type": "client_credentials", "resource": f"urn:{audience}", "scope": "orders"}
    async with httpx.AsyncClient(trust_env=False) as http:
        response = await http.post(f"{provider.issuer}/token", data=form, auth=("script", "of-the-script"))
        token: str = response.json()["access_token"]
        return token


async def sign_in(provider: OpenIDProvider, user: str) -> dict[str, Any]:
    """Sign in as a browser does, from the button on a page to the tokens: code and PKCE (RFC 7636)."""
    verifier = secrets.token_urlsafe(32)
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    query = {
        "client_id": "browser",
        "response_type": "code",
        "redirect_uri": "http://127.0.0.1/callback",
        "scope": "openid orders",
        "resource": f"urn:{AUDIENCE}",
        "code_challenge": challenge,
        "code_challenge_method": "S256",
        "state": "s",
    }
    forms: list[dict[str, str]] = [{"prompt": "login", "login": user, "password": "any"}, {"prompt": "consent"}]
    async with httpx.AsyncClient(trust_env=False) as http:
        response = await http.get(f"{provider.issuer}/auth", params=query)
        while not response.headers.get("location", "").startswith(query["redirect_uri"]):
            if response.is_redirect:
                response = await http.get(urljoin(str(response.url), response.headers["location"]))
            else:
                (action,) = re.findall(r'action="([^"]+)" method="post"', response.text)
                response = await http.post(action, data=forms.pop(0))
        (code,) = parse_qs(urlsplit(response.headers["location"]).query)["code"]
        form = {
            "grant_type": "authorization_code",
            "client_id": "browser",
            "code": code,
            "redirect_uri": query["redirect_uri"],
            "code_verifier": verifier,
            "resource": query["resource"],
        }
        tokens: dict[str, Any] = (await http.post(f"{provider.issuer}/token", data=form)).json()
        return tokens


async def whoami(site: Site, token: str) -> str:
    async with connect(site.url, token) as client:
        context = await client.result("demo.whoami")
        assert context["Authorization"] == f"Bearer {token}"
        user_id: str = context["user_id"]
        return user_id


# --- tokens -----------------------------------------------------------------------------------------------------


async def test_a_script_calls_a_service_with_its_own_token(provider: OpenIDProvider) -> None:
    async with gateway_of(provider) as site:
        assert await whoami(site, await client_credentials(provider)) == "script"


async def test_a_user_of_a_browser_calls_a_service(provider: OpenIDProvider) -> None:
    async with gateway_of(provider) as site:
        tokens = await sign_in(provider, "alice")
        offered = ["nuropb.v1", bearer_subprotocol(tokens["access_token"])]
        async with connect(site.url, subprotocols=offered, origin=ORIGIN) as client:
            assert client.hello["user_id"] == "alice"
            assert await client.result("demo.add", {"a": 1, "b": 2}) == 3
        # The ID token tells the page who signed in; it gives no access.
        code, frame = await turned_away(site.url, tokens["id_token"], origin=ORIGIN)
        assert (code, frame["code"]) == (4510, "unauthenticated")


async def test_a_token_for_somebody_else_is_refused(provider: OpenIDProvider) -> None:
    async with gateway_of(provider) as site:
        token = await client_credentials(provider, "billing")
        assert (await refusal(site.url, token)).status == 401


async def test_a_token_of_a_curve_is_verified_away_from_the_event_loop(provider: OpenIDProvider) -> None:
    provider.publish([CURVE, OLD])
    async with gateway_of(provider) as site:
        for _ in range(2):
            assert await whoami(site, await client_credentials(provider)) == "script"


@pytest.mark.parametrize("key", [PSS, EDWARDS], ids=["PS256", "EdDSA"])
async def test_tokens_of_algorithms_that_python_jose_lacks(provider: OpenIDProvider, key: dict[str, Any]) -> None:
    provider.publish([key, OLD])
    async with gateway_of(provider) as site:
        token = await client_credentials(provider)
        header = token.partition(".")[0]
        assert f'"alg":"{key["alg"]}"' in base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)).decode()
        for _ in range(2):
            assert await whoami(site, token) == "script"


async def test_algorithms_may_be_narrowed(provider: OpenIDProvider) -> None:
    provider.publish([CURVE, OLD])
    async with gateway_of(provider, jwt_algorithms=["RS256"]) as site:
        assert (await refusal(site.url, await client_credentials(provider))).status == 401
        provider.publish([OLD, CURVE])
        assert await whoami(site, await client_credentials(provider)) == "script"


async def test_keys_at_a_url_need_no_discovery(provider: OpenIDProvider) -> None:
    url = f"{provider.issuer}/jwks"
    async with gateway_of(provider, jwt_oidc_issuer="", jwt_jwks_url=url, jwt_issuer=provider.issuer) as site:
        assert await whoami(site, await client_credentials(provider)) == "script"
    async with gateway_of(provider, jwt_oidc_issuer="", jwt_jwks_url=url, jwt_issuer=f"{provider.issuer}/") as site:
        assert (await refusal(site.url, await client_credentials(provider))).status == 401


async def test_the_command_that_checks_says_what_the_provider_has(provider: OpenIDProvider) -> None:
    settings = {"JWT_OIDC_ISSUER": provider.issuer}
    async with run_forked("nuropb_gateway_asgi", "check", settings=settings) as process:
        assert await process.wait() == 0
        (line,) = (line for line in process.stdout if line.startswith("provider"))
        assert re.fullmatch(rf"provider +ok: (1 key|[2-9] keys) of {re.escape(provider.issuer)}", line)


async def test_it_is_settings_alone_that_make_it_work(
    provider: OpenIDProvider, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"JWT_OIDC_ISSUER": provider.issuer, "JWT_AUDIENCE": AUDIENCE}
    monkeypatch.setenv("NUROPB_GATEWAY_TOKEN", await client_credentials(provider))
    async with run_forked("nuropb_gateway_asgi", "serve", "--port", "0", settings=settings) as process:
        url = (await process.line(r"ws://\S+"))[0]
        await process.line(rf"keys: 1 of {provider.issuer}/jwks")
        assert await asyncio.to_thread(main, ["call", "demo", "add", "a:=2", "b:=3", "--url", url]) == 0
        assert capsys.readouterr().out == "5\n"
        assert "is not set: tokens are not checked for it" not in process.output


# --- other keys -------------------------------------------------------------------------------------------------


async def test_a_new_key_is_good_at_once_and_the_old_one_as_long_as_it_is_published(provider: OpenIDProvider) -> None:
    async with gateway_of(provider) as site:
        old = await client_credentials(provider)
        assert await whoami(site, old) == "script"
        provider.publish([NEW, OLD])
        new = await client_credentials(provider)
        site.clock.now += 30
        assert await whoami(site, new) == "script"
        assert await whoami(site, old) == "script"

        provider.publish([NEW])
        site.clock.now += 30
        provider.publish([CURVE, NEW])
        assert await whoami(site, await client_credentials(provider)) == "script"  # which causes a fetch of the keys
        assert (await refusal(site.url, old)).status == 401
        assert await whoami(site, new) == "script"


async def test_many_clients_with_a_new_key_cause_one_fetch(provider: OpenIDProvider) -> None:
    async with gateway_of(provider) as site:
        site.fetched.clear()
        provider.publish([NEW])
        token = await client_credentials(provider)
        site.clock.now += 30
        assert await asyncio.gather(*(whoami(site, token) for _ in range(20))) == ["script"] * 20
        assert site.fetched == [f"{provider.issuer}/.well-known/openid-configuration", f"{provider.issuer}/jwks"]


async def test_odd_keys_among_the_good_ones_harm_nobody(provider: OpenIDProvider) -> None:
    odd: Sequence[object] = [
        "key",
        {"kty": "oct", "kid": "old", "k": "AAAA"},
        {"kty": "OKP", "crv": "Ed25519", "x": "AAAA"},
        jwk(P256_KEY, "old", use="enc"),
        private_jwk(P256_KEY, "shown"),
        jwk(RSA_OTHER, "small", n="AQAB"),
    ]
    provider.publish([OLD], also=odd)
    async with gateway_of(provider) as site:
        assert await whoami(site, await client_credentials(provider)) == "script"


# --- a provider that is away ------------------------------------------------------------------------------------


async def test_a_gateway_may_be_started_before_its_provider(provider: OpenIDProvider) -> None:
    token = await client_credentials(provider)
    provider.stop()
    async with gateway_of(provider, ready=False) as site:
        await eventually(lambda: "ConnectError" in "".join(site.gateway.not_ready()))
        ready = await site.get("/readyz")
        (reason,) = ready.json()["reasons"]
        assert ready.status_code == 503
        assert reason.startswith("keys: the discovery document: ConnectError")

        refused = await refusal(site.url, token)
        assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
        assert "WWW-Authenticate" not in refused.headers
        code, frame = await turned_away(site.url, token, origin=ORIGIN)
        assert (code, frame["code"], frame["retryable"]) == (1013, "mesh_unavailable", True)
        async with connect(site.url, hello=False) as client:
            await client.send("authorize", token=token)
            closed = await client.closed()
            assert (closed.code, [each["code"] for each in closed.frames]) == (1013, ["mesh_unavailable"])
        assert (await refusal(site.url, "nonsense")).status == 401

        provider.start()
        site.clock.now += 60
        await eventually(lambda: site.is_ready)
        assert await whoami(site, token) == "script"


async def test_keys_at_hand_serve_while_the_provider_is_away(provider: OpenIDProvider) -> None:
    async with gateway_of(provider) as site:
        old = await client_credentials(provider)
        provider.publish([NEW])
        new = await client_credentials(provider)
        provider.stop()
        site.clock.now += 3600
        assert (await refusal(site.url, new)).status == 503  # the provider may have its key
        async with connect(site.url, old) as client:
            answer = await client.ask("authorize", token=new)
            assert (answer["error"]["code"], answer["error"]["retry_after_ms"]) == ("mesh_unavailable", 5000)
            assert await client.result("demo.add", {"a": 1, "b": 2}) == 3

            ready = await site.get("/readyz")
            assert ready.status_code == 200
            (warning,) = ready.json()["warnings"]
            assert warning.startswith("keys: using those of 3600 s ago: the discovery document: ConnectError")
            metrics = (await site.get("/metrics")).text
            assert "nuropb_gateway_keys 1.0" in metrics
            assert "nuropb_gateway_keys_age_seconds 3600.0" in metrics
            assert re.search(r"nuropb_gateway_key_fetch_failures_total [1-9]", metrics)

            provider.start()
            site.clock.now += 60
            keys = site.gateway.key_set
            assert keys is not None
            await eventually(lambda: keys.warning is None)
            assert (await client.ask("authorize", token=new))["error"] is None
        assert (await site.get("/readyz")).json()["warnings"] == []
        assert (await refusal(site.url, old)).status == 401


async def test_after_a_day_nobody_is_let_in_any_more(provider: OpenIDProvider) -> None:
    async with gateway_of(provider) as site:
        token = await client_credentials(provider)
        provider.stop()
        site.clock.now += 86400
        assert await whoami(site, token) == "script"
        site.clock.now += 1
        assert (await refusal(site.url, token)).status == 503
        assert not site.is_ready
        assert "nuropb_gateway_keys 0.0" in (await site.get("/metrics")).text


async def test_a_provider_under_another_name_is_not_the_provider(provider: OpenIDProvider) -> None:
    # The same server, but the discovery document names another issuer.
    issuer = provider.issuer.replace("127.0.0.1", "localhost")
    async with gateway_of(provider, ready=False, jwt_oidc_issuer=issuer) as site:
        await eventually(lambda: "names another issuer" in "".join(site.gateway.not_ready()))
        assert (await refusal(site.url, await client_credentials(provider))).status == 503


# --- several issuers --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def second() -> Iterator[OpenIDProvider]:
    """Run another provider, whose key has the kid of the first one's."""
    if not installed():
        unavailable("oidc-provider is not installed: run 'python -m tests.servers.provision openid'")
    with OpenIDProvider([private_jwk(RSA_OTHER, "old", alg="RS256", use="sig")]) as provider:
        yield provider


@pytest.fixture
def issuers(provider: OpenIDProvider, second: OpenIDProvider, tmp_path: Path) -> dict[str, Any]:
    """Return the settings for both providers."""
    if not second.is_running:
        second.start()
    file = tmp_path / "issuers.toml"
    file.write_text(
        f"""
        [[issuer]]
        oidc_issuer = "{provider.issuer}"
        audience = "{AUDIENCE}"
        user_prefix = ""

        [[issuer]]
        oidc_issuer = "{second.issuer}"
        audience = "second gateway"
        user_prefix = "second:"
        """
    )
    return {"jwt_oidc_issuer": "", "jwt_audience": (), "jwt_issuers": str(file)}


async def test_users_of_two_providers_with_the_same_name_are_two_users(
    provider: OpenIDProvider, second: OpenIDProvider, issuers: dict[str, Any]
) -> None:
    async with gateway_of(provider, **issuers) as site:
        assert await whoami(site, await client_credentials(provider)) == "script"
        one = await client_credentials(second, "second gateway")
        assert await whoami(site, one) == "second:script"
        # The audience of the first provider is none of the second's.
        assert (await refusal(site.url, await client_credentials(second))).status == 401
        # A connection of one user takes no token of the other.
        async with connect(site.url, await client_credentials(provider)) as client:
            assert (await client.ask("authorize", token=one))["error"]["code"] == "permission_denied"


async def test_a_provider_that_is_away_keeps_the_users_of_the_other_out_of_nothing(
    provider: OpenIDProvider, second: OpenIDProvider, issuers: dict[str, Any]
) -> None:
    token = await client_credentials(second, "second gateway")
    second.stop()
    async with gateway_of(provider, **issuers) as site:
        assert await whoami(site, await client_credentials(provider)) == "script"
        assert (await refusal(site.url, token)).status == 503
        ready = await site.get("/readyz")
        assert (ready.status_code, ready.json()["reasons"]) == (200, [])
        (warning,) = ready.json()["warnings"]
        assert warning.startswith(f"{second.issuer}: keys: the discovery document: ConnectError")
        assert f'nuropb_gateway_keys{{issuer="{second.issuer}"}} 0.0' in (await site.get("/metrics")).text

        second.start()
        site.clock.now += 60
        keys = site.gateway.key_sets[second.issuer]
        await eventually(lambda: keys.problem is None)
        assert await whoami(site, token) == "second:script"
        assert (await site.get("/readyz")).json()["warnings"] == []


async def test_the_commands_know_several_issuers(
    provider: OpenIDProvider, second: OpenIDProvider, issuers: dict[str, Any]
) -> None:
    settings = {"JWT_ISSUERS": issuers["jwt_issuers"]}

    async def check() -> tuple[int, str]:
        async with run_forked("nuropb_gateway_asgi", "check", settings=settings) as process:
            return await process.wait(), "\n".join(process.stdout)

    status, text = await check()
    assert status == 0
    assert "keys      ok: 2 issuers, each with its keys" in text
    assert f"provider  ok: 1 key of {provider.issuer}; 1 key of {second.issuer}" in text
    second.stop()
    status, text = await check()
    assert status == 1
    assert f"provider  WRONG: 1 key of {provider.issuer}; the discovery document: ConnectError" in text


# --- settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"jwt_key": "k" * 32, "jwt_jwks_url": "https://a.example/"},
            "JWT_JWKS_URL: NUROPB_GATEWAY_JWT_KEY is set, too",
        ),
        (
            {"jwt_key": "k" * 32, "jwt_oidc_issuer": "https://a.example"},
            "JWT_OIDC_ISSUER: NUROPB_GATEWAY_JWT_KEY is set",
        ),
        (
            {"jwt_jwks_url": "https://a.example/", "jwt_oidc_issuer": "https://a.example"},
            "JWT_OIDC_ISSUER: NUROPB_GATEWAY_JWT_JWKS_URL is set, too",
        ),
        ({"jwt_oidc_issuer": "http://a.example"}, "JWT_OIDC_ISSUER: http is accepted only for this machine; use https"),
        ({"jwt_jwks_url": "https://me:hunter2@a.example"}, "JWT_JWKS_URL: not an accepted URL; expected https"),
        (
            {"jwt_oidc_issuer": "https://a.example", "jwt_issuer": "https://a.example/"},
            "JWT_ISSUER: different from JWT_OIDC",
        ),
        (
            {"jwt_oidc_issuer": "https://a.example", "jwt_algorithms": ["HS256"]},
            "JWT_ALGORITHMS: not a list of known algorithms",
        ),
    ],
)
def test_settings_that_contradict_each_other_stop_the_start(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Gateway(Settings(**settings))
    text = str(caught.value)
    assert text.startswith(f"NUROPB_GATEWAY_{message}")
    assert "\n" not in text
    assert "hunter2" not in text


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ({"jwt_oidc_issuer": "http://127.0.0.1:1"}, ["JWT_AUDIENCE"]),
        ({"jwt_jwks_url": "http://127.0.0.1:1/keys"}, ["JWT_ISSUER", "JWT_AUDIENCE"]),
        ({"jwt_jwks_url": "http://127.0.0.1:1/keys", "jwt_issuer": "i", "jwt_audience": "a"}, []),
        ({"jwt_jwks_url": "http://127.0.0.1:1/keys", "jwt_issuer": "i", "jwt_client_id": "a"}, []),
    ],
)
async def test_what_tokens_are_not_checked_for_is_said_at_the_start(
    settings: dict[str, Any], warned: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    async with Gateway(Settings(**settings)).lifespan():
        pass
    said = [line for line in caplog.messages if line.endswith("is not set: tokens are not checked for it")]
    assert [line.split()[0] for line in said] == [f"NUROPB_GATEWAY_{name}" for name in warned]

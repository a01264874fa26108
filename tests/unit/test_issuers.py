"""Several issuers: whose keys check a token, whose users there are, and the file that describes the issuers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from nuropb_gateway_asgi import (
    Gateway,
    IssuersAuthenticator,
    JWTAuthenticator,
    KeySet,
    Settings,
    SettingsError,
)
from nuropb_gateway_asgi.__main__ import main
from nuropb_gateway_asgi.authentication.fetching import Document
from nuropb_gateway_asgi.authentication.issuer_file import read_issuer_file
from nuropb_gateway_asgi.authentication.strict_json import Unacceptable
from nuropb_gateway_asgi.cli.doctor.token_findings import expectations
from nuropb_gateway_asgi.exceptions import AuthenticationUnavailable, NotStartedError
from nuropb_gateway_asgi.observability.metrics import Metrics
from tests.kit.token_table import clock_of_the_table
from tests.kit.tokens import NOW, P256_KEY, RSA_KEY, RSA_OTHER, SECRET, claims, jwk, key_set, make, public

from .fakes import Clock

ONE, TWO = "https://one.example", "https://two.example"


@pytest.fixture(scope="module", autouse=True)
def _stopped_clock() -> Iterator[None]:
    with clock_of_the_table():
        yield


class Providers:
    """Two providers, whose keys have the same ``kid``, and the issuers that they are for a gateway."""

    def __init__(self, *, prefix: str = "") -> None:
        self.keys: dict[str, bytes] = {
            ONE: key_set(jwk(RSA_KEY, "key", alg="RS256")),
            TWO: key_set(jwk(RSA_OTHER, "key", alg="RS256")),
        }
        self.asked: list[str] = []
        self.clock = Clock(NOW)
        self.issuers = IssuersAuthenticator(
            [self._authenticator(ONE, prefix), self._authenticator(TWO, "two:")],
        )

    def _authenticator(self, issuer: str, prefix: str) -> JWTAuthenticator:
        async def fetch(url: str) -> Document:
            self.asked.append(issuer)
            if issuer not in self.keys:
                raise Unacceptable("nobody answers")
            return Document(self.keys[issuer], None)

        keys = KeySet(f"{issuer}/keys", fetch=fetch, clock=self.clock)
        return JWTAuthenticator(keys, issuer=issuer, user_prefix=prefix)

    async def user(self, token: str) -> str | None:
        identity = await self.issuers(token)
        return None if identity is None else identity.user_id


def token_of(issuer: str, key: object, **changes: Any) -> str:
    return make(claims(iss=issuer, **changes), alg="RS256", key=key, kid="key")


OF_ONE, OF_TWO = token_of(ONE, RSA_KEY), token_of(TWO, RSA_OTHER)


# --- tokens -----------------------------------------------------------------------------------------------------


async def test_users_of_two_issuers_with_the_same_sub_are_two_users() -> None:
    providers = Providers()
    async with providers.issuers:
        assert await providers.user(OF_ONE) == "alice"
        assert await providers.user(OF_TWO) == "two:alice"


async def test_keys_with_the_same_kid_verify_the_tokens_of_their_own_issuer_alone() -> None:
    providers = Providers()
    async with providers.issuers:
        for _ in range(2):  # also once the valid tokens are remembered
            assert await providers.user(token_of(ONE, RSA_OTHER)) is None
            assert await providers.user(token_of(TWO, RSA_KEY)) is None
            assert await providers.user(OF_ONE) is not None


async def test_no_issuer_can_name_the_users_of_another() -> None:
    providers = Providers()
    async with providers.issuers:
        assert await providers.user(token_of(ONE, RSA_KEY, sub="two:alice")) is None
        assert await providers.user(token_of(TWO, RSA_OTHER, sub="two:alice")) == "two:two:alice"


async def test_of_two_prefixes_the_longer_one_decides() -> None:
    providers = Providers(prefix="two:t")
    async with providers.issuers:
        assert await providers.user(token_of(TWO, RSA_OTHER, sub="tom")) is None
        assert await providers.user(token_of(TWO, RSA_OTHER, sub="bob")) == "two:bob"
        assert await providers.user(token_of(ONE, RSA_KEY, sub="om")) == "two:tom"


async def test_a_token_of_an_unknown_issuer_is_refused_without_a_fetch() -> None:
    providers = Providers()
    async with providers.issuers:
        await providers.user(OF_ONE)
        await providers.user(OF_TWO)
        assert sorted(providers.asked) == [ONE, TWO]
        providers.clock.now += 60
        for issuer in ("https://evil.example", f"{ONE}/", "", None, 7, [ONE]):
            strange = make(claims(iss=issuer), alg="RS256", key=RSA_KEY, kid="strange")
            assert await providers.user(strange) is None
        assert await providers.user("nonsense") is None
        assert sorted(providers.asked) == [ONE, TWO]


async def test_an_unknown_kid_asks_the_token_s_own_issuer_alone() -> None:
    providers = Providers()
    async with providers.issuers:
        assert await providers.user(OF_ONE) == "alice"
        assert await providers.user(OF_TWO) == "two:alice"
        providers.clock.now += 30
        assert await providers.user(make(claims(iss=TWO), alg="RS256", key=RSA_OTHER, kid="new")) is None
        assert providers.asked.count(TWO) == 2
        assert providers.asked.count(ONE) == 1


# --- a provider that is away ------------------------------------------------------------------------------------


async def test_tokens_of_others_are_checked_while_one_provider_is_away() -> None:
    providers = Providers()
    del providers.keys[TWO]
    async with providers.issuers:
        with pytest.raises(AuthenticationUnavailable, match="nobody answers"):
            await providers.user(OF_TWO)
        assert await providers.user(OF_ONE) == "alice"
        assert providers.issuers.problem is None
        assert providers.issuers.warning == f"{TWO}: keys: the key set: nobody answers"


async def test_without_any_keys_no_token_can_be_checked() -> None:
    providers = Providers()
    providers.keys.clear()
    async with providers.issuers:
        for token in (OF_ONE, OF_TWO):
            with pytest.raises(AuthenticationUnavailable):
                await providers.user(token)
        told = "keys: the key set: nobody answers"
        assert providers.issuers.problem == f"{ONE}: {told}; {TWO}: {told}"


async def test_keys_that_are_not_up_to_date_are_a_warning_with_the_issuer() -> None:
    providers = Providers()
    async with providers.issuers:
        await providers.user(OF_ONE)
        await providers.user(OF_TWO)
        assert (providers.issuers.problem, providers.issuers.warning) == (None, None)
        del providers.keys[ONE]
        providers.clock.now += 30
        with pytest.raises(AuthenticationUnavailable):
            await providers.user(make(claims(iss=ONE), alg="RS256", key=RSA_KEY, kid="new"))
        assert providers.issuers.warning == f"{ONE}: keys: using those of 30 s ago: the key set: nobody answers"


async def test_outside_of_its_context_it_says_what_to_do() -> None:
    providers = Providers()
    with pytest.raises(NotStartedError):
        await providers.user(OF_ONE)
    async with providers.issuers:
        assert await providers.user(OF_ONE) == "alice"
    with pytest.raises(NotStartedError):
        await providers.user(OF_ONE)


# --- issuers that do not fit together ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("issuers", "reason"),
    [
        ([], "no issuer; expected at least one"),
        ([(None, "")], "an issuer has no name"),
        ([(ONE, ""), (ONE, "one:")], f"2 issuers are named {ONE}"),
        ([(ONE, "a:"), (TWO, "a:")], "2 issuers have the user_prefix 'a:'"),
        ([(ONE, ""), (TWO, "")], "2 issuers have the user_prefix ''"),
    ],
)
def test_issuers_that_could_be_mistaken_are_refused(issuers: list[tuple[str | None, str]], reason: str) -> None:
    with pytest.raises(SettingsError, match=f"^JWT_ISSUERS: {reason}"):
        IssuersAuthenticator(
            [JWTAuthenticator(SECRET, issuer=issuer, user_prefix=prefix) for issuer, prefix in issuers]
        )


@pytest.mark.parametrize("prefix", ["x" * 65, "a\n", "\u202e"])
def test_a_prefix_is_a_short_printable_text(prefix: str) -> None:
    with pytest.raises(SettingsError, match="user_prefix: not at most 64 printable characters"):
        JWTAuthenticator(SECRET, user_prefix=prefix)


# --- the file ---------------------------------------------------------------------------------------------------

FILE = f"""
[[issuer]]
oidc_issuer = "{ONE}"
audience = ["gateway", "other"]
algorithms = ["RS256", "ES256"]
user_prefix = ""

[[issuer]]
issuer = "{TWO}"
key_file = "two.pem"
audience = "gateway"
user_claim = "uid"
leeway = 5
user_prefix = "two:"

[[issuer]]
issuer = "own"
key = "{SECRET}"
client_id = "app"
user_prefix = "own:"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "two.pem").write_bytes(public(P256_KEY))
    path = tmp_path / "issuers.toml"
    path.write_text(FILE)
    return path


def gateway_with(path: Path) -> Gateway:
    return Gateway(Settings(jwt_issuers=str(path)))


async def test_every_issuer_of_the_file_has_its_key_and_its_rules(file: Path) -> None:
    issuers = gateway_with(file).handler_manager.authenticator
    two = claims(iss=TWO, aud="gateway", uid="bob")
    identity = await issuers(make(two, alg="ES256", key=P256_KEY))
    assert identity is not None
    assert (identity.user_id, identity.leeway) == ("two:bob", 5)
    own = {name: value for name, value in claims(iss="own", client_id="app").items() if name != "aud"}
    identity = await issuers(make(own))
    assert identity is not None
    assert identity.user_id == "own:alice"
    for strange in (two | {"aud": "other"}, two | {"iss": "own"}):
        assert await issuers(make(strange, alg="ES256", key=P256_KEY)) is None


def test_the_gateway_has_the_key_sets_of_its_issuers(file: Path) -> None:
    gateway = gateway_with(file)
    assert list(gateway.key_sets) == [ONE]
    assert gateway.key_set is None


def test_a_key_is_not_shown(file: Path) -> None:
    tables = read_issuer_file(str(file))
    assert repr(tables) == f"[IssuerTable('{ONE}'), IssuerTable('{TWO}'), IssuerTable('own')]"


def edited(old: str, new: str) -> str:
    assert FILE.count(old) == 1
    return FILE.replace(old, new)


SINGLE = '[[issuer]]\nissuer = "one"\n'
MISTAKES: Mapping[str, tuple[str, str]] = {
    "not TOML": ("[[issuer]\n", r" cannot be read \(.*line 1.*\); expected a TOML file"),
    "empty": ("", " has something else than issuers"),
    "another table": (FILE + "[policy]\n", " has something else than issuers"),
    "not a list of tables": ('[issuer]\nissuer = "one"\n', " has something else than issuers"),
    "not tables": ("issuer = [1]", ", issuer 1: Expected `object`, got `int`"),
    "unknown key": (edited("leeway", "leway"), ", issuer 2: Object contains unknown field `leway`"),
    "wrong type": (edited("leeway = 5", 'leeway = "5"'), r", issuer 2: Expected `float`, got `str` - at `\$.leeway`"),
    "no keys": (SINGLE, ", issuer 1: 0 sources of keys; expected one of oidc_issuer, jwks_url, key_file and key"),
    "two sources": (edited("key_file", 'key = "k"\nkey_file'), ", issuer 2: 2 sources of keys"),
    "no name": (f'[[issuer]]\nkey = "{SECRET}"\n', ", issuer 1: issuer: not set; expected the iss"),
    "no prefix": (edited('user_prefix = "two:"', ""), ", issuer 2: user_prefix: not set"),
    "the same prefix": (edited('"own:"', '"two:"'), "JWT_ISSUERS: 2 issuers have the user_prefix 'two:'"),
    "empty audience": (edited('audience = "gateway"', "audience = []"), ", issuer 2: audience: empty"),
    "no such key file": (edited("two.pem", "three.pem"), r", issuer 2: key_file: the file cannot be read \(FileNot"),
    "weak secret": (SINGLE + 'key = "hunter2"\n', ", issuer 1: key: "),
    "algorithm of another family": (edited('"ES256"', '"HS256"'), ", issuer 1: algorithms: not a list of known"),
    "http": (
        edited(f'oidc_issuer = "{ONE}"', 'oidc_issuer = "http://one.example"'),
        ", issuer 1: oidc_issuer: http is",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_file_is_one_line_with_its_place(file: Path, name: str) -> None:
    text, reason = MISTAKES[name]
    file.write_text(text)
    with pytest.raises(SettingsError, match=reason) as caught:
        gateway_with(file)
    message = str(caught.value)
    assert message.startswith("NUROPB_GATEWAY_JWT_ISSUERS: ")
    assert "\n" not in message
    assert "hunter2" not in message
    assert SECRET not in message


def test_http_within_a_cluster_has_to_be_allowed_for_each_issuer(file: Path) -> None:
    file.write_text(SINGLE + 'jwks_url = "http://keys.internal/jwks"\n')
    with pytest.raises(SettingsError, match="or set allow_http = true if the whole network"):
        gateway_with(file)
    file.write_text(SINGLE + 'jwks_url = "http://keys.internal/jwks"\nallow_http = true\n')
    assert list(gateway_with(file).key_sets) == ["one"]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"missing\.toml cannot be read \(FileNotFoundError\)"):
        gateway_with(tmp_path / "missing.toml")


@pytest.mark.parametrize(
    "other",
    [
        {"jwt_key": "k" * 32},
        {"jwt_jwks_url": "https://one.example/keys"},
        {"jwt_oidc_issuer": ONE},
        {"jwt_issuer": ONE},
        {"jwt_audience": "gateway"},
        {"jwt_client_id": "app"},
        {"jwt_algorithms": "RS256"},
        {"jwt_leeway": 5},
        {"jwt_user_claim": "uid"},
        {"jwt_username_claim": "name"},
        {"jwt_allow_http": "on"},
    ],
)
def test_the_file_and_the_settings_of_one_issuer_are_not_mixed(file: Path, other: dict[str, Any]) -> None:
    (name,) = other
    with pytest.raises(SettingsError, match=f"^NUROPB_GATEWAY_{name.upper()}: set together with JWT_ISSUERS"):
        Settings(jwt_issuers=str(file), **other)


# --- for operators ----------------------------------------------------------------------------------------------


async def test_what_tokens_of_an_issuer_are_not_checked_for_is_told(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_text(f'[[issuer]]\nissuer = "one"\nkey = "{SECRET}"\n')
    async with gateway_with(file).lifespan():
        pass
    assert "NUROPB_GATEWAY_JWT_ISSUERS: tokens of one are not checked for audience" in caplog.text


def test_check_tells_of_the_issuers(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(
        edited('audience = "gateway"\n', "").replace(f'oidc_issuer = "{ONE}"', 'oidc_issuer = "http://[::1]:1"')
    )
    monkeypatch.setenv("NUROPB_GATEWAY_JWT_ISSUERS", str(file))
    assert main(["check"]) == 1
    lines = capsys.readouterr().out.splitlines()
    told = f"3 issuers, each with its keys; audience is not set for {TWO}, so their tokens are not checked for it"
    assert f"keys      ok: {told}" in lines
    assert any(line.startswith("provider  WRONG: the discovery document: ConnectError") for line in lines)


def test_no_token_is_made_for_several_issuers(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NUROPB_GATEWAY_JWT_ISSUERS", str(file))
    assert main(["token", "--user", "alice"]) == 2
    assert "only these can make tokens" in capsys.readouterr().err


def test_doctor_compares_a_token_with_the_settings_of_its_issuer(file: Path) -> None:
    environment = {"NUROPB_GATEWAY_JWT_ISSUERS": str(file)}
    assert expectations({"iss": TWO}, environment) == {
        "issuer": "",
        "audience": "gateway",
        "client_id": "",
        "user_claim": "uid",
    }
    assert expectations({"iss": "other"}, environment)["issuer"] == f"{ONE} or {TWO} or own"
    assert expectations(None, environment)["audience"] == ""


def test_metrics_name_the_issuers_if_there_are_several(file: Path) -> None:
    file.write_text(FILE + f'[[issuer]]\noidc_issuer = "{TWO}/"\nuser_prefix = "more:"\n')
    gateway = gateway_with(file)
    metrics = Metrics(gateway.connection_kinds.values(), key_sets=gateway.key_sets)
    metrics.collect()
    text = metrics.render()[0].decode()
    assert f'nuropb_gateway_keys{{issuer="{ONE}"}} 0.0' in text
    assert f'nuropb_gateway_keys_age_seconds{{issuer="{TWO}/"}} +Inf' in text

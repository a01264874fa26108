"""The command ``check``: are settings, policy, keys, provider and broker in order?"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

import click

from ..exceptions import GatewayError, SettingsError
from ..settings import Settings
from ._development import with_kept_key
from ._output import counted, printable

if TYPE_CHECKING:
    from ..authentication import Identity
    from ..authentication.key_sets import KeySet
    from ..gateway import Gateway
    from ..wire.history import KeptTopic

__all__ = ["check"]

EPILOG: Final = """Prints one line each for the settings, the policy, the keys of tokens, their provider and the broker,
with the fault if there is one, and its remedy in a second line. Starts no gateway, and leaves nothing on the broker.

\b
Exit codes:
  0  no problem found
  1  a problem was found
"""


@click.command(epilog=EPILOG)
def check() -> int:
    """Check the gateway's settings, policy, keys, provider and broker."""
    settings: list[Settings] = []

    def read() -> str:
        from ..assembly import make_origins, naming_variables

        settings.append(with_kept_key(Settings.from_env(), make=False))
        with naming_variables():
            make_origins(settings[0])
        return f"{settings[0].mesh_url.partition(':')[0]} mesh, clients at {settings[0].path}"

    well = _report("settings", read)
    for name, examine in CHECKS.items():
        well &= _report(name, lambda examine=examine: examine(settings[0]) if settings else None)  # type: ignore[misc]
    return 0 if well else 1


def _report(name: str, examine: Callable[[], str | None]) -> bool:
    """Print the result of ``examine`` in one line; None means not checked. Return whether there was no problem.

    A second line says how to fix a problem.
    """
    try:
        found = examine()
    except (GatewayError, OSError) as error:
        click.echo(f"{name:<10}WRONG: {printable(str(error))}")
        click.echo(f"{'':<10}-> {printable(getattr(error, 'remedy', None) or _REMEDIES[name])}")
        return False
    click.echo(f"{name:<10}{'not checked' if found is None else f'ok: {printable(found)}'}")
    return True


def _policy(settings: Settings) -> str:
    from ..gateway import Gateway

    async def nobody(token: str) -> Identity | None:
        return None

    # The check of the settings tells of wrong origins.
    policy = Gateway(dataclasses.replace(settings, allowed_origins=()), authenticator=nobody).policy
    if policy.exposes_anything:
        return "methods or topics are exposed"
    return "nothing is exposed to clients; name methods in EXPOSE and topics in EXPOSE_TOPICS, or a file in POLICY"


def _without_policy(settings: Settings) -> Gateway:
    from ..authorization import ExposePolicy
    from ..gateway import Gateway

    return Gateway(dataclasses.replace(settings, allowed_origins=()), policy=ExposePolicy((), ()))


def _keys(settings: Settings) -> str:
    gateway = _without_policy(settings)
    if gateway.development_token is not None:
        if settings.development_key_file:
            return f"JWT_KEY is not set; the key for development is in {settings.development_key_file}"
        return "JWT_KEY is not set; 'serve' makes a key for development"
    if settings.jwt_issuers:
        return _issuers(settings.jwt_issuers)
    checks = {
        "JWT_ISSUER": settings.jwt_issuer or settings.jwt_oidc_issuer,  # a provider's tokens have to name it
        "JWT_AUDIENCE": settings.jwt_audience or settings.jwt_client_id,
    }
    unset = [name for name, value in checks.items() if not value]
    if not unset:
        return "issuer and audience of tokens are checked"
    verb, what = ("is", "it") if len(unset) == 1 else ("are", "them")
    return (
        f"{' and '.join(unset)} {verb} not set, so tokens are not checked for {what}; set {what} to what your issuer "
        "puts into its tokens"
    )


def _issuers(path: str) -> str:
    from ..authentication.issuer_file import read_issuer_file

    issuers = read_issuer_file(path)
    unchecked = [each.issuer or each.oidc_issuer for each in issuers if not (each.audience or each.client_id)]
    lacking = f"; audience is not set for {', '.join(unchecked)}, so their tokens are not checked for it"
    each = "with its keys" if len(issuers) == 1 else "each with its keys"
    return f"{counted(len(issuers), 'issuer')}, {each}{lacking if unchecked else ''}"


def _provider(settings: Settings) -> str | None:
    try:
        key_sets = _without_policy(settings).key_sets
    except SettingsError:
        return None
    return asyncio.run(_probe(key_sets.values())) if key_sets else "none; the key is in the settings"


async def _probe(key_sets: Iterable[KeySet]) -> str:
    """Fetch the keys of all providers at once, and describe them. Raises ConnectionError for those that fail."""
    found = await asyncio.gather(*(each.probe() for each in key_sets), return_exceptions=True)
    for each in found:
        if isinstance(each, BaseException) and not isinstance(each, ConnectionError):
            raise each
    text = "; ".join(str(each) for each in found)
    if any(isinstance(each, ConnectionError) for each in found):
        raise ConnectionError(text)
    return text


def _broker(settings: Settings) -> str:
    if settings.embedded:
        return "none; the mesh is embedded"
    from ..mesh.rabbitmq import probe

    topics = settings.targeted_topics
    return asyncio.run(probe(settings.mesh_url, settings.service_name, topics, _kept_topics(settings)))


def _kept_topics(settings: Settings) -> tuple[KeptTopic, ...]:
    """Return the topics with history, and none if the check of the policy has told why they cannot be known."""
    from ..assembly import make_history, open_policy_file

    try:
        return make_history(settings, open_policy_file(settings))
    except SettingsError:
        return ()


#: How to fix a problem that names no remedy of its own, by the name that is printed.
_REMEDIES: Final = {
    "settings": "correct this variable: docs/deployment.md lists all settings and their values",
    "policy": "correct the named setting, or the file at the named line: docs/policy.md has all rules",
    "keys": "set JWT_KEY_FILE to the file of a key, or JWT_OIDC_ISSUER to a provider: docs/issuing-tokens.md",
    "provider": "check its URL, and the way from this machine to it: DNS, HTTPS_PROXY, SSL_CERT_FILE",
    "broker": "look at the log of the broker; docs/mesh.md has the permissions that the gateway needs",
}

#: By the name that is printed. A check returns its result, or None if an earlier check has to succeed first.
CHECKS: Final[dict[str, Callable[[Settings], str | None]]] = {
    "policy": _policy,
    "keys": _keys,
    "provider": _provider,
    "broker": _broker,
}

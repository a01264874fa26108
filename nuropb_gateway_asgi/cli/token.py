"""The command ``token``: a token for development."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import click

from ..exceptions import SettingsError
from ..settings import ENV_PREFIX, Settings
from ._development import KEY_FILE, with_kept_key
from ._options import TOKEN_VARIABLE

__all__ = ["token"]

EPILOG: Final = f"""The key is {ENV_PREFIX}JWT_KEY or the file {ENV_PREFIX}JWT_KEY_FILE, and must be a secret. If
neither is set, and no broker, it is the key that 'serve' keeps in {KEY_FILE}. Issuer,
audience and names of claims come from the other settings, so that the gateway accepts the token.

\b
Examples:
  nuropb-gateway token --user alice
  nuropb-gateway token --user 17 --username Alice --lifetime 60 --claim roles='["admin"]'
  export {TOKEN_VARIABLE}=$(nuropb-gateway token --user alice)

\b
Exit codes:
  0  the token is on standard output
  2  invalid command line, or settings with which no token can be made
"""


def _parse_claim(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    claims: dict[str, Any] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.BadParameter("not a claim: write name=value")
        try:
            claims[name] = json.loads(value)
        except ValueError:
            claims[name] = value
    return claims


@click.command(epilog=EPILOG)
@click.option("--user", required=True, help="The user id.")
@click.option("--username", help="The user's name.")
@click.option("--lifetime", type=click.IntRange(min=1), default=3600, show_default=True, help="Lifetime in seconds.")
@click.option(
    "--claim",
    "claims",
    multiple=True,
    callback=_parse_claim,
    metavar="NAME=VALUE",
    help="Another claim; the value is JSON or text. May be repeated.",
)
def token(user: str, username: str | None, lifetime: int, claims: dict[str, Any]) -> int:
    """Make a token for development, signed with the gateway's own secret."""
    from ..authentication import JWTAuthenticator, issue_token

    settings = with_kept_key(Settings.from_env(), make=False)
    key = _secret(settings)
    JWTAuthenticator(key=key, algorithms=list(settings.jwt_algorithms) or None)  # raises for an invalid key
    algorithm = next(iter(settings.jwt_algorithms), "HS256")
    if algorithm != "HS256":
        raise SettingsError(f"{ENV_PREFIX}JWT_ALGORITHMS: this command makes tokens for HS256 only")
    own = {
        "iss": settings.jwt_issuer,
        "aud": settings.jwt_audience[0] if len(settings.jwt_audience) == 1 else list(settings.jwt_audience),
        "client_id": next(iter(settings.jwt_client_id), ""),
        settings.jwt_user_claim: user,
        settings.jwt_username_claim: username or "",
    }
    more = {name: value for name, value in own.items() if value} | claims
    click.echo(issue_token(key, user, username=username, lifetime=lifetime, **more))
    return 0


def _secret(settings: Settings) -> str:
    if settings.jwt_jwks_url or settings.jwt_oidc_issuer or settings.jwt_issuers:
        raise SettingsError(
            "the settings name OpenID providers or other issuers, and only these can make tokens: get one there"
        )
    if settings.makes_key and settings.development_key_file:
        from ..authentication.development_key import kept_secret

        return kept_secret(Path(settings.development_key_file))
    if not settings.jwt_key:
        raise SettingsError(
            f"{ENV_PREFIX}JWT_KEY: not set; expected a secret of at least 32 bytes. On the embedded mesh "
            f"'nuropb-gateway serve' makes a key, keeps it in {KEY_FILE}, and prints a token: run it first, "
            "in this folder"
        )
    if "-----BEGIN" in settings.jwt_key:
        raise SettingsError(
            f"{ENV_PREFIX}JWT_KEY: a public key can only check tokens; the issuer of your tokens has the private key"
        )
    return settings.jwt_key

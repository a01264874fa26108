"""The file of the setting ``JWT_ISSUERS``: a TOML table for each issuer, with the keys of the settings without JWT_."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from ..exceptions import SettingsError

__all__ = ["IssuerTable", "complete", "read_issuer_file"]


class IssuerTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table ``[[issuer]]`` of an issuer. Each key has the meaning of the setting with its name after ``JWT_``.

    ``key_file`` is read by :func:`read_issuer_file`; ``user_prefix`` is put before the user ids of this issuer.
    """

    key: str = ""
    key_file: str = ""
    oidc_issuer: str = ""
    jwks_url: str = ""
    allow_http: bool = False
    algorithms: Sequence[str] = ()
    issuer: str = ""
    audience: str | Sequence[str] = ()
    client_id: str | Sequence[str] = ()
    leeway: float = 10.0
    user_claim: str = "sub"
    username_claim: str = "preferred_username"
    user_prefix: str | None = None

    def __repr__(self) -> str:  # without the key
        return f"IssuerTable({self.issuer or self.oidc_issuer!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("issuer", self.issuer or self.oidc_issuer)]


def read_issuer_file(path: str) -> list[IssuerTable]:
    """Read the file. The names of key files are relative to it.

    Raises SettingsError, whose message names the file, the table and the key, and never contains a key of tokens.
    """
    try:
        document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        # A mistake of TOML has a line and a column; Python does not quote the line.
        reason = str(error) if isinstance(error, tomllib.TOMLDecodeError) else type(error).__name__
        raise SettingsError(f"JWT_ISSUERS: {path} cannot be read ({reason}); expected a TOML file") from error
    tables = document.get("issuer")
    if set(document) != {"issuer"} or not isinstance(tables, list) or not tables:
        raise SettingsError(f"JWT_ISSUERS: {path} has something else than issuers; expected [[issuer]] tables alone")
    issuers = []
    for number, table in enumerate(tables, 1):
        try:
            issuers.append(_checked(table, path, several=len(tables) > 1))
        except (SettingsError, msgspec.ValidationError) as error:
            raise complete(str(error), path, number) from error
    return issuers


def complete(message: str, path: str, number: int) -> SettingsError:
    """Return the error of a table, with the names of its keys in the place of the settings' names."""
    message = message.replace("=on", " = true")
    message = re.sub(r"(?:NUROPB_GATEWAY_)?JWT_([A-Z_]+)", lambda match: match[1].lower(), message)
    return SettingsError(f"JWT_ISSUERS: {path}, issuer {number}: {message}")


def _checked(table: Any, path: str, *, several: bool) -> IssuerTable:
    issuer = msgspec.convert(table, IssuerTable)
    sources = [name for name in ("key", "key_file", "oidc_issuer", "jwks_url") if getattr(issuer, name)]
    if len(sources) != 1:
        raise SettingsError(f"{len(sources)} sources of keys; expected one of oidc_issuer, jwks_url, key_file and key")
    if not (issuer.issuer or issuer.oidc_issuer):
        raise SettingsError("issuer: not set; expected the iss of its tokens")
    for name in ("audience", "client_id", "algorithms"):
        if name in table and not getattr(issuer, name):
            raise SettingsError(f"{name}: empty; give a value, or do not set it")
    if several and issuer.user_prefix is None:
        raise SettingsError(
            "user_prefix: not set; expected a text that is put before the ids of this issuer's users, such as "
            "'partner:', or '' for one of the issuers"
        )
    if issuer.key_file:
        try:
            key = Path(path).parent.joinpath(issuer.key_file).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            fact = f"the file cannot be read ({type(error).__name__})"
            raise SettingsError(f"key_file: {fact}; expected the name of a readable text file") from error
        key = key.removesuffix("\n").removesuffix("\r")
        issuer = msgspec.structs.replace(issuer, key=key, key_file="")
    return issuer

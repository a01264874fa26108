"""Findings about a token, by the claims that it contains. Its signature is the gateway's to check."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from typing import Any

from ...settings import ENV_PREFIX
from .._output import printable
from .findings import LEEWAY, Finding, not_checked, ok, span, wrong

__all__ = ["about_claims", "after_refusal", "expectations", "read_claims"]


def read_claims(token: str) -> dict[str, Any] | None:
    """Return the claims of a JSON web token, unchecked; None if it is not a JSON web token."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        text = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        claims = json.loads(text)
    except (binascii.Error, ValueError, RecursionError):
        return None
    return claims if isinstance(claims, dict) else None


def about_claims(
    claims: Mapping[str, Any] | None,
    now: float,
    *,
    issuer: str = "",
    audience: str = "",
    client_id: str = "",
    user_claim: str = "",
) -> Finding:
    """Check lifetime, issuer and audience. ``claims`` is None for an opaque token, ``now`` the gateway's time.

    The keyword arguments are the values of the gateway's settings, if these are known here.
    """
    if claims is None:
        return not_checked("not a JSON web token; only the gateway can check it")
    renew = "get a new token from its issuer (for development: 'nuropb-gateway token')"
    expires, begins = _number(claims.get("exp")), _number(claims.get("nbf"))
    if expires is None:
        return wrong("the token has no exp claim", "have it issued with exp: a gateway rejects tokens without an end")
    if expires + LEEWAY <= now:
        return wrong(f"the token expired {span(now - expires)} ago", renew)
    if begins is not None and begins > now + LEEWAY:
        return wrong(f"the token is not valid yet: its nbf is {span(begins - now)} ahead", "wait, or set the clocks")
    advice = []
    user_claim = user_claim or "sub"
    if user_claim not in claims:
        advice.append(f"the token has no {printable(user_claim)} claim, which a gateway requires")
    by_client = client_id and ("aud" not in claims or not audience)
    clients = [str(claims[name]) for name in ("client_id", "azp") if name in claims]
    for claim, named, setting, wanted in (
        ("aud", _audiences(claims), "JWT_AUDIENCE", "" if by_client else audience),
        ("client_id or azp", clients, "JWT_CLIENT_ID", client_id if by_client else ""),
        ("iss", [str(claims.get("iss", ""))], "JWT_ISSUER", issuer),
    ):
        accepted = [wanted] if claim == "iss" else [each.strip() for each in wanted.split(",")]
        if wanted and set(accepted).isdisjoint(named):
            has = printable(", ".join(named)) or "missing"
            advice.append(f"its {claim} is {has}, but {setting} here is {printable(wanted)}")
    validity = f"valid for {span(expires - now)}"
    if expires <= now:
        validity = f"expired {span(now - expires)} ago, within the leeway of {LEEWAY:g} s"
        advice.append(renew)
    found = f"user {printable(str(claims.get(user_claim, 'unknown')))}, {validity}"
    return ok(found, "; ".join(advice) or None)


def after_refusal(claims: Mapping[str, Any] | None, now: float) -> str:
    """Say which settings of the gateway to compare with a token that it has refused."""
    explain = "'nuropb-gateway explain --token-file ...', with the gateway's settings, shows the reason"
    if claims is None:
        return f"check that the token is complete and meant for this gateway; {explain}"
    expires = _number(claims.get("exp"))
    if expires is None or expires <= now:
        return "see the token step above"
    issuer = f"issuer {printable(str(claims['iss']))}" if "iss" in claims else "no issuer"
    audience = f"audience {printable(', '.join(_audiences(claims)))}" if "aud" in claims else "no audience"
    return (
        f"the token has {issuer} (JWT_ISSUER) and {audience} (JWT_AUDIENCE): compare these, and the signing key, with "
        f"the gateway's settings; {explain}"
    )


def expectations(claims: Mapping[str, Any] | None, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the values of the settings that a token has to meet, as far as they are known here.

    Of several issuers in the file of JWT_ISSUERS, they are those of the token's issuer. Raises SettingsError.
    """
    names = ("issuer", "audience", "client_id", "user_claim")
    path = environment.get(f"{ENV_PREFIX}JWT_ISSUERS", "")
    if not path:
        return {name: environment.get(f"{ENV_PREFIX}JWT_{name.upper()}", "") for name in names}
    from ...authentication.issuer_file import read_issuer_file

    tables = {each.issuer or each.oidc_issuer: each for each in read_issuer_file(path)}
    table = tables.get(str((claims or {}).get("iss")))
    if table is None:
        return dict.fromkeys(names, "") | {"issuer": " or ".join(tables)}
    audience, client_id = (
        value if isinstance(value, str) else ",".join(value) for value in (table.audience, table.client_id)
    )
    return {"issuer": "", "audience": audience, "client_id": client_id, "user_claim": table.user_claim}


def _audiences(claims: Mapping[str, Any]) -> list[str]:
    audience = claims.get("aud")
    return [str(each) for each in audience] if isinstance(audience, list) else [str(audience)] if audience else []


def _number(value: object) -> float | None:
    """Return ``value`` as a finite float, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None

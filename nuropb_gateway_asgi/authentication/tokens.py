"""JSON web tokens (RFC 7519) in the compact form (RFC 7515), parsed and not yet verified. Pure.

The rules are here because python-jose 3.5.0, which checks the signatures, lacks them or has looser ones.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from .strict_json import Unacceptable, base64url_decode, parse_object

__all__ = ["MAX_TOKEN", "Compact", "is_token", "numeric_date", "parse_claims", "parse_compact"]

#: Characters of a token. Those of Entra ID with 200 groups have 10,500; and base64url adds a third on its way in a
#: subprotocol, so the server's limit for a line of a head is half as much again.
MAX_TOKEN: Final = 16384
# Visible ASCII, which is wider than the b64token of RFC 6750, 2.1, because nuropb_gw's tokens are any string.
# White space is refused: two Authorization headers that a proxy joined ("a, Bearer b") are not one token.
_TOKEN: Final = re.compile(rf"[!-~]{{1,{MAX_TOKEN}}}")

# crit and b64 change the signed text (RFC 7515, 4.1.11; RFC 7797), and zip its meaning; the others let a token bring
# its own key (RFC 8725, 3.10). python-jose 3.5.0 ignores all of them.
_REFUSED_HEADERS: Final = frozenset(["crit", "b64", "zip", "jku", "jwk", "x5u", "x5c"])


class Compact(msgspec.Struct, frozen=True):
    """The parts of a token, none of them verified."""

    #: The token's own statement about its key: good for choosing a key, never for trusting the token.
    algorithm: str
    kid: str | None
    payload: bytes
    signing_input: bytes
    signature: bytes


def is_token(text: str) -> bool:
    """Return whether ``text`` can be a bearer token of any kind: 1 to 16384 visible ASCII characters."""
    return _TOKEN.fullmatch(text) is not None


def parse_compact(token: str) -> Compact:
    """Split a token into its parts without trusting it, or raise Unacceptable."""
    if not is_token(token):
        raise Unacceptable("the token is empty, too long, or contains other characters than visible ASCII")
    parts = token.split(".")
    if len(parts) != 3:
        raise Unacceptable("the token does not have three parts")
    header_data, payload, signature = map(base64url_decode, parts)
    if len(header_data) > 1024:
        raise Unacceptable("the header is longer than 1 KiB")
    header = parse_object(header_data, "header", max_depth=1)
    if not _REFUSED_HEADERS.isdisjoint(header):
        raise Unacceptable("the header has a parameter that is not accepted (crit, b64, zip, jku, jwk, x5u or x5c)")
    # RFC 8725, 3.11: the same issuer also signs logout tokens and proofs, which are not access tokens.
    typ = header.get("typ", "JWT")
    if not isinstance(typ, str) or typ.lower().removeprefix("application/") not in ("jwt", "at+jwt"):
        raise Unacceptable("typ is not JWT or at+jwt")
    algorithm, kid = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str):
        raise Unacceptable("alg is not a string")
    if not isinstance(kid, str) and "kid" in header:  # RFC 7515, 4.1.4
        raise Unacceptable("kid is not a string")
    return Compact(algorithm, kid, payload, token[: token.rindex(".")].encode("ascii"), signature)


def parse_claims(payload: bytes) -> dict[str, Any]:
    """Read the claims as strict JSON, or raise Unacceptable."""
    return parse_object(payload, "claims", max_depth=8)


def numeric_date(value: object, name: str) -> float:
    """Return ``value`` as unix seconds (RFC 7519, 2, NumericDate), or raise Unacceptable.

    Dates from the year 10000 on are refused: they are milliseconds.
    """
    # True is an int. python-jose 3.5.0 fails with TypeError for a list and with OverflowError for Infinity.
    if not (isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 253402300800):
        raise Unacceptable(f"{name} is not a date in seconds since 1970")
    return value

"""The keys that a provider publishes: JSON web key sets (RFC 7517). Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from ..strict_json import Unacceptable, base64url_decode, parse_items
from .key import Key, KeyRing, check_public_key, check_rsa, describe, is_slow, to_pem

__all__ = ["IgnoredKey", "read_key_set", "reasons"]

_MAX_KEYS: Final = 500
_CURVES: Final[Mapping[str, ec.EllipticCurve]] = {
    "P-256": ec.SECP256R1(),
    "P-384": ec.SECP384R1(),
    "P-521": ec.SECP521R1(),
}
#: Ignored keys whose reason is told.
_MAX_REASONS: Final = 20
_PRIVATE_PARTS: Final = frozenset(["d", "p", "q", "dp", "dq", "qi", "oth", "k"])


class IgnoredKey(msgspec.Struct, frozen=True):
    """A key of a set that is not used. ``shows_secret``: every reader of the set can sign with it."""

    position: int
    reason: str
    shows_secret: bool = False


def read_key_set(data: bytes, algorithms: Sequence[str] | None = None) -> tuple[KeyRing, list[IgnoredKey]]:
    """Read a JSON web key set (RFC 7517, 5): the keys that can verify tokens, and the ignored keys with the reasons.

    Each key is read and checked on its own, so an invalid key does not affect the others. A key without ``alg`` is used
    for RS256, EdDSA or its curve's algorithm, or for those of ``algorithms`` that fit it. Secrets are never used: every
    reader of the set could sign with them. Raises Unacceptable if ``data`` is not a key set.
    """
    entries = parse_items(data, "key set", "keys", max_depth=8)
    if len(entries) > _MAX_KEYS:
        raise Unacceptable(f"the key set has more than {_MAX_KEYS} keys")
    found: dict[int, Key] = {}
    known: set[tuple[str | None, bytes, tuple[str, ...]]] = set()
    ignored: list[IgnoredKey] = []
    for position, entry in enumerate(entries, 1):
        shows_secret = isinstance(entry, dict) and not _PRIVATE_PARTS.isdisjoint(entry)
        try:
            if shows_secret:
                raise Unacceptable("it shows its private part")
            key = _read_jwk(entry, algorithms)
            same = (key.kid, key.material, key.algorithms)
            if same in known:
                raise Unacceptable("it is a duplicate")
            known.add(same)
            found[position] = key
        except Unacceptable as exc:
            ignored.append(IgnoredKey(position, str(exc), shows_secret))
    # RFC 7517, 4.5: a kid should belong to one key. With two keys, a token's kid would be ambiguous.
    names = Counter(key.kid for key in found.values() if key.kid is not None)
    ambiguous = {position for position, key in found.items() if key.kid is not None and names[key.kid] > 1}
    ignored += [IgnoredKey(position, "another key has the same kid") for position in sorted(ambiguous)]
    return KeyRing([key for position, key in found.items() if position not in ambiguous]), ignored


def reasons(ignored: Sequence[IgnoredKey]) -> str:
    """Return the reasons for a log line, each behind a semicolon."""
    text = "".join(f"; number {key.position} is ignored: {key.reason}" for key in ignored[:_MAX_REASONS])
    more = len(ignored) - _MAX_REASONS
    return f"{text}; {more} more are ignored" if more > 0 else text


def _read_jwk(entry: object, algorithms: Sequence[str] | None) -> Key:
    if isinstance(entry, Unacceptable):
        raise entry
    if not isinstance(entry, dict):
        raise Unacceptable("it is not an object")
    operations = entry.get("key_ops", ["verify"])
    if entry.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        raise Unacceptable("it is not for signatures")
    kid = entry.get("kid")
    if "kid" in entry and not isinstance(kid, str):
        raise Unacceptable("its kid is not a string")
    try:
        public_key = check_public_key(_read_numbers(entry))
    except Unacceptable:
        raise
    except Exception as exc:  # of cryptography: a point that is not on the curve, or impossible numbers
        raise Unacceptable("its numbers are invalid") from exc
    _, fitting = describe(public_key)
    if "alg" in entry:
        fitting = [algorithm for algorithm in fitting if algorithm == entry["alg"]]
    elif algorithms is None:
        fitting = fitting[:1]
    if algorithms is not None:
        fitting = [algorithm for algorithm in fitting if algorithm in algorithms]
    if not fitting:
        raise Unacceptable("its alg is not accepted")
    return Key(to_pem(public_key), fitting, kid=kid, is_slow=is_slow(public_key))


def _read_numbers(entry: Mapping[str, Any]) -> object:
    if entry.get("kty") == "RSA":
        numbers = rsa.RSAPublicNumbers(_number(entry, "e"), _number(entry, "n"))
        check_rsa(numbers)  # before any arithmetic with them
        return numbers.public_key()
    if entry.get("kty") == "EC":
        curve = _CURVES.get(str(entry.get("crv")))
        if curve is None:
            raise Unacceptable(f"its curve is not one of {', '.join(_CURVES)}")
        return ec.EllipticCurvePublicNumbers(_number(entry, "x"), _number(entry, "y"), curve).public_key()
    if entry.get("kty") == "OKP":  # RFC 8037, 2
        if entry.get("crv") != "Ed25519":
            raise Unacceptable("its curve is not Ed25519")
        return ed25519.Ed25519PublicKey.from_public_bytes(_bytes(entry, "x"))
    raise Unacceptable("its kty is neither RSA nor EC nor OKP")


def _number(entry: Mapping[str, Any], name: str) -> int:
    # Too many or too few leading zeros (RFC 7518, 6.2.1.2 and 6.3.1.1) occur, and do not change the number.
    return int.from_bytes(_bytes(entry, name), "big")


def _bytes(entry: Mapping[str, Any], name: str) -> bytes:
    text = entry.get(name)
    if not isinstance(text, str) or not text:
        raise Unacceptable(f"its {name} is missing")
    return base64url_decode(text)

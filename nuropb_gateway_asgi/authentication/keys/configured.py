"""What a key is, and what it is for: PEM, secrets and JSON web keys, checked before they are used.

Pure, but for `new_secret` and `issue_token`. python-jose verifies (and, for development, signs); it is known here
alone. Which algorithm a key is used with is a matter of the key (RFC 8725, 3.1), never of the token.
"""

from __future__ import annotations

import base64
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jose import jwk, jws
from jose.utils import is_ssh_key

from ...exceptions import SettingsError
from ..strict_json import Unacceptable, base64url_decode, parse_object
from ..tokens import Compact

__all__ = [
    "IgnoredKey",
    "Key",
    "KeyRing",
    "check_algorithms",
    "issue_token",
    "new_secret",
    "read_key",
    "read_key_set",
]

_HMAC: Final = ("HS256", "HS384", "HS512")
_RSA: Final = ("RS256", "RS384", "RS512")
_CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}  # RFC 7518, 3.4
_ALGORITHMS: Final = (*_HMAC, *_RSA, *_CURVES.values())

#: Bits of an RSA modulus. Below it RFC 7518, 3.3 forbids it, above it one verification takes a millisecond and more.
_RSA_BITS: Final = range(2048, 8192 + 1)
#: OpenSSL takes an exponent as long as the modulus, and then a verification takes as long as a signature (5 ms with
#: 3072 bits); nobody has another one than 65537, but for a few who have 3.
_RSA_EXPONENTS: Final = range(3, 2**32, 2)

_PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


class Key:
    """A key with the algorithms that it is for. ``is_slow`` tells that verifying with it is not for the event loop."""

    def __init__(
        self, material: bytes, algorithms: Sequence[str], *, kid: str | None = None, is_slow: bool = False
    ) -> None:
        self.material = material
        self.kid = kid
        self.is_slow = is_slow
        self._keys = {algorithm: jwk.construct(material, algorithm) for algorithm in algorithms}

    @property
    def algorithms(self) -> tuple[str, ...]:
        """What a token that was signed with this key may have as ``alg``."""
        return tuple(self._keys)

    def is_same(self, other: Key) -> bool:
        """Whether it cannot be told from another one."""
        return (self.kid, self.material, self.algorithms) == (other.kid, other.material, other.algorithms)

    def verify(self, compact: Compact) -> None:
        """Raise Unacceptable unless this key has signed it, with an algorithm that the key is for."""
        key = self._keys.get(compact.algorithm)
        if key is None:
            raise Unacceptable("alg is not the key's")
        if not key.verify(compact.signing_input, compact.signature):
            raise Unacceptable("the signature is wrong")


class KeyRing:
    """The keys of one moment. It never changes: other keys are another ring."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self.keys = tuple(keys)
        self._by_kid = {key.kid: key for key in keys if key.kid is not None}

    def find(self, compact: Compact) -> Key | None:
        """Return the key that the token names, or None when there is none of that name.

        A token that names none can only mean the one that fits; raises Unacceptable unless there is exactly one.
        """
        if compact.kid is not None:
            return self._by_kid.get(compact.kid)
        fitting = [key for key in self.keys if compact.algorithm in key.algorithms]
        if len(fitting) != 1:
            raise Unacceptable("it has no kid, and not exactly one key fits its alg")
        return fitting[0]


# --- A key of the settings


def read_key(key: str | bytes, algorithms: Sequence[str] | None = None) -> Key:
    """Read a PEM public key or certificate, or a secret of at least 32 bytes.

    ``algorithms`` can only narrow what fits the key, and defaults to HS256, RS256 or the one of the key's curve.
    Raises SettingsError, whose message never contains the key.
    """
    try:
        data = key.encode("utf-8") if isinstance(key, str) else key
    except UnicodeEncodeError:
        # Without a cause: the exception holds the key.
        raise SettingsError("JWT_KEY: it is not valid text") from None
    public_key = None
    if b"-----" in data or b"BEGIN " in data:
        public_key = _read_pem(data)
        kind, fitting = _kind(public_key)
        data = _spki(public_key)
    else:
        _check_secret(data)
        kind, fitting = "a secret", _HMAC
    algorithms = fitting[:1] if algorithms is None else check_algorithms(algorithms)
    if not set(algorithms) <= set(fitting):
        raise SettingsError(f"JWT_ALGORITHMS: JWT_KEY is {kind}, which is only for {', '.join(fitting)}")
    return Key(data, algorithms, is_slow=public_key is not None and _is_slow(public_key))


def check_algorithms(algorithms: Sequence[str], allowed: Sequence[str] = _ALGORITHMS) -> Sequence[str]:
    """Return ``algorithms``, or raise SettingsError unless it is a list with some of those that are ``allowed``."""
    # python-jose 3.5.0 takes a string and looks for the name anywhere inside it.
    if isinstance(algorithms, str) or not algorithms or not set(algorithms) <= set(allowed):
        raise SettingsError(f"JWT_ALGORITHMS: it must be a list with some of {', '.join(allowed)}")
    return algorithms


def _read_pem(data: bytes) -> _PublicKey:
    if b"PRIVATE KEY-" in data:
        raise SettingsError("JWT_KEY: it is a private key; give the public key, the gateway only verifies")
    if data.count(b"-----BEGIN ") != 1:
        raise SettingsError("JWT_KEY: it must be one PEM public key or certificate")
    public_key: object
    try:
        if b"-----BEGIN CERTIFICATE-" in data:
            # python-jose 3.5.0 reads the certificate of an RSA key, but not that of an EC key.
            public_key = x509.load_pem_x509_certificate(data).public_key()
        else:
            public_key = serialization.load_pem_public_key(data)
    except Exception as exc:  # ValueError, UnsupportedAlgorithm, InvalidVersion: the same to the operator
        raise SettingsError("JWT_KEY: it is not readable PEM; are its line breaks real?") from exc
    try:
        return _checked(public_key)
    except Unacceptable as exc:
        raise SettingsError(f"JWT_KEY: {exc}") from exc


def _checked(public_key: object) -> _PublicKey:
    if isinstance(public_key, rsa.RSAPublicKey):
        _check_rsa(public_key.public_numbers())
        return public_key
    if isinstance(public_key, ec.EllipticCurvePublicKey) and public_key.curve.name in _CURVES:
        return public_key
    raise Unacceptable(f"it must be an RSA key, or an EC key on one of {', '.join(_CURVES)}")


def _check_rsa(numbers: rsa.RSAPublicNumbers) -> None:
    size = numbers.n.bit_length()
    if size < _RSA_BITS.start:
        raise Unacceptable(f"an RSA key needs {_RSA_BITS.start} bits or more, it has {size}")
    if size not in _RSA_BITS:
        raise Unacceptable(f"an RSA key has {_RSA_BITS.stop - 1} bits at the most, this one has {size}")
    if numbers.e not in _RSA_EXPONENTS or numbers.n % 2 == 0:
        raise Unacceptable("it is no RSA key that anybody makes: the exponent is too large or one of the numbers even")


def _kind(public_key: _PublicKey) -> tuple[str, Sequence[str]]:
    """What the key is in words, and the algorithms that fit it."""
    if isinstance(public_key, rsa.RSAPublicKey):
        return "an RSA key", _RSA
    return f"an EC key on {public_key.curve.name}", (_CURVES[public_key.curve.name],)


def _is_slow(public_key: _PublicKey) -> bool:
    # What one verification takes, measured with OpenSSL 3 on a machine of 2026, in microseconds: P-256 66, RSA of 2048
    # bits 21, of 4096 bits 66, of 8192 bits 240; P-384 480, P-521 470. The way to a thread and back costs 50 to 100 and
    # a thread's turn at the interpreter, so for the former it would do more harm than good. OpenSSL runs without the
    # interpreter's lock. Not measured at the start: a busy machine would make other decisions than an idle one.
    if isinstance(public_key, rsa.RSAPublicKey):
        return public_key.key_size > 4096
    return public_key.curve.name != "secp256r1"


def _spki(public_key: _PublicKey) -> bytes:
    return public_key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _check_secret(data: bytes) -> None:
    # With a public key as the secret, everybody can sign. python-jose 3.5.0 notices PEM and SSH, but not
    # DER, nor base64 without the lines around it, which is how identity providers display their keys.
    if is_ssh_key(data) or _is_der(data) or _is_der(_base64_decode(data)):
        raise SettingsError("JWT_KEY: it is a key, but not in PEM; give a PEM public key")
    if data.lstrip().startswith(b"{") and b'"kty"' in data:
        raise SettingsError("JWT_KEY: it is a JSON web key; give a PEM public key")
    if len(data) < 32:  # RFC 7518, 3.2: the size of SHA-256
        raise SettingsError(f"JWT_KEY: a secret needs 32 bytes or more, this one has {len(data)}")


def _base64_decode(data: bytes) -> bytes:
    text = b"".join(data.split()).rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
    with suppress(ValueError):
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    return b""


def _is_der(data: bytes) -> bool:
    for load in (
        serialization.load_der_public_key,
        x509.load_der_x509_certificate,
        partial(serialization.load_der_private_key, password=None),
    ):
        try:
            load(data)
        except ValueError:
            continue
        except Exception:
            return True  # it was recognised: encrypted (TypeError), or of a kind that is not supported
        return True
    return False


# --- The keys of a provider

#: What a key set may have: never a secret, which everybody who can read the set could sign with.
SET_ALGORITHMS: Final = (*_RSA, *_CURVES.values())
_MAX_KEYS: Final = 100
_JWK_CURVES: Final[Mapping[str, ec.EllipticCurve]] = {
    "P-256": ec.SECP256R1(),
    "P-384": ec.SECP384R1(),
    "P-521": ec.SECP521R1(),
}
_PRIVATE_PARTS: Final = frozenset(["d", "p", "q", "dp", "dq", "qi", "oth", "k"])


class IgnoredKey(msgspec.Struct, frozen=True):
    """A key of a set that is not used. ``shows_secret``: whoever can read the set can sign with it."""

    position: int
    reason: str
    shows_secret: bool = False


def read_key_set(data: bytes, algorithms: Sequence[str] | None = None) -> tuple[KeyRing, list[IgnoredKey]]:
    """Read a JSON web key set (RFC 7517, 5): the keys that can verify, and why the others were left out.

    Each key is looked at by itself, so that an odd one harms none of the others. A key without ``alg`` is for RS256
    or its curve's algorithm, or for those of ``algorithms`` that fit it. Raises Unacceptable for what is no key set.
    """
    entries = parse_object(data, "key set", max_depth=8).get("keys")
    if not isinstance(entries, list):
        raise Unacceptable("the key set has no list of keys")
    if len(entries) > _MAX_KEYS:
        raise Unacceptable(f"the key set has more than {_MAX_KEYS} keys")
    found: dict[int, Key] = {}
    ignored: list[IgnoredKey] = []
    for position, entry in enumerate(entries, 1):
        shows_secret = isinstance(entry, dict) and not _PRIVATE_PARTS.isdisjoint(entry)
        try:
            if shows_secret:
                raise Unacceptable("it shows its private part")
            key = _read_jwk(entry, algorithms)
            if any(key.is_same(other) for other in found.values()):
                raise Unacceptable("it is there already")
            found[position] = key
        except Unacceptable as exc:
            ignored.append(IgnoredKey(position, str(exc), shows_secret))
    # RFC 7517, 4.5: a kid is one key's. With two of them nobody could say which one is meant.
    names = Counter(key.kid for key in found.values() if key.kid is not None)
    ambiguous = [position for position, key in found.items() if key.kid is not None and names[key.kid] > 1]
    ignored += [IgnoredKey(position, "another key has the same kid") for position in ambiguous]
    return KeyRing([key for position, key in found.items() if position not in ambiguous]), ignored


def _read_jwk(entry: object, algorithms: Sequence[str] | None) -> Key:
    if not isinstance(entry, dict):
        raise Unacceptable("it is not an object")
    operations = entry.get("key_ops", ["verify"])
    if entry.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        raise Unacceptable("it is not for signatures")
    kid = entry.get("kid")
    if "kid" in entry and not isinstance(kid, str):
        raise Unacceptable("its kid is not a string")
    try:
        public_key = _checked(_read_numbers(entry))
    except Unacceptable:
        raise
    except Exception as exc:  # of cryptography: a point that is not on the curve, numbers that cannot be
        raise Unacceptable("its numbers are no key") from exc
    _, fitting = _kind(public_key)
    if "alg" in entry:
        fitting = [algorithm for algorithm in fitting if algorithm == entry["alg"]]
    elif algorithms is None:
        fitting = fitting[:1]
    if algorithms is not None:
        fitting = [algorithm for algorithm in fitting if algorithm in algorithms]
    if not fitting:
        raise Unacceptable("its alg is not accepted")
    return Key(_spki(public_key), fitting, kid=kid, is_slow=_is_slow(public_key))


def _read_numbers(entry: Mapping[str, Any]) -> object:
    if entry.get("kty") == "RSA":
        numbers = rsa.RSAPublicNumbers(_number(entry, "e"), _number(entry, "n"))
        _check_rsa(numbers)  # before any arithmetic with them
        return numbers.public_key()
    if entry.get("kty") == "EC":
        curve = _JWK_CURVES.get(str(entry.get("crv")))
        if curve is None:
            raise Unacceptable(f"its curve is not one of {', '.join(_JWK_CURVES)}")
        return ec.EllipticCurvePublicNumbers(_number(entry, "x"), _number(entry, "y"), curve).public_key()
    raise Unacceptable("its kty is neither RSA nor EC")


def _number(entry: Mapping[str, Any], name: str) -> int:
    text = entry.get(name)
    if not isinstance(text, str) or not text:
        raise Unacceptable(f"its {name} is missing")
    # Leading zeros that are too many or too few (RFC 7518, 6.2.1.2 and 6.3.1.1) happen, and mean the same number.
    return int.from_bytes(base64url_decode(text), "big")


# --- Development and tests


def new_secret() -> str:
    """Return 256 random bits as printable text, for a key that lives as long as this process."""
    return secrets.token_urlsafe(32)


def issue_token(
    secret: str, user_id: str, *, username: str | None = None, lifetime: float = 3600, **claims: Any
) -> str:
    """Return an HS256 token that is valid for ``lifetime`` seconds; ``claims`` go in as they are."""
    now = int(time.time())
    payload = {"sub": user_id, "iat": now, "exp": now + lifetime}
    if username is not None:
        payload["preferred_username"] = username
    return jws.sign(payload | claims, secret, algorithm="HS256")

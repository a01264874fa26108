"""Keys that verify tokens, and the algorithms that each is for. Pure.

The key determines the algorithms that it is used with (RFC 8725, 3.1), and a token does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from ...exceptions import SettingsError
from ..strict_json import Unacceptable
from ..tokens import Compact
from .signatures import EDWARDS_ALGORITHMS, PSS_ALGORITHMS, make_verifier

__all__ = [
    "HMAC_ALGORITHMS",
    "PUBLIC_ALGORITHMS",
    "Key",
    "KeyRing",
    "PublicKey",
    "check_algorithms",
    "check_public_key",
    "check_rsa",
    "describe",
    "is_slow",
    "to_pem",
]

HMAC_ALGORITHMS: Final = ("HS256", "HS384", "HS512")
_RSA_ALGORITHMS: Final = ("RS256", "RS384", "RS512", *PSS_ALGORITHMS)
_CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}  # RFC 7518, 3.4
#: The algorithms of public keys.
PUBLIC_ALGORITHMS: Final = (*_RSA_ALGORITHMS, *_CURVES.values(), *EDWARDS_ALGORITHMS)

#: Bits of an RSA modulus. RFC 7518, 3.3 forbids fewer; with more, a single verification takes a millisecond or longer.
_RSA_BITS: Final = range(2048, 8192 + 1)
#: OpenSSL accepts an exponent as long as the modulus, and a verification then takes as long as a signature (5 ms with
#: 3072 bits). The usual exponent is 65537, rarely 3.
_RSA_EXPONENTS: Final = range(3, 2**32, 2)
#: The points of small order of Ed25519, without the bit of the sign: with such a key, anybody can sign. OpenSSL accepts
#: them.
_SMALL_ORDER: Final = frozenset(
    bytes.fromhex(point)
    for point in (
        "00" * 32,
        "01" + "00" * 31,
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
    )
)

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


class Key:
    """A key and the algorithms that it is for. ``is_slow``: verify with it in a thread, not on the event loop."""

    def __init__(
        self, material: bytes, algorithms: Sequence[str], *, kid: str | None = None, is_slow: bool = False
    ) -> None:
        self.material = material
        self.kid = kid
        self.is_slow = is_slow
        self._keys = {algorithm: make_verifier(material, algorithm) for algorithm in algorithms}

    @property
    def algorithms(self) -> tuple[str, ...]:
        """The values of ``alg`` that are accepted in a token signed with this key."""
        return tuple(self._keys)

    def verify(self, compact: Compact) -> None:
        """Raise Unacceptable unless this key signed the token, with one of the key's algorithms."""
        key = self._keys.get(compact.algorithm)
        if key is None:
            raise Unacceptable("alg is not one of the key's algorithms")
        if not key.verify(compact.signing_input, compact.signature):
            raise Unacceptable("the signature is wrong")


class KeyRing:
    """All keys at one moment. A ring never changes; new keys make a new ring."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self.keys = tuple(keys)
        self._by_kid = {key.kid: key for key in keys if key.kid is not None}

    def find(self, compact: Compact) -> Key | None:
        """Return the key that the token names by its ``kid``, or None if there is no such key.

        For a token without ``kid``, return the only key that fits its ``alg``; raise Unacceptable if there is not
        exactly one.
        """
        if compact.kid is not None:
            return self._by_kid.get(compact.kid)
        fitting = [key for key in self.keys if compact.algorithm in key.algorithms]
        if len(fitting) != 1:
            raise Unacceptable("the token has no kid, and not exactly one key fits its alg")
        return fitting[0]


def check_algorithms(
    algorithms: Sequence[str], known: Sequence[str] = (*HMAC_ALGORITHMS, *PUBLIC_ALGORITHMS)
) -> Sequence[str]:
    """Return ``algorithms``, or raise SettingsError unless it is a list of some of the ``known`` ones."""
    # python-jose 3.5.0 takes a string and looks for the name anywhere inside it.
    if isinstance(algorithms, str) or not algorithms or not set(algorithms) <= set(known):
        raise SettingsError(f"JWT_ALGORITHMS: not a list of known algorithms; expected some of {', '.join(known)}")
    return algorithms


# --- public keys ----------------------------------------------------------------------------------------------


def check_public_key(public_key: object) -> PublicKey:
    """Return the key, or raise Unacceptable unless it is of an accepted kind and size."""
    if isinstance(public_key, rsa.RSAPublicKey):
        check_rsa(public_key.public_numbers())
        return public_key
    if isinstance(public_key, ec.EllipticCurvePublicKey) and public_key.curve.name in _CURVES:
        return public_key
    if isinstance(public_key, ed25519.Ed25519PublicKey):
        _check_order(public_key)
        return public_key
    raise Unacceptable(f"the key is neither an RSA key nor an EC key on one of {', '.join(_CURVES)}, nor Ed25519")


def check_rsa(numbers: rsa.RSAPublicNumbers) -> None:
    """Raise Unacceptable unless these are the numbers of an RSA key of an accepted size."""
    size = numbers.n.bit_length()
    if size < _RSA_BITS.start:
        raise Unacceptable(f"the RSA key has {size} bits; at least {_RSA_BITS.start} are required")
    if size not in _RSA_BITS:
        raise Unacceptable(f"the RSA key has {size} bits; at most {_RSA_BITS.stop - 1} are accepted")
    if numbers.e not in _RSA_EXPONENTS or numbers.n % 2 == 0:
        raise Unacceptable("not a usual RSA key: the exponent is too large, or one of the numbers is even")


def _check_order(public_key: ed25519.Ed25519PublicKey) -> None:
    point = public_key.public_bytes_raw()
    if point[:-1] + bytes([point[-1] & 0x7F]) in _SMALL_ORDER:
        raise Unacceptable("the Ed25519 key is a point of small order, with which anybody can sign")


def describe(public_key: PublicKey) -> tuple[str, Sequence[str]]:
    """Return the kind of the key in words, and the algorithms that fit it."""
    if isinstance(public_key, rsa.RSAPublicKey):
        return "an RSA key", _RSA_ALGORITHMS
    if isinstance(public_key, ed25519.Ed25519PublicKey):
        return "an Ed25519 key", EDWARDS_ALGORITHMS
    return f"an EC key on {public_key.curve.name}", (_CURVES[public_key.curve.name],)


def is_slow(public_key: PublicKey) -> bool:
    """Return whether a verification with this key takes longer than the way to a thread and back."""
    # Microseconds for one verification, measured with OpenSSL 3 on a machine of 2026: P-256 66; Ed25519 about twice as
    # long; RSA of 2048 bits 21, of
    # 4096 bits 66, of 8192 bits 240; P-384 480; P-521 470. The way to a thread and back costs 50 to 100, and the thread
    # needs a turn at the interpreter, so for the fast keys it would do more harm than good. OpenSSL runs without the
    # interpreter's lock. Not measured at the start, because a busy machine would decide differently from an idle one.
    if isinstance(public_key, rsa.RSAPublicKey):
        return public_key.key_size > 4096
    if isinstance(public_key, ed25519.Ed25519PublicKey):
        return False
    return public_key.curve.name != "secp256r1"


def to_pem(public_key: PublicKey) -> bytes:
    """Return the key as PEM (SubjectPublicKeyInfo)."""
    return public_key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

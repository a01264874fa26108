"""Where a client said who it is: the token of a handshake. Pure, and decides nothing by itself.

A token is a password until it expires. No repr of this module contains one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import unquote

import msgspec
from starlette.datastructures import Headers

from .strict_json import Unacceptable, base64url_decode
from .tokens import is_token

__all__ = ["Credentials", "Discreet", "bearer_from_header", "bearer_from_subprotocols", "find_credentials"]


class Discreet(msgspec.Struct, frozen=True):
    """A struct whose reprs, including the one that the rich library reads, leave the secrets out."""

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        names = [name for name in self.__struct_fields__ if name not in ("token", "claims")]
        return [(name, getattr(self, name)) for name in names]

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({fields})"


class Credentials(Discreet, frozen=True):
    """What a handshake says about the client. ``token`` and ``channel`` are None unless they can be used.

    ``channel`` is "header", "subprotocol" or "cookie". ``malformed`` (something is there but not readable)
    and ``conflict`` (there are several that differ) mean: refuse. ``legacy`` tells that the header has the
    form ``Bearer :`` of nuropb_gw's clients.
    """

    token: str | None = None
    channel: str | None = None
    conflict: bool = False
    malformed: bool = False
    legacy: bool = False


def find_credentials(headers: Headers, subprotocols: Sequence[str], cookie_name: str | None = None) -> Credentials:
    """Look for a token in the Authorization header, the subprotocols and the cookie, in this order.

    All of them are read: tokens that differ are a conflict, because a proxy in front and the gateway behind
    it could each believe another one. The query string is never read: it ends up in logs (RFC 6750, 5.3).
    """
    authorizations = headers.getlist("authorization")
    found = [("header", bearer_from_header(value)) for value in authorizations]
    found += [("subprotocol", token) for token in _subprotocol_tokens(subprotocols)]
    if cookie_name is not None:
        found += [("cookie", _token_from_cookie(value)) for value in _cookie_values(headers, cookie_name)]
    if not found:
        return Credentials()
    tokens = {token for _, token in found}
    conflict = len(tokens) > 1 or len(set(authorizations)) > 1
    malformed = None in tokens
    if conflict or malformed:
        return Credentials(conflict=conflict, malformed=malformed)
    channel, token = found[0]
    match = _BEARER.match(authorizations[0]) if authorizations else None
    return Credentials(token, channel, legacy=match is not None and match[1] is not None)


# Everything it can repeat is delimited, and the token is not part of it: linear in what a client sends.
_BEARER = re.compile(r"[ \t]*bearer(?:[ \t]*(:)|[ \t])[ \t]*", re.ASCII | re.IGNORECASE)


def bearer_from_header(value: str) -> str | None:
    """Return the token of ``Bearer <token>``, or of nuropb_gw's ``Bearer :<token>`` and ``Bearer:<token>``.

    RFC 6750, 2.1; the case of the scheme does not matter (RFC 9110, 11.1). None for another scheme, and for
    a token that is not 1 to 8192 visible ASCII characters.
    """
    match = _BEARER.match(value)
    return None if match is None else _checked(value[match.end() :].rstrip(" \t"))


_SUBPROTOCOL = "base64url.bearer.nuropb."


def bearer_from_subprotocols(subprotocols: Sequence[str]) -> str | None:
    """Return the token of ``base64url.bearer.nuropb.<base64url of the token, without padding>``.

    Browsers cannot set a header on a WebSocket; Kubernetes has this form for them. None when there is no such
    subprotocol, it is not readable, or there are several that differ.
    """
    tokens = set(_subprotocol_tokens(subprotocols))
    return tokens.pop() if len(tokens) == 1 else None


def _subprotocol_tokens(subprotocols: Sequence[str]) -> Iterator[str | None]:
    for subprotocol in subprotocols:
        if subprotocol.startswith(_SUBPROTOCOL):
            try:
                yield _checked(base64url_decode(subprotocol.removeprefix(_SUBPROTOCOL)).decode("latin-1"))
            except Unacceptable:
                yield None


# Python would strip more than HTTP leaves out: "\xa0__Host-session" is another cookie, which any page may set.
_BLANK = " \t"


def _cookie_values(headers: Headers, name: str) -> Iterator[str]:
    # Starlette's parser keeps one of several cookies of the same name. A site on a sibling domain can plant
    # one (RFC 6265, 8.6), so that all of them have to be seen.
    for header in headers.getlist("cookie"):
        for pair in header.split(";"):
            key, separator, value = pair.partition("=")
            if separator and key.strip(_BLANK) == name:
                yield value


def _token_from_cookie(value: str) -> str | None:
    if len(value) > 8192:  # no browser keeps one of more than 4096 bytes, and decoding takes its time
        return None
    value = unquote(value.strip(_BLANK))
    if len(value) >= 2 and value[0] == value[-1] == '"':
        value = value[1:-1]
    return bearer_from_header(value) or _checked(value)


def _checked(token: str) -> str | None:
    return token if is_token(token) else None

"""Credentials of a handshake: the token in a header, a subprotocol or a cookie. Pure; finds a token, verifies nothing.

A token is a password until it expires. No repr in this module contains one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any
from urllib.parse import unquote

from starlette.datastructures import Headers

from .identity import Discreet
from .strict_json import Unacceptable, base64url_decode
from .tokens import MAX_TOKEN, is_token

__all__ = ["Credentials", "bearer_from_header", "bearer_from_subprotocols", "find_credentials", "take_subprotocols"]


class Credentials(Discreet, frozen=True):
    """The token of a handshake. ``token`` and ``channel`` are None unless there is a usable token.

    ``channel`` is "header", "subprotocol" or "cookie". The handshake has to be refused if ``malformed`` (a token cannot
    be read) or ``conflict`` (there are several different tokens). ``legacy``: the header has the form ``Bearer :`` of
    nuropb_gw's clients.
    """

    token: str | None = None
    channel: str | None = None
    conflict: bool = False
    malformed: bool = False
    legacy: bool = False


def find_credentials(headers: Headers, subprotocols: Sequence[str], cookie_name: str | None = None) -> Credentials:
    """Look for a token in the Authorization header, the subprotocols and the cookie, in this order.

    All three are read, and different tokens are a conflict: a proxy and the gateway behind it could otherwise each take
    another one. The query string is never read, because it ends up in logs (RFC 6750, 5.3).
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


# Each repetition is delimited, and the token is not part of the match: the time is linear in the client's input.
_BEARER = re.compile(r"[ \t]*bearer(?:[ \t]*(:)|[ \t])[ \t]*", re.ASCII | re.IGNORECASE)


def bearer_from_header(value: str) -> str | None:
    """Return the token of ``Bearer <token>``, or of nuropb_gw's ``Bearer :<token>`` and ``Bearer:<token>``.

    See RFC 6750, 2.1; the case of the scheme does not matter (RFC 9110, 11.1). The result is None for any other scheme,
    and for a token that is not 1 to 16384 visible ASCII characters.
    """
    match = _BEARER.match(value)
    return None if match is None else _checked(value[match.end() :].rstrip(" \t"))


_SUBPROTOCOL = "base64url.bearer.nuropb."


def bearer_from_subprotocols(subprotocols: Sequence[str]) -> str | None:
    """Return the token of ``base64url.bearer.nuropb.<base64url of the token, without padding>``.

    Browsers cannot set a header on a WebSocket; Kubernetes has this form for them. The result is None if there is no
    such subprotocol, if it cannot be read, and if there are several different ones.
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


def take_subprotocols(scope: MutableMapping[str, Any]) -> Sequence[str]:
    """Return the subprotocols of a WebSocket's scope, and remove those with a token from the scope and its headers.

    Monitoring tools report the headers of a failed request, and know only Authorization and Cookie as secrets.
    """
    offered = tuple(scope.get("subprotocols", ()))
    if not any(map(_is_secret, offered)):
        return offered
    headers = []
    for name, value in scope["headers"]:
        if name.lower() == b"sec-websocket-protocol":
            words = (word.strip() for word in value.decode("latin-1").split(","))
            value = ", ".join(word for word in words if not _is_secret(word)).encode("latin-1")
            if not value:
                continue
        headers.append((name, value))
    for key, kept in (("subprotocols", [word for word in offered if not _is_secret(word)]), ("headers", headers)):
        # In place if possible: a middleware may have copied the scope, and then holds the same list.
        if isinstance(scope[key], list):
            scope[key][:] = kept
        else:
            scope[key] = kept
    return offered


def _is_secret(subprotocol: str) -> bool:
    return subprotocol.lower().startswith(_SUBPROTOCOL)


# str.strip() would remove more than HTTP does: "\xa0__Host-session" is a different cookie, which any page may set.
_BLANK = " \t"


def _cookie_values(headers: Headers, name: str) -> Iterator[str]:
    # Starlette's parser keeps one of several cookies of the same name. A site on a neighbouring domain can plant a
    # cookie (RFC 6265, 8.6), so all of them have to be read.
    for header in headers.getlist("cookie"):
        for pair in header.split(";"):
            key, separator, value = pair.partition("=")
            if separator and key.strip(_BLANK) == name:
                yield value


def _token_from_cookie(value: str) -> str | None:
    if len(value) > 2 * MAX_TOKEN:  # browsers keep up to 4096 bytes, and decoding takes time
        return None
    value = unquote(value.strip(_BLANK))
    if len(value) >= 2 and value[0] == value[-1] == '"':
        value = value[1:-1]
    return bearer_from_header(value) or _checked(value)


def _checked(token: str) -> str | None:
    return token if is_token(token) else None

"""Small documents from an untrusted web server. httpx (the extra ``oidc``) is imported in this module alone."""

from __future__ import annotations

import ipaddress
import re
import ssl
from typing import Final

import msgspec

from .._version import __version__
from ..exceptions import SettingsError
from ..loopback import is_loopback_host
from .strict_json import Unacceptable

__all__ = ["MAX_SIZE", "URL_PATTERN", "Document", "Fetcher", "check_url", "is_secure", "max_age_of"]

#: Bytes.
MAX_SIZE: Final = 256 * 1024

# Strict, so that every other parser reads the same URL: no user before an "@", no "#", no "\".
URL_PATTERN: Final = re.compile(
    r"(https?)://([a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?"
    r"(?:/[a-z0-9._~!$&'()*+,;=:@%/?-]*)?",
    re.ASCII | re.IGNORECASE,
)
_MAX_AGE: Final = re.compile(r"max-age=\"?([0-9]{1,10})\"?", re.IGNORECASE)


class Document(msgspec.Struct, frozen=True):
    """The body of an answer. ``max_age``: for how many seconds it may be kept, or None if the server does not say."""

    body: bytes
    max_age: float | None


def check_url(url: str, *, allow_http: bool = False) -> None:
    """Raise Unacceptable for a URL that keys must not come from.

    Changed keys would let an attacker sign in as any user, so plain http is for this machine only, unless
    ``allow_http``.
    """
    match = URL_PATTERN.fullmatch(url) if len(url) <= 2000 else None
    if match is None or not _is_host(match[2]) or int(match[3] or 0) > 65535:
        raise Unacceptable("not an accepted URL; expected https://host[:port]/path, without user and fragment")
    if not (allow_http or is_secure(url) or is_loopback_host(match[2])):
        raise Unacceptable(
            "http is accepted only for this machine; use https, or set NUROPB_GATEWAY_JWT_ALLOW_HTTP=on if the whole "
            "network up to the provider is yours"
        )


def is_secure(url: str) -> bool:
    """Return whether this is an https URL."""
    return url[:6].lower() == "https:"


def _is_host(host: str) -> bool:
    if not host.startswith("["):
        return len(host) <= 253  # RFC 1035, 2.3.4
    try:
        ipaddress.IPv6Address(host[1:-1])
    except ValueError:
        return False
    return True


class Fetcher:
    """A reader of documents by GET. Raises SettingsError if httpx is not installed."""

    def __init__(self) -> None:
        try:
            import httpx
        except ModuleNotFoundError as error:
            raise SettingsError("httpx is not installed; install nuropb-gateway-asgi[oidc]") from error
        self._httpx = httpx
        # The certificate authorities of the system, as for the broker; SSL_CERT_FILE names others.
        self._tls = ssl.create_default_context()

    async def __call__(self, url: str) -> Document:
        """Return the document at ``url``, or raise Unacceptable with a reason that may be logged.

        Redirects are not followed, and compressed answers are refused. The caller limits the time. Cancellation closes
        the connection.
        """
        httpx = self._httpx
        # Of https, a proxy of the environment sees only the destination; http stays within the own network.
        client = httpx.AsyncClient(verify=self._tls, trust_env=is_secure(url), follow_redirects=False, timeout=None)
        headers = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": f"nuropb-gateway-asgi/{__version__}",
        }
        try:
            async with client, client.stream("GET", url, headers=headers) as response:
                if response.status_code != 200:
                    redirects = " and redirects are not followed" if response.is_redirect else ""
                    raise Unacceptable(f"the status is {response.status_code}{redirects}")
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise Unacceptable("the answer is compressed, against the request")
                body = b""
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) > MAX_SIZE:
                        raise Unacceptable(f"the document is longer than {MAX_SIZE} bytes")
                return Document(body, max_age_of(response.headers.get("cache-control", "")))
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise Unacceptable(f"{type(error).__name__}: {error}") from error


def max_age_of(cache_control: str) -> float | None:
    """Return the max-age in seconds (RFC 9111, 5.2.2.1), 0 for an answer that must not be kept, or None."""
    ages: list[float] = []
    for directive in cache_control.split(","):
        name = directive.strip()
        if match := _MAX_AGE.fullmatch(name):
            ages.append(float(match[1]))
        elif name.lower() in ("no-store", "no-cache"):
            ages.append(0.0)
    return min(ages, default=None)

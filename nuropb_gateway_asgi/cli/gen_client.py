"""The command ``gen-client``: a typed client module of the methods that a token may call."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit, urlunsplit

import click

from ._options import TOKEN_VARIABLE
from ._target import WEBSOCKET_PATH

if TYPE_CHECKING:
    from ..contracts.clients import Language

__all__ = ["gen_client", "gen_client_command"]

#: Seconds to fetch a document.
DOCUMENT_TIMEOUT: Final = 30.0
#: Bytes of a document. A document of a thousand methods has less than two million.
MAX_DOCUMENT_SIZE: Final = 32 * 1024 * 1024


def gen_client(lang: Language, source: str, out: str | None = None, *, token: str = "") -> str:
    """Write a client module in ``lang`` to the file ``out`` (None: to no file), and return its text.

    ``source`` is an ``asyncapi.json``: a file (``-`` for standard input), its URL, or the URL of the gateway; a URL is
    requested with ``token``. Raises ValueError for an invalid document, and OSError if a file cannot be read or
    written. Only a complete module is written.
    """
    from ..contracts.clients import generate_client

    text = generate_client(_load(source, token), lang)
    if out is not None:
        Path(out).write_text(text, encoding="utf-8")
    return text


def _load(source: str, token: str) -> Mapping[str, Any]:
    if source == "-":
        data = sys.stdin.buffer.read()
    elif "://" in source:
        data = _fetch(_document_url(source), token)
    else:
        data = Path(source).read_bytes()
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source}: not JSON; expected an asyncapi.json") from error
    if not isinstance(document, dict):
        raise ValueError(f"{source}: not a JSON object; expected an asyncapi.json")
    return document


def _document_url(url: str) -> str:
    parts = urlsplit(url)
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    if scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise ValueError(
            "invalid URL; expected the gateway's, http(s)://host[:port][/path] or ws(s)://host[:port][/path]/ws, or "
            "that of its asyncapi.json"
        )
    base = parts.path.rpartition("/")[0] if parts.scheme != scheme else parts.path.removesuffix(WEBSOCKET_PATH)
    path = parts.path if parts.path.endswith(".json") else f"{base.rstrip('/')}/asyncapi.json"
    return urlunsplit((scheme, parts.netloc, path, parts.query, ""))


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirects: the token is for the gateway, not for another server."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> None:
        """Treat the redirect as an error."""


def _fetch(url: str, token: str) -> bytes:
    if not token:
        raise ValueError(f"a token is needed: --token-file or {TOKEN_VARIABLE}")
    if not (token.isascii() and token.isprintable()):
        raise ValueError("the token contains invalid characters: give one complete token, and only it")
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})  # noqa: S310 - checked above
    try:
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=DOCUMENT_TIMEOUT) as response:
            data: bytes = response.read(MAX_DOCUMENT_SIZE + 1)
    except urllib.error.HTTPError as error:
        with error:
            raise ValueError(f"{url}: {_explain(error)}") from error
    except (urllib.error.URLError, HTTPException) as error:
        raise ValueError(f"{url}: {getattr(error, 'reason', None) or type(error).__name__}") from error
    if len(data) > MAX_DOCUMENT_SIZE:
        raise ValueError(f"{url}: the document has more than {MAX_DOCUMENT_SIZE} bytes")
    return data


def _explain(error: urllib.error.HTTPError) -> str:
    """Describe a refusal by its status, and by the gateway's description if there is one."""
    status = f"HTTP status {error.code}"
    try:
        description = json.loads(error.read(65536))["description"]
    except (ValueError, KeyError, TypeError, OSError, HTTPException):
        return status
    return f"{status}: {description}" if isinstance(description, str) and description.isprintable() else status


EPILOG: Final = f"""\b
Examples:
  export {TOKEN_VARIABLE}=$(nuropb-gateway token --user alice)
  nuropb-gateway gen-client --lang ts http://127.0.0.1:8000 --out src/gateway.ts
  nuropb-gateway gen-client --lang py https://gateway.example.com/gateway --token-file alice.token > gateway.py
  nuropb-gateway gen-client --lang py asyncapi.json

\b
Exit codes:
  0  the module was written
  1  no valid document, or the module cannot be written
  2  invalid command line
"""


@click.command("gen-client", epilog=EPILOG)
@click.argument("source")
@click.option("--lang", type=click.Choice(["ts", "py"]), required=True, help="TypeScript or Python.")
@click.option("--out", "-o", type=click.Path(dir_okay=False), help="File to write.  [default: standard output]")
@click.option("--token-file", type=click.File(encoding="utf-8"), help="File with the token.")
@click.option("--token", envvar=TOKEN_VARIABLE, help="The token. Other users of this machine can see it.")
def gen_client_command(
    source: str, lang: Language, out: str | None, token_file: IO[str] | None, token: str | None
) -> None:
    """Write a typed client module for a token.

    It contains all methods that the token may call, with parameters and documentation, and all topics.

    SOURCE is the URL of the gateway, or a file with its asyncapi.json ("-" for standard input). Without an option the
    token comes from NUROPB_GATEWAY_TOKEN; a file needs no token.
    """
    try:
        given = token_file.read().strip() if token_file is not None else token or ""
        text = gen_client(lang, source, out, token=given)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    if out is None:
        click.echo(text, nl=False)

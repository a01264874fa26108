"""The admin API of a gateway, asked over HTTP: at a Unix socket or a port."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import click

from ...settings import ENV_PREFIX, UNIX_PREFIX

__all__ = ["Refused", "Target", "find_target"]

#: Seconds for an answer: a bundle asks all processes, and packs what they say.
TIMEOUT: Final = 30.0
#: Bytes of an answer.
MAX_ANSWER: Final = 256 << 20
_PORT: Final = re.compile(r"(?:http://)?(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})/?")


class Refused(Exception):
    """An answer that is none: its text, and the exit code."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Target:
    """The admin API of a gateway: an address and a token."""

    def __init__(self, address: str, token: str) -> None:
        self.address = address
        self._token = token

    def ask(self, path: str, query: Mapping[str, Any] | None = None, body: Any = None) -> Any:
        """Return the decoded JSON of an answer. Raises Refused."""
        return json.loads(self.fetch(path, query, body)[0])

    def fetch(
        self, path: str, query: Mapping[str, Any] | None = None, body: Any = None
    ) -> tuple[bytes, Mapping[str, str]]:
        """Return the body and the headers of an answer. Raises Refused."""
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        text = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            text = json.dumps({name: value for name, value in body.items() if value is not None})
        given = urlencode({name: value for name, value in (query or {}).items() if value is not None})
        connection = self._connection()
        try:
            connection.request(
                "GET" if text is None else "POST", f"/v1/{path}{'?' if given else ''}{given}", text, headers
            )
            response = connection.getresponse()
            content = response.read(MAX_ANSWER)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            text = f"no admin API at {self.address}: {reason}; set {ENV_PREFIX}ADMIN_LISTEN for the gateway and here"
            raise Refused(text, 3) from error
        finally:
            connection.close()
        if response.status != 200:
            raise Refused(_description(content, response.status), 5 if response.status in (401, 403, 429) else 1)
        return content, dict(response.getheaders())

    def _connection(self) -> http.client.HTTPConnection:
        if self.address.startswith(UNIX_PREFIX):
            return _UnixConnection(self.address.removeprefix(UNIX_PREFIX))
        match = _PORT.fullmatch(self.address)
        if match is None:
            raise click.UsageError("--listen is no address; expected unix:/path, or host:port")
        return http.client.HTTPConnection(match[1] or match[2], int(match[3]), timeout=TIMEOUT)


def _description(content: bytes, status: int) -> str:
    try:
        answer = json.loads(content)
    except ValueError:
        answer = None
    found = answer.get("description") if isinstance(answer, dict) else None
    return found if isinstance(found, str) else f"the gateway answered with status {status}"


def find_target(listen: str | None, token_file: str | None) -> Target:
    """Return the admin API that option or environment names. Raises click.UsageError, ValueError and OSError."""
    return Target(_address(listen), _token(token_file))


def _address(option: str | None) -> str:
    address = option or os.environ.get(f"{ENV_PREFIX}ADMIN_LISTEN", "")
    if not address:
        raise click.UsageError(f"no admin API is named; expected --listen or {ENV_PREFIX}ADMIN_LISTEN")
    return address


def _token(file: str | None) -> str:
    file = file or (
        None if f"{ENV_PREFIX}ADMIN_TOKEN" in os.environ else os.environ.get(f"{ENV_PREFIX}ADMIN_TOKEN_FILE")
    )
    if file is None:
        token = os.environ.get(f"{ENV_PREFIX}ADMIN_TOKEN", "")
    else:
        token = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    token = token.strip()
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("the admin token contains spaces or other invalid characters")
    return token

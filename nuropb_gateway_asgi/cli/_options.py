"""The options that commands share: the URL of a gateway, a token, and times."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import click

from ..settings import ENV_PREFIX
from ._target import parse_url

__all__ = [
    "DEFAULT_URL",
    "ENVIRONMENT",
    "SECONDS",
    "TOKEN_VARIABLE",
    "find_token",
    "gateway_options",
    "source_options",
]

C = TypeVar("C", bound=Callable[..., Any])

#: The type of an option that is a time.
SECONDS: Final = click.FloatRange(min=0, min_open=True)
DEFAULT_URL: Final = "ws://127.0.0.1:8000/ws"
TOKEN_VARIABLE: Final = f"{ENV_PREFIX}TOKEN"
ENVIRONMENT: Final = f"{ENV_PREFIX}URL names the gateway and {TOKEN_VARIABLE} the token; options override them."


def source_options(command: C) -> C:
    """Add the options that name a gateway and a token, unparsed: ``url``, ``token``, ``token_file``."""
    for option in (
        click.option("--token-file", metavar="PATH", help="File with the token; - for standard input."),
        click.option("--token", metavar="TOKEN", help="The token. Other users of this machine can see it."),
        click.option(
            "--url",
            metavar="URL",
            envvar=f"{ENV_PREFIX}URL",
            default=DEFAULT_URL,
            show_default=True,
            help="The gateway's URL: ws(s)://host/ws, or http(s)://host.",
        ),
    ):
        command = option(command)
    return command


def gateway_options(command: C) -> C:
    """Add the same options, parsed: ``command`` gets ``target`` and ``token``."""

    @functools.wraps(command)
    def parsed(*args: Any, url: str, token: str | None, token_file: str | None, **options: Any) -> Any:
        return command(*args, target=parse_url(url), token=find_token(token, token_file), **options)

    return source_options(cast("C", parsed))


def find_token(token: str | None, file: str | None) -> str | None:
    """Return the token from option, file or environment; None if there is none.

    Raises ValueError, without quoting it, for text that cannot be a token.
    """
    if token is not None and file is not None:
        raise click.UsageError("--token and --token-file cannot be combined")
    if file is not None:
        token = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    elif token is None:
        token = os.environ.get(TOKEN_VARIABLE, "")
    token = token.strip()
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("the token contains spaces or other invalid characters: give one complete token, and only it")
    return token or None

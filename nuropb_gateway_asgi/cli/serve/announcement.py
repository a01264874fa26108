"""The lines that are printed once the server listens: URL, console, and a token to start with."""

from __future__ import annotations

import os
import sys

import click

from ...settings import ENV_PREFIX, Settings
from .._options import DEFAULT_URL

__all__ = ["announce", "console_url"]


def announce(url: str, token: str | None, console: str | None) -> None:
    """Print where the gateway is, and with a ``token`` for this run also how to call the demo service."""
    click.echo(f"\nThe gateway is at {url}")
    if console is not None and token is None:
        click.echo(f"The console is at {console}")
    elif console is not None:
        # Browsers do not send the part behind the #.
        signed_in = " (this link signs you in)" if "#" in console else ""
        click.echo(f"The console is here{signed_in}:\n\n{console}\n")
    if token is not None:
        click.echo(
            f"The mesh is embedded, with a demo service. Token for this run (user dev, valid for one day):\n\n{token}"
        )
        if url.startswith("ws"):  # the client cannot connect to a Unix socket
            click.echo(_invitation(url, token))
    sys.stdout.flush()


def console_url(url: str, settings: Settings) -> str | None:
    """Return the URL of the console; None if it is switched off, or behind a Unix socket."""
    if not settings.has_console or not url.startswith("ws"):
        return None
    return f"http{url.removeprefix('ws').removesuffix(settings.path)}/"


def _invitation(url: str, token: str) -> str:
    """Return shell commands for another terminal that call the demo service."""
    program = os.path.relpath(sys.executable)
    program = program if not program.startswith("..") else sys.executable
    variables = {"TOKEN": token} if url == DEFAULT_URL else {"URL": url, "TOKEN": token}
    exports = [f"export {ENV_PREFIX}{name}={value}" for name, value in variables.items()]
    command = f"{program} -m nuropb_gateway_asgi call demo add a:=2 b:=3"
    return "\n".join(["", "Try it from another terminal:", "", *exports, command, ""])

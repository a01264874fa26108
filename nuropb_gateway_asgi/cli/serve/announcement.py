"""The lines that are printed once the server listens: URL, console, and a token to start with."""

from __future__ import annotations

import json
import os
import sys

import click

from ...settings import ENV_PREFIX, Settings
from .._options import DEFAULT_URL

__all__ = ["announce", "console_url", "tools_url"]


def announce(
    url: str, settings: Settings, token: str | None, console: str | None = None, tools: str | None = None
) -> None:
    """Print where the gateway is, and with a ``token`` for development also how to call the demo service.

    ``tools`` is the URL for agents, if the gateway serves them.
    """
    click.echo(f"\nThe gateway is at {url}")
    if console is not None and token is None:
        click.echo(f"The console is at {console}")
    elif console is not None:
        # Browsers do not send the part behind the #.
        signed_in = " (this link signs you in)" if "#" in console else ""
        click.echo(f"The console is here{signed_in}:\n\n{console}\n")
    if token is not None:
        kept = "valid for one day, also after a restart" if settings.development_key_file else "valid for this run"
        click.echo(f"The mesh is embedded, with a demo service. Token of the user dev, {kept}:\n\n{token}")
        if url.startswith("ws"):  # the client cannot connect to a Unix socket
            click.echo(_invitation(url, token))
    elif signs_tokens(settings):
        click.echo(f"Make a token: {_program()} token --user NAME (with the same settings as the gateway)")
    if tools is not None:
        click.echo(_agents(tools, token))
    sys.stdout.flush()


def console_url(url: str, settings: Settings) -> str | None:
    """Return the URL of the console; None if it is switched off, or behind a Unix socket."""
    if not settings.has_console or not url.startswith("ws"):
        return None
    return f"http{url.removeprefix('ws').removesuffix(settings.path)}/"


def tools_url(url: str, settings: Settings) -> str | None:
    """Return the URL of the tools for agents; None if they are switched off, or behind a Unix socket."""
    from ...agents import PATH, Agents  # slow to import, and other commands do without it

    if not Agents.can_serve(settings) or not url.startswith("ws"):
        return None
    return f"http{url.removeprefix('ws').removesuffix(settings.path)}{PATH}"


def _agents(url: str, token: str | None) -> str:
    """Return what adds the gateway to a host: a command, and the JSON that others take."""
    header = f"Authorization: Bearer {token or '$TOKEN'}"
    server = {"type": "http", "url": url, "headers": {"Authorization": f"Bearer {token or '$TOKEN'}"}}
    lines = [
        "Give the services to an agent as tools:",
        "",
        f'claude mcp add --transport http nuropb {url} --header "{header}"',
        "",
        "or, in the file of another host:",
        "",
        json.dumps({"mcpServers": {"nuropb": server}}),
        "",
    ]
    return "\n".join(lines)


def _invitation(url: str, token: str) -> str:
    """Return shell commands for another terminal that call the demo service."""
    variables = {"TOKEN": token} if url == DEFAULT_URL else {"URL": url, "TOKEN": token}
    exports = [f"export {ENV_PREFIX}{name}={value}" for name, value in variables.items()]
    command = f"{_program()} call demo add a:=2 b:=3"
    return "\n".join(["", "Try it from another terminal:", "", *exports, command, ""])


def signs_tokens(settings: Settings) -> bool:
    """Whether the key in the settings is a secret, so that the command ``token`` can sign with it."""
    return bool(settings.jwt_key) and "-----BEGIN" not in settings.jwt_key


def _program() -> str:
    """Return the words that run this program in the same environment."""
    python = os.path.relpath(sys.executable)
    return f"{python if not python.startswith('..') else sys.executable} -m nuropb_gateway_asgi"

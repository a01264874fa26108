"""The subcommands of ``admin``: each asks the admin API once, and prints the result."""

from __future__ import annotations

import functools
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from ...settings import ENV_PREFIX
from .._output import dump, printable, say
from .lines import TEXTS
from .target import Refused, Target, find_target

__all__ = ["admin"]

_EXIT_CODES: Final = """\b
Exit codes:
  0    success
  1    the gateway could not do it; its text says why
  2    invalid command line
  3    no admin API there
  5    the token was refused
  6    done, but some processes did not answer
  130  interrupted"""
EPILOG: Final = f"""The gateway has an admin API if {ENV_PREFIX}ADMIN_LISTEN is set. The same variable names it here,
and {ENV_PREFIX}ADMIN_TOKEN or {ENV_PREFIX}ADMIN_TOKEN_FILE its token; options override them.

\b
Examples:
  nuropb-gateway admin connections --user alice
  nuropb-gateway admin disconnect --user alice
  nuropb-gateway admin debug-bundle

{_EXIT_CODES}
"""


def _command(name: str, *options: Callable[[Any], Any]) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a subcommand of a function that gets a target, and returns a result or prints it itself."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def run(listen: str | None, token_file: str | None, as_json: bool, **given: Any) -> int:
            target = find_target(listen, token_file)
            try:
                result = function(target, **given)
            except Refused as error:
                say(str(error))
                return error.code
            if as_json:
                click.echo(dump(result, pretty=sys.stdout.isatty()))
            else:
                for line in TEXTS[name](result):
                    click.echo(printable(line))
            if missing := result.get("missing"):
                say(f"no answer from {', '.join(missing)}")
                return 6
            return 0

        command: Any = run
        for option in (
            *reversed(options),
            click.option("--listen", metavar="ADDRESS", help="The admin API: unix:/path, or host:port."),
            click.option("--token-file", metavar="PATH", help="File with the admin token; - for standard input."),
            click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        ):
            command = option(command)
        return admin.command(name, epilog=_EXIT_CODES)(command)

    return decorate


@click.group(epilog=EPILOG, short_help="Look into a running gateway, and act on it.")
def admin() -> None:
    """Look into a running gateway, and act on all of its processes."""


_user = click.option("--user", metavar="ID", help="The user's id.")
_users = click.option("--user", "users", metavar="ID", multiple=True, help="The user's id; may be given several times.")
_session = click.option("--session", metavar="ID", help="One session, by its id.")


@_command("status")
def status(target: Target) -> Any:
    """Show all processes: are they ready, and how many connections and calls do they have?"""
    return target.ask("status")


@_command(
    "connections",
    _user,
    _session,
    click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="Connections to list."),
)
def connections(target: Target, user: str | None, session: str | None, limit: int) -> Any:
    """List connections with their subscriptions and calls in flight, the oldest first."""
    return target.ask("connections", {"user_id": user, "session_id": session, "limit": limit})


@_command(
    "disconnect",
    _users,
    _session,
    click.option("--code", type=click.IntRange(4000, 4999), help="The close code; 4503 by default."),
    click.option("--reason", help="The reason that clients get."),
)
def disconnect(target: Target, users: Sequence[str], session: str | None, code: int | None, reason: str | None) -> Any:
    """Close the connections of users, or one session. Clients may come back; revoke keeps them out."""
    body = {"user_ids": list(users) or None, "session_id": session, "code": code, "reason": reason}
    return target.ask("disconnect", body=body)


_tokens = (
    _user,
    _session,
    click.option("--token-id", metavar="JTI", help="One token, by its claim jti."),
    click.option("--issued-before", type=float, metavar="SECONDS", help="A time, in unix seconds."),
)


@_command(
    "revoke", *_tokens, click.option("--until", type=float, metavar="SECONDS", help="Until then; 7 days by default.")
)
def revoke(target: Target, **given: Any) -> Any:
    """Refuse tokens from now on, and close their connections: of a user, a session, or one token."""
    return target.ask("revoke", body=_named(given))


@_command("unrevoke", *_tokens)
def unrevoke(target: Target, **given: Any) -> Any:
    """Take a revocation back."""
    return target.ask("unrevoke", body=_named(given))


def _named(given: Mapping[str, Any]) -> dict[str, Any]:
    return {{"user": "user_id", "session": "session_id"}.get(name, name): value for name, value in given.items()}


@_command(
    "publish",
    click.argument("topic"),
    click.argument("event", default="null"),
    click.option("--target", "targets", metavar="ID", multiple=True, help="A user who gets it, in the place of all."),
)
def publish(target: Target, topic: str, event: str, targets: Sequence[str]) -> Any:
    """Publish an event, given as JSON, to all subscribers of its topic."""
    try:
        parsed = json.loads(event)
    except ValueError as error:
        raise click.UsageError("the event is no JSON; a text needs quotes, as in '\"hello\"'") from error
    body: dict[str, Any] = {"topic": topic, "target": list(targets) or None}
    return target.ask("publish", body=body if parsed is None else {**body, "event": parsed})


@_command("circuits")
def circuits(target: Target) -> Any:
    """List the circuits of services that do not answer, and the error budgets of users."""
    return target.ask("circuits")


@_command("reset", _user, click.option("--service", metavar="NAME", help="The circuit of this service alone."))
def reset(target: Target, user: str | None, service: str | None) -> Any:
    """Close circuits and forget failed calls: all, those of a service, or those of a user."""
    return target.ask("reset", body={"user_id": user, "service": service})


@_command("reload")
def reload(target: Target) -> Any:
    """Read the policy again, fetch the keys, and open the audit log again, as SIGHUP does."""
    return target.ask("reload", body={})


@_command(
    "log-level",
    click.argument("level", required=False, type=click.Choice(["debug", "info", "warning", "error", "critical"])),
)
def log_level(target: Target, level: str | None) -> Any:
    """Show the level of the log, or set it until the processes end."""
    return target.ask("log-level", body=None if level is None else {"level": level})


@_command(
    "debug-bundle", click.option("--out", metavar="PATH", help="The file to write; named after the time by default.")
)
def debug_bundle(target: Target, out: str | None) -> Any:
    """Save the state of all processes, without secrets, in a tar.gz."""
    content, headers = target.fetch("debug-bundle")
    disposition = {name.lower(): value for name, value in headers.items()}.get("content-disposition", "")
    named = re.search(r'filename="([A-Za-z0-9._-]+)"', disposition)
    path = Path(out or (named[1] if named else "nuropb-gateway.tar.gz"))
    # It has the ids of users.
    with open(path, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(content)
    return {"file": str(path), "bytes": len(content)}

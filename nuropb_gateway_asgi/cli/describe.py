"""``describe``: what may be called, and how."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from ._completion import complete_service
from ._output import dump, printable, say
from ._session import ENVIRONMENT, EXIT_CODES, SECONDS, connect_timeout, gateway_options, run, session
from ._target import Target

if TYPE_CHECKING:
    from rich.console import Console

    from ..client import Client

__all__ = ["describe"]

EPILOG = f"""{ENVIRONMENT} What the token may not call is not there. A gateway knows the services that its policy
names in full, and others once they have been called.

\b
Examples:
  nuropb-gateway describe
  nuropb-gateway describe orders
  nuropb-gateway describe orders.create --json

{EXIT_CODES}
"""


@click.command(epilog=EPILOG, short_help="Show what the token may call.")
@click.argument("name", metavar="[SERVICE[.METHOD]]", required=False, shell_complete=complete_service)
@gateway_options
@click.option("--timeout", type=SECONDS, metavar="SECONDS", help="How long to wait for the answer.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def describe(name: str | None, target: Target, token: str | None, timeout: float | None, as_json: bool) -> int:
    """Show what the token may call: of all services, of one, or one method."""

    async def describe() -> int:
        async with session(target, token, timeout=connect_timeout(timeout)) as gateway:
            found = await _find(gateway, name, timeout)
        if found is None:
            say(f"method_not_found: there is no {name} that this token may call")
            return 4
        if as_json:
            click.echo(dump(found, pretty=sys.stdout.isatty()))
        else:
            _print(found)
        return 0

    return run(describe())


async def _find(gateway: Client, name: str | None, timeout: float | None) -> dict[str, Any] | None:  # noqa: ASYNC109
    """The description of what ``name`` is: a service, or if there is none such, a method; None if it is neither."""
    from ..client import CallFailed

    service, dot, method = (name or "").rpartition(".")
    try:
        return await gateway.describe(name, timeout=timeout)
    except CallFailed as error:
        # With a dot in it, it need not be a service at all.
        if not dot or error.code not in ("permission_denied", "service_unavailable", "bad_request"):
            raise
    found = await gateway.describe(service, timeout=timeout)
    described = found["services"].get(service, {})
    if method not in described.get("methods", {}):
        return None
    only = {**described, "methods": {method: described["methods"][method]}}
    return {**found, "services": {service: only}}


# --- as a table ---------------------------------------------------------------------------------------------------


def _print(found: Mapping[str, Any]) -> None:
    # Only here, as it takes time to import.
    from rich.console import Console

    console = Console(highlight=False)
    with console.capture() as captured:
        _draw(console, found)
    # Rows are filled up with spaces, which are in the way of whoever copies them.
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _draw(console: Console, found: Mapping[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    for service, described in found["services"].items():
        version = described.get("version")
        # Text, not str: whatever a service says of itself is no markup.
        console.print(Text(printable(f"{service} {version or ''}".rstrip()), style="bold"))
        if described.get("description"):
            console.print(Text(_first_line(described["description"])))
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
        for row in method_rows(described.get("methods", {})):
            table.add_row(*(Text(cell) for cell in row))
        console.print(table)
        console.print()
    if not found["services"]:
        console.print("There is nothing that this token may call, as far as the gateway knows.")
    if found.get("unavailable"):
        console.print(Text(f"Not to be reached: {printable(', '.join(found['unavailable']))}"))


def method_rows(methods: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """For each method how it is called, and what it does."""
    for name, described in sorted(methods.items()):
        parameters = described.get("parameters") or {}
        required = parameters.get("required") or []
        words = [_parameter(each, about, each in required) for each, about in parameters.get("properties", {}).items()]
        yield printable(" ".join([name, *words])), _first_line(described.get("description") or "")


def _parameter(name: str, about: Any, required: bool) -> str:
    type_ = str(about.get("type", "any"))
    word = f"{name}{'=' if type_ == 'str' else ':='}{'' if type_.lower() == 'any' else f'<{type_}>'}"
    return word if required else f"[{word}]"


def _first_line(text: str) -> str:
    return printable(text.strip().partition("\n")[0])

"""The command ``describe``: the methods that a token may call, and their parameters."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import click

from ._completion import complete_service
from ._errors import EXIT_CODES
from ._options import ENVIRONMENT, SECONDS, gateway_options
from ._output import dump, printable, say
from ._session import connect_timeout, run, session
from ._target import Target

if TYPE_CHECKING:
    from rich.console import Console

    from ..client import Client

__all__ = ["describe"]

EPILOG: Final = f"""{ENVIRONMENT} Methods that the token may not call are left out. A gateway knows the services that
its policy names in full, and other services once they have been called.

\b
Examples:
  nuropb-gateway describe
  nuropb-gateway describe orders
  nuropb-gateway describe orders.create --json

{EXIT_CODES}
"""


@click.command(epilog=EPILOG, short_help="Show the methods that the token may call.")
@click.argument("name", metavar="[SERVICE[.METHOD]]", required=False, shell_complete=complete_service)
@gateway_options
@click.option("--timeout", type=SECONDS, metavar="SECONDS", help="Timeout of the answer.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def describe(name: str | None, target: Target, token: str | None, timeout: float | None, as_json: bool) -> int:
    """Show the methods that the token may call: of all services, of one service, or one method."""

    async def describe() -> int:
        async with session(target, token, timeout=connect_timeout(timeout)) as gateway:
            found = await _find(gateway, name, timeout)
        if found is None:
            say(f"method_not_found: the token may call no method {name}")
            return 4
        if as_json:
            click.echo(dump(found, pretty=sys.stdout.isatty()))
        else:
            _print(found)
        return 0

    return run(describe())


async def _find(gateway: Client, name: str | None, timeout: float | None) -> dict[str, Any] | None:  # noqa: ASYNC109
    """Return the description of the service ``name``, else of the method; None if it is neither."""
    from ..client import CallFailed

    service, dot, method = (name or "").rpartition(".")
    try:
        return await gateway.describe(name, timeout=timeout)
    except CallFailed as error:
        # A name with a dot may be a method.
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
    # Imported here, as it takes time.
    from rich.console import Console

    console = Console(highlight=False)
    with console.capture() as captured:
        _draw(console, found)
    # Rows are padded with spaces, which would be copied with the text.
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _draw(console: Console, found: Mapping[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    for service, described in found["services"].items():
        version = described.get("version")
        former = " (no answer: this is its former description)" if service in found.get("unavailable", ()) else ""
        # Text, not str: descriptions come from services, and must not be taken for markup.
        console.print(Text(printable(f"{service} {version or ''}".rstrip() + former), style="bold"))
        if described.get("description"):
            console.print(Text(_first_line(described["description"])))
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
        for row in method_rows(described.get("methods", {})):
            table.add_row(*(Text(cell) for cell in row))
        console.print(table)
        console.print()
    if not found["services"]:
        console.print("The token may call no method of the services that the gateway knows.")
    if found.get("unavailable"):
        console.print(Text(f"No answer from: {printable(', '.join(found['unavailable']))}"))


def method_rows(methods: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield, for each method, how to call it, and the first line of its description."""
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

"""``call``: one call, as a client makes it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from ._completion import complete_method, complete_service
from ._output import dump
from ._parameters import FORMS, parse_parameters
from ._session import ENVIRONMENT, EXIT_CODES, SECONDS, connect_timeout, gateway_options, run, session
from ._target import Target

if TYPE_CHECKING:
    from ..client import Client

__all__ = ["call"]

EPILOG = f"""{ENVIRONMENT} The result is on standard output: JSON, in one line unless that is a terminal. What went
wrong is on standard error, in a line.

{FORMS}

\b
Examples:
  nuropb-gateway call demo add a:=2 b:=3
  nuropb-gateway call orders get '{{"number": 42}}' --timeout 5
  nuropb-gateway call orders find status=open --url wss://gateway.example.com/ws --token-file token
  nuropb-gateway call --command orders create - < order.json

{EXIT_CODES}
"""


@click.command(epilog=EPILOG, short_help="Call a method of a service.")
@click.argument("service", shell_complete=complete_service)
@click.argument("method", shell_complete=complete_method)
@click.argument("parameters", nargs=-1)
@gateway_options
@click.option("--timeout", type=SECONDS, metavar="SECONDS", help="How long to wait for the answer.")
@click.option("--command", is_flag=True, help="Do not wait until it has run: there is no result.")
@click.option("--trace-id", metavar="ID", help="What to look for in the logs of gateway and service.")
@click.option("--raw", is_flag=True, help="Print a result that is text without quotes, and all else in one line.")
def call(
    service: str,
    method: str,
    parameters: tuple[str, ...],
    target: Target,
    token: str | None,
    timeout: float | None,
    command: bool,
    trace_id: str | None,
    raw: bool,
) -> int:
    """Call METHOD of SERVICE with PARAMETERS."""
    check_names(service, method)
    params = parse_words(parameters)

    async def ask(gateway: Client) -> Any:
        ask = gateway.command if command else gateway.request
        return await ask(service, method, params, timeout=timeout, trace_id=trace_id)

    async def call() -> int:
        async with session(target, token, timeout=connect_timeout(timeout)) as gateway:
            result = await ask(gateway)
        if not command:
            is_text = raw and isinstance(result, str)
            click.echo(result if is_text else dump(result, pretty=not raw and sys.stdout.isatty()))
        return 0

    return run(call())


def check_names(service: str, method: str) -> None:
    """Raise UsageError for words that are in the wrong place."""
    if "://" in service:
        raise click.UsageError("the URL of the gateway is given by --url; SERVICE and METHOD are two words")
    if "=" in method or method.startswith("{"):
        raise click.UsageError(f"{method.partition('=')[0]} is no method; SERVICE and METHOD are two words: demo add")


def parse_words(words: tuple[str, ...]) -> dict[str, Any]:
    """:func:`parse_parameters`, whose errors are those of a command line here."""
    try:
        return parse_parameters(words, sys.stdin.read)
    except ValueError as error:
        raise click.UsageError(f"PARAMETERS: {error}") from error

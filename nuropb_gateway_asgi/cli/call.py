"""The command ``call``: one call of a method."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import click

from ._completion import complete_method, complete_service
from ._errors import EXIT_CODES, TIMEOUT_REMEDY
from ._options import ENVIRONMENT, SECONDS, gateway_options
from ._output import dump, printable_lines
from ._parameters import FORMS, parse_parameters
from ._session import connect_timeout, run, session
from ._target import Target

if TYPE_CHECKING:
    from ..client import Client

__all__ = ["call", "parse_words", "split_words"]

EPILOG: Final = f"""{ENVIRONMENT} The result goes to standard output as JSON: in one line, or indented on a terminal. An
error goes to standard error, in one line.

{FORMS}

\b
Examples:
  nuropb-gateway call demo add a:=2 b:=3
  nuropb-gateway call demo.add a:=2 b:=3
  nuropb-gateway call orders get '{{"number": 42}}' --timeout 5
  nuropb-gateway call orders find status=open --url wss://gateway.example.com/ws --token-file token
  nuropb-gateway call --command orders create - < order.json

{EXIT_CODES}
"""


@click.command(epilog=EPILOG, short_help="Call a method of a service.")
@click.argument("service", shell_complete=complete_service)
@click.argument("method", required=False, shell_complete=complete_method)
@click.argument("parameters", nargs=-1)
@gateway_options
@click.option("--timeout", type=SECONDS, metavar="SECONDS", help="Timeout of the call.")
@click.option("--command", is_flag=True, help="Send a command: do not wait until it has run, and print no result.")
@click.option("--trace-id", metavar="ID", help="Trace id for the logs of gateway and service.")
@click.option("--raw", is_flag=True, help="Print text without quotes, and everything else in one line.")
def call(
    service: str,
    method: str | None,
    parameters: tuple[str, ...],
    target: Target,
    token: str | None,
    timeout: float | None,
    command: bool,
    trace_id: str | None,
    raw: bool,
) -> int:
    """Call METHOD of SERVICE with PARAMETERS. SERVICE.METHOD is one word for both."""
    service, method, parameters = split_words(service, method, parameters)
    params = parse_words(parameters)

    async def ask(gateway: Client) -> Any:
        ask = gateway.command if command else gateway.request
        return await ask(service, method, params, timeout=timeout, trace_id=trace_id)

    async def call() -> int:
        async with session(target, token, timeout=connect_timeout(timeout)) as gateway:
            result = await ask(gateway)
        if not command:
            is_terminal = sys.stdout.isatty()
            if raw and isinstance(result, str):
                # Files and pipes get the text as it is. A terminal would obey what a service hides in it.
                click.echo(printable_lines(result) if is_terminal else result, color=True)
            else:
                click.echo(dump(result, pretty=is_terminal and not raw))
        return 0

    return run(call(), after_timeout="" if command else TIMEOUT_REMEDY)


def split_words(service: str, method: str | None, parameters: tuple[str, ...]) -> tuple[str, str, tuple[str, ...]]:
    """Return service, method and parameters; ``demo.add`` stands for ``demo add``.

    Raises UsageError for a URL in the place of a name, and for parameters in the place of a method.
    """
    if "://" in service:
        raise click.UsageError("SERVICE is a URL: give it by --url, then SERVICE and METHOD")
    if method is None or "=" in method or method.startswith("{") or method == "-":
        parameters = parameters if method is None else (method, *parameters)
        service, _, method = service.rpartition(".")
        if not service or not method:
            raise click.UsageError("SERVICE needs a METHOD: demo add, or demo.add")
    return service, method, parameters


def parse_words(words: tuple[str, ...]) -> dict[str, Any]:
    """Parse parameters. Raises UsageError for invalid ones."""
    try:
        return parse_parameters(words, sys.stdin.read)
    except ValueError as error:
        raise click.UsageError(f"PARAMETERS: {error}") from error

"""The command ``doctor``: its options, and its output as lines or JSON."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from typing import Any, Final

import click

from .._completion import complete_method, complete_service
from .._options import ENVIRONMENT, SECONDS, find_token, source_options
from .._output import dump, printable
from .._parameters import FORMS
from ..call import parse_words, split_words
from .findings import Finding
from .steps import HALTED, Call, Steps

__all__ = ["doctor"]

EPILOG: Final = f"""{ENVIRONMENT} Each step has one line; a second line says how to fix a problem. Name a method without
side effects to test a call, too. Tokens are never printed.

{FORMS}

\b
Examples:
  nuropb-gateway doctor
  nuropb-gateway doctor --url wss://gateway.example.com/ws --token-file token
  nuropb-gateway doctor demo add a:=2 b:=3 --topic demo.tick
  nuropb-gateway doctor --origin https://app.example.com

\b
Exit codes:
  0  no problem found
  1  a problem was found
  2  invalid command line
"""

_MARKS: Final = {"ok": ("ok", "green"), "wrong": ("WRONG", "red"), "not checked": ("not checked", None)}


@click.command(epilog=EPILOG, short_help="Find out why a client cannot use a gateway.")
@click.argument("service", required=False, shell_complete=complete_service)
@click.argument("method", required=False, shell_complete=complete_method)
@click.argument("parameters", nargs=-1)
@source_options
@click.option("--topic", help="Also subscribe to this topic.")
@click.option(
    "--origin", metavar="ORIGIN", help="Also ask whether a page of this origin may connect: scheme://host:port."
)
@click.option(
    "--timeout", type=SECONDS, metavar="SECONDS", default=5.0, show_default=True, help="Timeout of each step."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(
    service: str | None,
    method: str | None,
    parameters: tuple[str, ...],
    url: str,
    token: str | None,
    token_file: str | None,
    topic: str | None,
    origin: str | None,
    timeout: float,
    as_json: bool,
) -> int:
    """Test the way to a gateway step by step, and say how to fix the problems."""
    call: Call | None = None
    if service is not None:
        service, method, parameters = split_words(service, method, parameters)
        call = (service, method, parse_words(parameters))
    taken: list[dict[str, Any]] = []

    def on_step(name: str, finding: Finding, seconds: float) -> None:
        taken.append({"step": name, **dataclasses.asdict(finding), "seconds": round(seconds, 6)})
        if not as_json and finding is not HALTED:
            _print(name, finding)

    steps = Steps(on_step, timeout)
    asyncio.run(steps.run(url, lambda: find_token(token, token_file), call, topic, origin))
    well = all(step["status"] != "wrong" for step in taken)
    halted = [step["step"] for step in taken if step["found"] == HALTED.found]
    if halted and not as_json:
        click.echo(f"not checked: {', '.join(halted)} ({HALTED.found})")
    if as_json:
        click.echo(dump({"well": well, "steps": taken}, pretty=sys.stdout.isatty()))
    return 0 if well else 1


def _print(name: str, finding: Finding) -> None:
    mark, colour = _MARKS[finding.status]
    click.echo(f"{name:<10}{click.style(mark, fg=colour)}: {printable(finding.found)}")
    if finding.mend is not None:
        click.echo(f"{'':<10}-> {printable(finding.mend)}")

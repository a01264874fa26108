"""The lines that ``dev`` prints once it listens: the mocks, the console, and tokens of several users."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from .._output import printable

if TYPE_CHECKING:
    from ...mocks.sources import Mocked

__all__ = ["announce"]


def announce(url: str, console: str | None, tokens: Mapping[str, str], mocked: Mapping[str, Mocked]) -> None:
    """Print where the gateway is, and how to use it. The first token signs in at the console."""
    click.echo(f"\n{_table(mocked)}\n\nThe gateway is at {url}")
    first = next(iter(tokens.values()), None)
    if console is not None:
        link = console if first is None else f"{console}#token={first}"
        click.echo(f"The console is here (this link signs you in):\n\n{link}\n")
    for user, token in tokens.items():
        click.echo(f"Token of {printable(user)}, valid for one day, also after a restart:\n\n{token}\n")
    sys.stdout.flush()


def _table(mocked: Mapping[str, Mocked]) -> str:
    # Imported here, as it takes time.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("Mocked", "Answered by", "From"):
        table.add_column(title)
    for name, each in sorted(mocked.items()):
        for method, how in each.methods or (("(no method)", ""),):
            # Text, not str: names and descriptions must not be taken for markup.
            table.add_row(*(Text(printable(cell)) for cell in (f"{name}.{method}", how, each.source)))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())

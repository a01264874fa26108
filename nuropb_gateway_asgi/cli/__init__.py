"""What does an operator type? The command line, one module for each command."""

from __future__ import annotations

from collections.abc import Sequence

import click

from .._version import __version__
from ..exceptions import SettingsError
from .bench import bench
from .call import call
from .check import check
from .describe import describe
from .doctor import doctor
from .explain import explain
from .gen_client import gen_client_command
from .listen import listen
from .serve import serve
from .token import token

__all__ = ["main"]

EPILOG = """\b
Examples:
  nuropb-gateway                          run the gateway at 127.0.0.1:8000
  nuropb-gateway serve --port 8080 --workers 4
  nuropb-gateway check                    is everything set up?
  nuropb-gateway explain orders.create    may this token call it, and why?
  nuropb-gateway gen-client --lang ts http://127.0.0.1:8000 --out gateway.ts
  export NUROPB_GATEWAY_TOKEN=$(nuropb-gateway token --user alice)
  nuropb-gateway call demo add a:=2 b:=3
  nuropb-gateway doctor                   what is wrong between here and there?

\b
Completion, for bash (or zsh, fish):
  eval "$(_NUROPB_GATEWAY_COMPLETE=bash_source nuropb-gateway)"

\b
Exit codes:
  0  all went well
  2  the command line or a setting is wrong
  all others are the commands' own: see their --help
"""


class _Commands(click.Group):
    """Commands of which ``serve`` is meant when none is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        names_none = not args or (args[0].startswith("-") and args[0] not in ("--help", "--version"))
        if names_none and not ctx.resilient_parsing:  # as it is for completion
            args = ["serve", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Commands, epilog=EPILOG)
@click.version_option(__version__, message="%(version)s")
def commands() -> None:
    """Put the services of a NuroPb mesh on the web. Settings come from the environment (NUROPB_GATEWAY_...)."""


# A new command is a module here with a click command in it, and a line below.
commands.add_command(serve)
commands.add_command(call)
commands.add_command(token)
commands.add_command(check)
commands.add_command(explain)
commands.add_command(gen_client_command)
commands.add_command(listen)
commands.add_command(describe)
commands.add_command(bench)
commands.add_command(doctor)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the result is the exit code."""
    try:
        return commands.main(arguments, prog_name="nuropb-gateway", standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (SettingsError, OSError, ValueError, OverflowError) as error:  # the last: a port above 65535
        click.echo(f"nuropb-gateway: {error}", err=True)
        return 2
    except (click.Abort, KeyboardInterrupt):
        return 130

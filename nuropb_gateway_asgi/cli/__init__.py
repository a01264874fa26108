"""Which commands can an operator type? The command line: a module or a package for each command.

For the gateway:

* ``serve``: run it; ``dev``: run it on mocked services; ``record``: record the traffic of its clients;
* ``check``: are settings, policy, keys, provider and broker in order?
* ``token``: make a token for development;
* ``explain``: may a token call a method, and which rule decides?
* ``admin``: connections, revocations, circuits and a debug bundle of a running gateway.

For its clients:

* ``call``, ``listen``, ``describe``: calls, events, and the methods that a token may call;
* ``bench``: throughput and latency of a method;
* ``doctor``: why does a client not reach a gateway?
* ``gen_client``: a typed client module; ``contract``: do the services still fit the clients?

Shared by the commands: ``_options`` (URL and token), ``_target`` (a URL, parsed), ``_session`` (one connection),
``_errors`` (error lines and exit codes), ``_parameters`` (of a call), ``_output`` (JSON, safe for terminals),
``_numbers`` (percentiles) and ``_completion`` (for shells).
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

import click

from .._version import __version__
from ..exceptions import SettingsError
from ..settings import ENV_PREFIX
from ._output import printable_lines
from .admin import admin
from .bench import bench
from .call import call
from .check import check
from .contract import contract
from .describe import describe
from .dev import dev
from .doctor import doctor
from .explain import explain
from .gen_client import gen_client_command
from .listen import listen
from .record import record
from .serve import serve
from .token import token

__all__ = ["main"]

EPILOG = """\b
Examples:
  nuropb-gateway                          run the gateway at 127.0.0.1:8000
  nuropb-gateway serve --port 8080 --workers 4
  nuropb-gateway dev --mock services.yaml run it on mocked services
  nuropb-gateway check                    check settings, policy, keys and broker
  nuropb-gateway explain orders.create    may this token call it, and why?
  nuropb-gateway gen-client --lang ts http://127.0.0.1:8000 --out gateway.ts
  export NUROPB_GATEWAY_TOKEN=$(nuropb-gateway token --user alice)
  nuropb-gateway call demo add a:=2 b:=3
  nuropb-gateway doctor                   find out why a client cannot connect

\b
Completion, for bash (or zsh, fish):
  eval "$(_NUROPB_GATEWAY_COMPLETE=bash_source nuropb-gateway)"

\b
Exit codes:
  0  success
  2  invalid command line or setting
  other codes depend on the command: see its --help
"""


class _Commands(click.Group):
    """The commands; ``serve`` is the default."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if _is_unnamed(args) and not ctx.resilient_parsing:  # completion offers the names of all commands
            args = ["serve", *args]
        return super().parse_args(ctx, args)


def _is_unnamed(args: Sequence[str]) -> bool:
    return not args or (args[0].startswith("-") and args[0] not in ("--help", "--version"))


def _serves_with_json(args: Sequence[str]) -> bool:
    """Whether the command is ``serve``, and LOG_FORMAT is json: read here, so that errors of settings are JSON, too."""
    is_json = os.environ.get(f"{ENV_PREFIX}LOG_FORMAT", "").lower() == "json"
    return is_json and "--help" not in args and (_is_unnamed(args) or args[0] == "serve")


@click.group(cls=_Commands, epilog=EPILOG)
@click.version_option(__version__, message="%(version)s")
def commands() -> None:
    """Serve the services of a NuroPb mesh to web clients. Settings come from the environment (NUROPB_GATEWAY_...)."""


# To add a command, write a module with a click command, and add a line here.
commands.add_command(serve)
commands.add_command(dev)
commands.add_command(record)
commands.add_command(call)
commands.add_command(token)
commands.add_command(check)
commands.add_command(explain)
commands.add_command(admin)
commands.add_command(gen_client_command)
commands.add_command(contract)
commands.add_command(listen)
commands.add_command(describe)
commands.add_command(bench)
commands.add_command(doctor)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    if _serves_with_json(sys.argv[1:] if arguments is None else arguments):
        from ..observability.logs import print_json_lines

        print_json_lines()
    try:
        return commands.main(arguments, prog_name="nuropb-gateway", standalone_mode=False) or 0
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        click.echo(printable_lines(shown.getvalue()), nl=False, err=True)
        return error.exit_code
    except (SettingsError, OSError, ValueError, OverflowError) as error:  # an OverflowError: a port above 65535
        click.echo(f"nuropb-gateway: {printable_lines(str(error))}", err=True)
        return 2
    except (click.Abort, KeyboardInterrupt):
        return 130

"""The command ``dev``: its options, and the combinations that it rejects."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from ...settings import ENV_PREFIX

__all__ = ["dev"]

EPILOG: Final = f"""Everything is exposed to everybody, unless {ENV_PREFIX}EXPOSE, {ENV_PREFIX}EXPOSE_TOPICS or
{ENV_PREFIX}POLICY say otherwise. Other settings come from the environment, as for 'serve'. Files are loaded again when
they change; connections stay. docs/development-without-a-mesh.md has the format of mock files.

\b
Examples:
  nuropb-gateway dev --mock services.yaml
  nuropb-gateway dev --service shop.services:Orders --mock prices.json --user alice --user bob
  nuropb-gateway dev --openapi http-api.json

\b
Exit codes:
  0  stopped by a signal
  2  invalid command line, setting or file
  3  the server could not start
"""

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(epilog=EPILOG, short_help="Run the gateway on mocked services.")
@click.option("--mock", "mocks", multiple=True, type=_FILE, help="Services in a file: YAML, JSON or TOML.")
@click.option(
    "--service", "classes", multiple=True, metavar="MODULE:CLASS", help="A service object, as nuropb has them."
)
@click.option("--openapi", multiple=True, type=_FILE, help="An OpenAPI document; answers are its examples and schemas.")
@click.option("--replay", "replays", multiple=True, type=_FILE, help="A recording of 'nuropb-gateway record'.")
@click.option(
    "--user", "users", multiple=True, default=("alice", "bob"), show_default=True, help="Print a token for it."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Repeats the delays of a run.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port; 0 picks a free one."
)
def dev(
    mocks: tuple[Path, ...],
    classes: tuple[str, ...],
    openapi: tuple[Path, ...],
    replays: tuple[Path, ...],
    users: tuple[str, ...],
    seed: int,
    host: str,
    port: int,
) -> int:
    """Run the gateway on mocked services, for a page whose services are not there yet."""
    if not (mocks or classes or openapi or replays):
        raise click.UsageError("nothing to serve; give --mock, --service, --openapi or --replay")
    from ...authentication.identity import is_name
    from ...mocks.sources import Sources
    from .running import run

    for user in users:
        if not is_name(user):
            raise click.UsageError("--user is a printable text of 1 to 256 characters")
    return run(Sources(mocks, openapi, classes, replays, seed=seed), users, host, port)

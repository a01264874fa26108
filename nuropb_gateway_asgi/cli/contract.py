"""The commands ``contract export`` and ``contract check``: do the services of now still fit the clients?"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ._options import ENVIRONMENT, gateway_options
from ._output import counted, printable, say
from ._session import run, session
from ._target import Target

if TYPE_CHECKING:
    from ..client import Client
    from ..contracts.compare import ContractFile

__all__ = ["contract"]

EPILOG: Final = f"""{ENVIRONMENT} Keep the file beside the client that it is for, and check it in CI, with the token of
such a client.

\b
Examples:
  nuropb-gateway contract export --client page --only orders.create --only orders.list -o page.json
  nuropb-gateway contract check --against page.json --against app.json
  nuropb-gateway contract check --against page.json --mock services.yaml

\b
Exit codes:
  0  nothing breaks
  1  something breaks, or a method of --only is none
  2  invalid command line or file
  3  no connection
  5  the token was refused
"""
#: Errors of ``describe`` that mean that a client can use no method of the service.
_GONE: Final = frozenset({"permission_denied", "service_unavailable", "method_not_found", "bad_request"})

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(epilog=EPILOG, short_help="Check that services fit the clients made for them.")
def contract() -> None:
    """Check that the services of now fit the clients that were made for them."""


@contract.command(epilog=EPILOG)
@gateway_options
@click.option("--client", "name", default="", metavar="NAME", help="The client's name, for the output of 'check'.")
@click.option("--only", multiple=True, metavar="SERVICE.METHOD", help="A method that the client uses; all by default.")
@click.option(
    "--topic", "topics", multiple=True, metavar="PATTERN", help="A topic pattern that the client subscribes to."
)
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="File; standard output by default."
)
def export(
    target: Target, token: str | None, name: str, only: tuple[str, ...], topics: tuple[str, ...], output: Path | None
) -> int:
    """Write the contract of a client: the methods that its token may call, and their parameters."""

    async def export() -> int:
        from ..contracts.compare import contract_of

        services = sorted({each.rpartition(".")[0] for each in only})
        async with session(target, token) as gateway:
            described = await _described(gateway, services) if only else await gateway.describe()
        _write(contract_of(described, client=name, only=only, topics=topics), output)
        return 0

    return run(export())


def _write(made: ContractFile, output: Path | None) -> None:
    import msgspec

    text = msgspec.json.format(msgspec.json.encode(made, order="deterministic"), indent=2).decode() + "\n"
    if output is None:
        click.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")
        say(f"{counted(len(made.services), 'service')} in {output}")


@contract.command(epilog=EPILOG)
@gateway_options
@click.option("--against", "files", multiple=True, required=True, type=_FILE, help="A contract; may be repeated.")
@click.option("--mock", "mocks", multiple=True, type=_FILE, help="Check this file of mocks, and no gateway.")
@click.option("--openapi", multiple=True, type=_FILE, help="Check this OpenAPI document, and no gateway.")
@click.option("--service", "classes", multiple=True, metavar="MODULE:CLASS", help="Check this class, and no gateway.")
def check(
    target: Target,
    token: str | None,
    files: tuple[Path, ...],
    mocks: tuple[Path, ...],
    openapi: tuple[Path, ...],
    classes: tuple[str, ...],
) -> int:
    """Compare the services of now with contracts, and print what breaks whom."""
    from ..contracts.compare import contract_of, read_contract

    contracts = [read_contract(each.read_bytes(), str(each)) for each in files]
    if mocks or openapi or classes:
        now = contract_of(_mocked(mocks, openapi, classes))
        now.topics = [topic for each in contracts for topic in each.topics]  # mocks do not restrict topics
        return _report(contracts, now)

    async def check() -> int:
        services = sorted({service for each in contracts for service in each.services})
        async with session(target, token) as gateway:
            now = contract_of(await _described(gateway, services))
            now.topics = await _allowed(gateway, (topic for each in contracts for topic in each.topics))
        return _report(contracts, now)

    return run(check())


async def _described(gateway: Client, services: Iterable[str]) -> dict[str, Any]:
    """Describe each service by name: a gateway need not know those that its policy does not name in full."""
    from ..client import CallFailed

    found: dict[str, Any] = {}
    for service in services:
        try:
            found |= (await gateway.describe(service))["services"]
        except CallFailed as error:
            if error.code not in _GONE:
                raise
    return {"services": found}


async def _allowed(gateway: Client, topics: Iterable[str]) -> list[str]:
    """Return those of the topic patterns that the token may subscribe to."""
    from ..client import CallFailed

    allowed = []
    for topic in dict.fromkeys(topics):
        try:
            async with gateway.subscribe(topic):
                allowed.append(topic)
        except CallFailed as error:
            if error.code not in _GONE:
                raise
    return allowed


def _mocked(mocks: Sequence[Path], openapi: Sequence[Path], classes: Sequence[str]) -> dict[str, Any]:
    """Describe services without a gateway, in the shape of its answers."""
    from ..mocks.sources import Sources
    from ..wire.description import describe_for_clients, parse_description
    from ..wire.services import describe_service, to_json

    services = {}
    for name, each in Sources(mocks, openapi, classes).load().items():
        described = parse_description(name, to_json(describe_service(each.service)), 0.0)
        services[name] = describe_for_clients(described, sorted(described.methods or ()))
    return {"services": services}


def _report(contracts: Sequence[ContractFile], now: ContractFile) -> int:
    from ..contracts.compare import breaks

    broken = 0
    for each in contracts:
        for found in breaks(each, now):
            broken += not found.is_warning
            word = "may break" if found.is_warning else "breaks"
            click.echo(printable(f"{word} {found.client}: {found.name}: {found.fact}"))
    if not broken:
        say(f"nothing breaks {', '.join(each.client for each in contracts)}")
    sys.stdout.flush()
    return 1 if broken else 0

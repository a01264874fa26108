"""``check``: whether everything is there that the gateway needs."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import click

from ..exceptions import GatewayError, SettingsError
from ..settings import Settings

if TYPE_CHECKING:
    from ..authentication import Identity
    from ..gateway import Gateway

__all__ = ["check"]

EPILOG = """One line each for the settings, the policy, the keys of tokens, their provider and the broker, with what is
wrong if something is. Nothing is started, and nothing is left on the broker.

\b
Exit codes:
  0  all is well
  1  something is wrong
"""


@click.command(epilog=EPILOG)
def check() -> int:
    """Check settings, policy, keys, provider and broker."""
    settings: list[Settings] = []

    def read() -> str:
        settings.append(Settings.from_env())
        return f"{settings[0].mesh_url.partition(':')[0]} mesh, clients at {settings[0].path}"

    well = _report("settings", read)
    for name, examine in EXAMINED.items():
        well &= _report(name, lambda examine=examine: examine(settings[0]) if settings else None)  # type: ignore[misc]
    return 0 if well else 1


def _report(name: str, examine: Callable[[], str | None]) -> bool:
    """Say in a line what was found; None is found where something else has to be right first."""
    try:
        found = examine()
    except (GatewayError, OSError) as error:
        click.echo(f"{name:<10}WRONG: {error}")
        return False
    click.echo(f"{name:<10}{'not checked' if found is None else f'ok: {found}'}")
    return True


def _policy(settings: Settings) -> str:
    from ..gateway import Gateway

    async def nobody(token: str) -> Identity | None:
        return None

    policy = Gateway(settings, authenticator=nobody).policy
    return "there is something that clients may do" if policy.exposes_anything else "nothing is exposed to clients"


def _without_policy(settings: Settings) -> Gateway:
    from ..authorization import ExposePolicy
    from ..gateway import Gateway

    return Gateway(dataclasses.replace(settings, allowed_origins=()), policy=ExposePolicy((), ()))


def _keys(settings: Settings) -> str:
    if _without_policy(settings).development_token is not None:
        return "none is set, so each run makes one up"
    unchecked = [name for name in ("issuer", "audience") if not getattr(settings, f"jwt_{name}")]
    return (
        f"but the {' and the '.join(unchecked)} of tokens is not checked" if unchecked else "issuer and audience, too"
    )


def _provider(settings: Settings) -> str | None:
    try:
        key_set = _without_policy(settings).key_set
    except SettingsError:
        return None
    return "none, the key is here" if key_set is None else asyncio.run(key_set.probe())


def _broker(settings: Settings) -> str:
    if settings.embedded:
        return "none, the mesh is embedded"
    from ..mesh.rabbitmq import probe

    return asyncio.run(probe(settings.mesh_url, settings.service_name))


EXAMINED: Final[dict[str, Callable[[Settings], str | None]]] = {
    "policy": _policy,
    "keys": _keys,
    "provider": _provider,
    "broker": _broker,
}

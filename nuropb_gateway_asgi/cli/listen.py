"""The command ``listen``: events as they arrive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from ._errors import EXIT_CODES, describe_error
from ._options import ENVIRONMENT, SECONDS, gateway_options
from ._output import counted, dump, say
from ._session import CONNECT_TIMEOUT, run, session
from ._target import Target

if TYPE_CHECKING:
    from ..client import Dropped, Gap, State

__all__ = ["listen"]

EPILOG: Final = f"""{ENVIRONMENT} Each event is a line of JSON on standard output. A lost connection is restored;
standard error reports that, and events that may have been missed. Ctrl-C stops the command.

\b
Topics:
  * matches one word, # any number of words. Quote them for the shell: 'orders.#'

\b
Examples:
  nuropb-gateway listen demo.tick --count 3
  nuropb-gateway listen 'orders.#' users.alice.news | jq .event

{EXIT_CODES}
"""


@click.command(epilog=EPILOG, short_help="Print events as they arrive.")
@click.argument("topics", metavar="TOPIC...", nargs=-1, required=True)
@gateway_options
@click.option("--count", type=click.IntRange(min=1), help="Stop after this number of events.")
@click.option(
    "--timeout",
    type=SECONDS,
    metavar="SECONDS",
    default=CONNECT_TIMEOUT,
    show_default=True,
    help="Timeout of the first connection.",
)
def listen(topics: tuple[str, ...], target: Target, token: str | None, count: int | None, timeout: float) -> int:
    """Print the events of all TOPICs until Ctrl-C."""

    async def listen() -> int:
        left = count
        async with session(target, token, timeout=timeout, reconnect=True) as gateway:
            gateway.on("state", _on_state)
            subscription = gateway.subscribe(topics)
            subscription.on("gap", _on_gap)
            subscription.on("dropped", _on_dropped)
            async with subscription:
                say(f"listening to {', '.join(topics)}")
                async for event in subscription:
                    line = {"topic": event.topic, "event": event.event, "trace_id": event.trace_id}
                    click.echo(dump(line))
                    if left is not None and (left := left - 1) == 0:
                        break
        return 0

    return run(listen())


def _on_state(state: State) -> None:
    if state.name == "reconnecting" and state.error is not None:
        say(f"{describe_error(state.error)}; reconnecting in {state.delay or 0.0:.1f} s")
    elif state.name == "open":
        say("reconnected")


def _on_gap(gap: Gap) -> None:
    say(f"events of {', '.join(gap.topics)} may have been missed ({gap.reason})")


def _on_dropped(dropped: Dropped) -> None:
    were = "was dropped: it" if dropped.count == 1 else "were dropped: they"
    say(f"{counted(dropped.count, 'event')} {were} arrived faster than read")

"""The command ``record``: its options, and the file."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path
from typing import Final

import click

from ...settings import ENV_PREFIX
from .._options import DEFAULT_URL
from .._output import say
from .._recording import opened
from .._target import parse_url

__all__ = ["record"]

EPILOG: Final = f"""Pages and programs connect to the printed URL in place of the gateway, and every call with its
answer and every event goes into the file. JSON web tokens and members such as token, password and secret are redacted;
name others with --redact. 'nuropb-gateway dev --replay FILE' answers from it. {ENV_PREFIX}URL names the gateway, too.

\b
Examples:
  nuropb-gateway record --url wss://gateway.example.com/ws -o traffic.jsonl --redact email

\b
Exit codes:
  0  stopped by a signal
  2  invalid command line, or no file can be written
"""


@click.command(epilog=EPILOG, short_help="Record the calls and events of clients.")
@click.option(
    "--url", metavar="URL", envvar=f"{ENV_PREFIX}URL", default=DEFAULT_URL, show_default=True, help="The gateway."
)
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="A new file.")
@click.option("--redact", multiple=True, metavar="NAME", help="Redact members of this name, at any depth.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8008, show_default=True, help="Port; 0 for a free one.")
def record(url: str, output: Path, redact: tuple[str, ...], host: str, port: int) -> int:
    """Record the calls of clients, their answers and events: a WebSocket between them and a gateway."""
    from ...mocks.recording import Recorder, Recording
    from .relay import relaying

    target = parse_url(url)
    recording = Recording(output, redact)

    async def run() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        with contextlib.suppress(NotImplementedError):  # Windows
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, stop.set)
        async with relaying(target.url, host, port, lambda: Recorder(recording)) as own:
            click.echo(f"Connect clients to {own} in place of {target.url}; the recording is in {output}")
            await stop.wait()

    with opened(recording), contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run())
    say(f"the recording is in {output}")
    return 0

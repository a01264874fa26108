"""The command ``serve``: its options, and the combinations that it rejects."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import click

from ...settings import ENV_PREFIX
from .activation import descriptor
from .options import Options
from .processes import run

__all__ = ["serve"]

EPILOG: Final = f"""All other settings come from the environment, see docs/deployment.md. If a proxy runs on another
machine, name its address with --forwarded-allow-ips; otherwise all clients seem to have the address of the proxy.

\b
Signals:
  SIGTERM, SIGINT  drain: refuse new connections, say goodbye to clients, finish the calls in flight;
                   a second signal ends the drain
  SIGHUP           with --workers: forwarded to the workers

\b
Examples:
  nuropb-gateway serve
  nuropb-gateway serve --host 0.0.0.0 --port 8443 --ssl-certfile cert.pem --ssl-keyfile key.pem
  nuropb-gateway serve --uds /run/nuropb-gateway/socket --workers 4
  {ENV_PREFIX}MESH_URL=embedded://demo nuropb-gateway serve --reload --log-level debug

\b
Exit codes:
  0  stopped by a signal
  2  invalid command line or setting
  3  the server could not start
"""


@click.command(epilog=EPILOG)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="Port to listen at; 0 picks a free one.  [default: 8000; on the embedded mesh the next free one]",
)
@click.option("--uds", metavar="PATH", help="Listen at this Unix socket instead; its owner and group may connect.")
@click.option(
    "--fd",
    callback=descriptor,
    metavar="N",
    help="Listen at this socket instead, which is bound already: a file descriptor, or 'systemd' for its .socket unit.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    envvar="WEB_CONCURRENCY",
    help="Number of processes.",
)
@click.option("--reload", is_flag=True, help="Restart when a Python file changes; for development.")
@click.option(
    "--proxy-headers/--no-proxy-headers",
    default=True,
    show_default=True,
    help="Take client addresses from X-Forwarded-For if a trusted proxy sends it.",
)
@click.option(
    "--forwarded-allow-ips",
    metavar="LIST",
    envvar="FORWARDED_ALLOW_IPS",
    help="Trusted proxies: addresses and networks, comma-separated.  [default: 127.0.0.1,::1; with --uds, every peer]",
)
@click.option("--ssl-certfile", metavar="PATH", help="Certificate, for TLS without a proxy.")
@click.option("--ssl-keyfile", metavar="PATH", help="Private key of the certificate.")
@click.option(
    "--root-path",
    metavar="PATH",
    default="",
    help=f"Prefix that a proxy strips, for the documents of the contract; {ENV_PREFIX}PUBLIC_URL also names the host.",
)
@click.option(
    "--shutdown-delay",
    type=float,
    metavar="SECONDS",
    help=f"Overrides {ENV_PREFIX}SHUTDOWN_DELAY: from a stop signal to the drain; /readyz says no, clients may come.",
)
@click.option("--deflate/--no-deflate", default=False, show_default=True, help="Compress messages.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error", "critical"], case_sensitive=False),
    help=f"Overrides {ENV_PREFIX}LOG_LEVEL.",
)
@click.option(
    "--log-config",
    metavar="FILE",
    help=f"Overrides {ENV_PREFIX}LOG_CONFIG: a logging configuration (.json, .yaml, .ini); secrets stay filtered.",
)
@click.option(
    "--record",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Record all calls to services, their answers and all events in a new file, for 'dev --replay'.",
)
@click.option("--redact", multiple=True, metavar="NAME", help="Redact members of this name in the recording.")
def serve(**options: Any) -> int:
    """Run the gateway. This is the default command."""
    chosen = Options(**options)
    if chosen.uds is not None and chosen.fd is not None:
        raise click.UsageError("--uds and --fd cannot be combined")
    if chosen.reload and chosen.workers > 1:
        raise click.UsageError("--reload and --workers cannot be combined")
    if chosen.record is not None and (chosen.reload or chosen.workers > 1):
        raise click.UsageError("--record needs one process, without --reload and --workers")
    if chosen.redact and chosen.record is None:
        raise click.UsageError("--redact is for --record: give both")
    if (chosen.ssl_certfile is None) != (chosen.ssl_keyfile is None):
        raise click.UsageError("--ssl-certfile and --ssl-keyfile need each other: give both")
    if chosen.log_level is not None:
        os.environ[f"{ENV_PREFIX}LOG_LEVEL"] = chosen.log_level  # worker processes read it, too
    if chosen.log_config is not None:
        os.environ[f"{ENV_PREFIX}LOG_CONFIG"] = chosen.log_config
    if chosen.shutdown_delay is not None:
        os.environ[f"{ENV_PREFIX}SHUTDOWN_DELAY"] = str(chosen.shutdown_delay)
    if chosen.root_path and not chosen.root_path.startswith("/"):
        raise click.UsageError("--root-path begins with a slash, as in /gateway")
    return run(chosen)

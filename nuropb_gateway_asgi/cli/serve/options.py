"""The options of ``serve``, parsed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Options"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of one ``serve``, by the names that click gives them."""

    host: str
    #: None if the user named none.
    port: int | None
    uds: str | None
    fd: int | None
    workers: int
    reload: bool
    proxy_headers: bool
    forwarded_allow_ips: str | None
    ssl_certfile: str | None
    ssl_keyfile: str | None
    deflate: bool
    root_path: str
    shutdown_delay: float | None
    log_level: str | None
    log_config: str | None
    #: A new file for the traffic of the mesh, and the names of members that are redacted in it.
    record: Path | None
    redact: tuple[str, ...]

"""The addresses of a broker: the hosts of its URL, and every address that the name of a host has."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, NamedTuple, TypeVar
from urllib.parse import urlsplit

from ...settings import host_urls
from ._errors import CONNECTION_ERRORS, explain

__all__ = ["Address", "Addresses"]

#: Seconds to connect to the only address that there is, and to each of several ones.
ONLY_CONNECT_TIMEOUT: Final = 10.0
EACH_CONNECT_TIMEOUT: Final = 4.0
DEFAULT_PORTS: Final = {"amqp": 5672, "amqps": 5671}

Connection = TypeVar("Connection")


class Address(NamedTuple):
    """One address of a broker. ``endpoint`` is the URL, with the name of the host for TLS and the log."""

    endpoint: str
    #: Numeric.
    ip: str
    port: int

    def __str__(self) -> str:
        host = urlsplit(self.endpoint).hostname or ""
        name = f"[{host}]" if ":" in host else host
        return f"{name}:{self.port}" if host == self.ip else f"{name}:{self.port} ({self.ip})"


class Addresses:
    """The addresses of the broker at ``url``, for the connections of one process.

    They are tried in a random order, which spreads the processes over the nodes of a cluster; first the address of the
    other connections, as all need one node then, and last those that failed or were lost.
    """

    def __init__(self, url: str) -> None:
        self._urls = host_urls(url)
        #: The present or latest address of each connection, by its purpose.
        self.used: dict[str, Address] = {}
        #: Addresses that failed or were lost, the latest last.
        self._failed: dict[Address, None] = {}

    async def connect(self, purpose: str, connect: Callable[[Address], Awaitable[Connection]]) -> Connection:
        """Return the result of ``connect`` for the first address for which it succeeds, each within its own time.

        The connection that was made before for the same ``purpose`` is lost. Raises the error of the only address, or
        ConnectionError with the errors of all.
        """
        if purpose in self.used:
            self._note_failure(self.used.pop(purpose))
        failures: dict[str, str] = {}
        addresses = [address async for address in self._resolve(failures)]
        only = len(addresses) + len(failures) == 1
        for address in self._in_order(addresses):
            self.used[purpose] = address
            try:
                async with asyncio.timeout(ONLY_CONNECT_TIMEOUT if only else EACH_CONNECT_TIMEOUT):
                    connection = await connect(address)
            except CONNECTION_ERRORS as error:
                self._note_failure(self.used.pop(purpose))
                task = asyncio.current_task()
                if only or (isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling()):
                    raise
                failures[str(address)] = explain(error)
            else:
                self._failed.pop(address, None)
                return connection
        described = "; ".join(f"{name}: {failures[name]}" for name in sorted(failures))
        raise ConnectionError(f"none of {len(failures)} addresses can be used: {described}")

    def _note_failure(self, address: Address) -> None:
        self._failed.pop(address, None)
        self._failed[address] = None

    def _in_order(self, addresses: list[Address]) -> list[Address]:
        """Return ``addresses`` in the order in which they are tried."""
        failed = [address for address in self._failed if address in addresses]
        self._failed = dict.fromkeys(failed)  # those that a name had before are forgotten
        used = set(self.used.values())
        return sorted(
            random.sample(addresses, len(addresses)),
            key=lambda address: (failed.index(address) if address in failed else -1, address not in used),
        )

    async def _resolve(self, failures: dict[str, str]) -> AsyncIterator[Address]:
        """Yield all addresses of all hosts; note the hosts without one, but raise the error of the only host."""
        for url in self._urls:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port or DEFAULT_PORTS[parts.scheme]
            with contextlib.suppress(ValueError):
                ipaddress.ip_address(host)
                yield Address(url, host, port)
                continue
            loop = asyncio.get_running_loop()
            try:
                async with asyncio.timeout(ONLY_CONNECT_TIMEOUT if len(self._urls) == 1 else EACH_CONNECT_TIMEOUT):
                    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError) as error:  # TimeoutError is an OSError
                if len(self._urls) == 1:
                    raise
                failures[f"{host}:{port}"] = explain(error)
                continue
            for ip in dict.fromkeys(str(address[0]) for *_, address in found):
                yield Address(url, ip, port)

"""The steps of ``doctor`` from the URL of a gateway to a call, each needing the ones before."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from ...exceptions import SettingsError
from ...protocol import SUBPROTOCOL
from .._errors import BROKEN, describe_error, refusal_text
from .._options import TOKEN_VARIABLE
from .._output import printable
from .._session import session
from .._target import BadURL, Target, parse_url
from .findings import LEEWAY, Finding, not_checked, ok, wrong
from .gateway_findings import about_call, about_close, about_description, about_hello, about_origin, about_refusal
from .network_findings import (
    about_certificate,
    about_clock,
    about_health,
    about_network,
    about_tls,
    about_transport,
    says_mesh_is_lost,
)
from .probes import Proxy, get, open_connection, proxy_for
from .token_findings import about_claims, expectations, read_claims

if TYPE_CHECKING:
    from ...client import Client, ConnectionClosed, ConnectionLost

__all__ = ["HALTED", "Call", "Steps"]

T = TypeVar("T")
R = TypeVar("R")
#: What a step has found, and its result for later steps: None makes them impossible.
Outcome: TypeAlias = tuple[Finding, T | None]
#: Service, method and parameters.
Call: TypeAlias = tuple[str, str, dict[str, Any]]

#: The finding of every step after one that failed.
HALTED: Final = not_checked("an earlier step failed")
_BEHIND_PROXY: Final = "a proxy is in between"


@dataclass(frozen=True)
class Health:
    """The result of the health checks: whether the server speaks HTTP, and by how many seconds its clock is ahead.

    ``mesh_is_lost`` is whether the gateway says that it has no connection to the mesh.
    """

    speaks_http: bool = True
    skew: float | None = None
    mesh_is_lost: bool = False


class Steps:
    """All steps, one after the other. ``timeout`` is in seconds, for each of them."""

    def __init__(self, on_step: Callable[[str, Finding, float], None], timeout: float) -> None:
        self._on_step = on_step
        self._timeout = timeout

    async def run(
        self,
        url: str,
        find_token: Callable[[], str | None],
        call: Call | None,
        topic: str | None,
        origin: str | None = None,
    ) -> None:
        """Take all steps. A step that needs the result of a failed one is reported as :data:`HALTED`."""
        target = await self._step("url", self._read_url(url))
        proxy = proxy_for(target) if target else None
        resolved = await self._step("dns", self._resolve(target, proxy) if target else None)
        reached = await self._step("tcp", self._connect(resolved, proxy) if resolved else None)
        secured = await self._step("tls", self._agree_on_tls(reached, proxy) if reached else None)
        health = await self._step("http", self._check_health(secured, proxy) if secured else None)
        skew = await self._step("clock", self._compare_clocks(health) if health else None)
        if origin is not None:
            await self._step("origin", self._ask_for_page(secured, proxy, origin) if secured else None)
        token = await self._step("token", self._read_token(find_token, skew or 0.0))
        server = secured if token and health and health.speaks_http else None
        async with contextlib.AsyncExitStack() as stack:
            shaking = self._shake_hands(server, token, skew or 0.0, stack) if server and token else None
            gateway = await self._step("handshake", shaking)
            greeted = await self._step("hello", self._check_hello(gateway) if gateway else None)
            lost = health is not None and health.mesh_is_lost
            await self._step("describe", self._describe(greeted, mesh_is_lost=lost) if greeted else None)
            await self._step("call", self._make_call(greeted, call) if greeted else None)
            await self._step("events", self._subscribe(greeted, topic) if greeted else None)

    async def _step(self, name: str, look: Coroutine[Any, Any, Outcome[T]] | None) -> T | None:
        began = time.perf_counter()
        finding, value = (HALTED, None) if look is None else await look
        self._on_step(name, finding, time.perf_counter() - began)
        return value

    # --- on the way to the server -----------------------------------------------------------------------------

    async def _read_url(self, url: str) -> Outcome[Target]:
        try:
            target = parse_url(url)
        except BadURL as error:
            return wrong(error.found, error.mend), None
        return about_transport(target, query="?" in url), target

    async def _resolve(self, target: Target, proxy: Proxy | None) -> Outcome[Target]:
        host, port = (target.host, target.port) if proxy is None else (proxy.host, proxy.port)
        try:
            async with asyncio.timeout(self._timeout):
                found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except TimeoutError:
            return about_network(socket.gaierror(socket.EAI_AGAIN, "timeout"), host), None
        except (OSError, UnicodeError) as error:
            failure = error if isinstance(error, OSError) else socket.gaierror(socket.EAI_NONAME, "no name")
            return about_network(failure, host), None
        addresses = ", ".join(dict.fromkeys(str(address[0]) for *_, address in found))
        return ok(addresses if proxy is None else f"{addresses} (the proxy {proxy.host})"), target

    async def _connect(self, target: Target, proxy: Proxy | None) -> Outcome[Target]:
        address = target.address if proxy is None else proxy.address
        host, port = (target.host, target.port) if proxy is None else (proxy.host, proxy.port)
        try:
            async with asyncio.timeout(self._timeout), open_connection(host, port):
                pass
        except OSError as error:
            return about_network(error, address, proxied=proxy is not None), None
        return ok(f"{address} answers{'' if proxy is None else ' (a proxy)'}"), target

    async def _agree_on_tls(self, target: Target, proxy: Proxy | None) -> Outcome[Target]:
        if not target.secure or proxy is not None:
            return not_checked("ws:// does not use TLS" if proxy is None else _BEHIND_PROXY), target
        try:
            async with (
                asyncio.timeout(self._timeout),
                open_connection(target.host, target.port, secure=True) as (_, writer),
            ):
                connection = writer.get_extra_info("ssl_object")
                certificate, version = connection.getpeercert(), connection.version()
        except OSError as error:
            return about_tls(error, target), None
        return about_certificate(certificate, version, time.time()), target

    async def _check_health(self, target: Target, proxy: Proxy | None) -> Outcome[Health]:
        if proxy is not None:
            return not_checked(_BEHIND_PROXY), Health()
        base = target.path.rpartition("/")[0]
        live = await get(target, f"{base}/livez", self._timeout)
        if live is not None and live.status == 404 and base:  # PATH itself may have several segments
            base = ""
            live = await get(target, "/livez", self._timeout)
        ready = None if live is None else await get(target, f"{base}/readyz", self._timeout)
        finding = about_health(
            None if live is None else live.status,
            None if ready is None else ready.status,
            None if ready is None else ready.json,
        )
        skew = None if live is None else live.skew
        lost = ready is not None and says_mesh_is_lost(ready.json)
        return finding, Health(speaks_http=live is not None, skew=skew, mesh_is_lost=lost)

    async def _compare_clocks(self, health: Health) -> Outcome[float]:
        # Dates are in whole seconds, so a small difference counts as none.
        skew = 0.0 if health.skew is None or abs(health.skew) <= LEEWAY else health.skew
        return about_clock(health.skew), skew

    async def _ask_for_page(self, target: Target, proxy: Proxy | None, origin: str) -> Outcome[None]:
        if proxy is not None:
            return not_checked(_BEHIND_PROXY), None
        if not origin.isascii() or not origin.isprintable():
            return wrong("the origin contains invalid characters", "write it as https://app.example.com"), None
        answer = await get(target, target.path, self._timeout, upgrade_from=origin)
        said = answer.json.get("description") if answer is not None and isinstance(answer.json, dict) else None
        return about_origin(None if answer is None else answer.status, str(said or ""), origin), None

    # --- at the gateway ---------------------------------------------------------------------------------------

    async def _read_token(self, find_token: Callable[[], str | None], skew: float) -> Outcome[str]:
        try:
            token = find_token()
        except OSError as error:
            found = f"the token file cannot be read: {error.strerror or type(error).__name__}"
            return wrong(found, "check the path of --token-file"), None
        except ValueError as error:
            return wrong(printable(str(error)), "a token is one word, alone in its file or variable"), None
        if token is None:
            return wrong("no token was given", f"set {TOKEN_VARIABLE}, or use --token-file"), None
        claims = read_claims(token)
        try:
            expected = expectations(claims, os.environ)
        except SettingsError as error:
            return wrong(printable(str(error)), "correct the file, or unset the setting here"), token
        return about_claims(claims, time.time() + skew, **expected), token

    async def _shake_hands(
        self, target: Target, token: str, skew: float, stack: contextlib.AsyncExitStack
    ) -> Outcome[Client]:
        from ...client import ConnectionClosed, ConnectionLost

        claims, now = read_claims(token), time.time() + skew
        try:
            gateway = await stack.enter_async_context(session(target, token, timeout=self._timeout))
        except (ConnectionClosed, ConnectionLost) as error:
            if error.status is not None:
                return about_refusal(error.status, refusal_text(error.__cause__), claims, now), None
            return _about_ending(error, claims, now), None
        return ok("the gateway accepts the token"), gateway

    async def _check_hello(self, gateway: Client) -> Outcome[Client]:
        hello = gateway.hello
        if hello is None:
            return wrong("the connection was closed", "try again"), None
        return about_hello(hello.protocol, hello.user_id, hello.limits, expected=SUBPROTOCOL), gateway

    async def _describe(self, gateway: Client, *, mesh_is_lost: bool) -> Outcome[None]:
        find = functools.partial(about_description, mesh_is_lost=mesh_is_lost)
        return await self._attempt(gateway.describe(timeout=self._timeout), find), None

    async def _make_call(self, gateway: Client, call: Call | None) -> Outcome[None]:
        if call is None:
            return not_checked("name a method without side effects to test it: doctor SERVICE METHOD"), None
        service, method, params = call
        began = time.perf_counter()

        def answered(result: Any) -> Finding:
            took = (time.perf_counter() - began) * 1000
            return ok(f"{printable(service)}.{printable(method)} answered in {took:.1f} ms")

        return await self._attempt(gateway.request(service, method, params, timeout=self._timeout), answered), None

    async def _subscribe(self, gateway: Client, topic: str | None) -> Outcome[None]:
        if topic is None:
            return not_checked("name a topic to test it: --topic"), None
        subscription = gateway.subscribe(topic)
        in_force = asyncio.wait_for(subscription.ready(), self._timeout)
        return await self._attempt(in_force, lambda _: ok(f"subscribed to {printable(topic)}")), None

    async def _attempt(self, asking: Awaitable[R], find: Callable[[R], Finding]) -> Finding:
        """Await ``asking`` and make a finding of its result or error."""
        from ...client import ConnectionClosed, ConnectionLost, GatewayError

        try:
            return find(await asking)
        except (ConnectionClosed, ConnectionLost) as error:
            return _about_ending(error, None, time.time())
        except GatewayError as error:
            return about_call(getattr(error, "code", ""), describe_error(error))
        except TimeoutError:
            return about_call("timeout", "no answer in time")


def _about_ending(error: ConnectionClosed | ConnectionLost, claims: Mapping[str, Any] | None, now: float) -> Finding:
    reason = describe_error(error) if error.close_code == BROKEN else error.reason
    return about_close(error.close_code, reason, claims, now)

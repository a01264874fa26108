"""``doctor``: from the name of a gateway to a call, step by step, and what is wrong on the way."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import email.utils
import http.client
import io
import json
import os
import socket
import ssl
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar
from urllib.parse import urlsplit

import click

from ...protocol import SUBPROTOCOL
from ...settings import ENV_PREFIX
from .._completion import complete_method, complete_service
from .._output import dump, printable
from .._parameters import FORMS
from .._session import ENVIRONMENT, SECONDS, TOKEN_VARIABLE, describe_error, find_token, said, session, source_options
from .._target import BadURL, Target, parse_url
from ..call import check_names, parse_words
from . import gateway_findings as diagnosis
from .gateway_findings import Finding, not_checked

if TYPE_CHECKING:
    from ...client import Client, ConnectionClosed, ConnectionLost

__all__ = ["doctor"]

T = TypeVar("T")
R = TypeVar("R")
#: What a step has found, and what the next ones need of it: None if they cannot be taken.
Looked: TypeAlias = tuple[Finding, T | None]

EPILOG = f"""{ENVIRONMENT} A line for each step, and below it how to mend what is wrong. Name a method that may be
called without harm to have that tried, too. No token is printed.

{FORMS}

\b
Examples:
  nuropb-gateway doctor
  nuropb-gateway doctor --url wss://gateway.example.com/ws --token-file token
  nuropb-gateway doctor demo add a:=2 b:=3 --topic demo.tick

\b
Exit codes:
  0  all is well
  1  something is wrong
  2  the command line is wrong
"""

#: Of what a server says over HTTP, in bytes.
MAX_ANSWER: Final = 65536
_MARKS: Final = {"ok": ("ok", "green"), "wrong": ("WRONG", "red"), "not checked": ("not checked", None)}
_BEHIND_PROXY: Final = "a proxy is in between"
#: The close code of a connection that broke, or never came about.
BROKEN: Final = 1006
HALTED: Final = not_checked("something above has to be right first")


@click.command(epilog=EPILOG, short_help="Find what is wrong on the way to a gateway.")
@click.argument("service", required=False, shell_complete=complete_service)
@click.argument("method", required=False, shell_complete=complete_method)
@click.argument("parameters", nargs=-1)
@source_options
@click.option("--topic", help="Subscribe to this topic, too.")
@click.option(
    "--timeout", type=SECONDS, metavar="SECONDS", default=5.0, show_default=True, help="How long a step may take."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(
    service: str | None,
    method: str | None,
    parameters: tuple[str, ...],
    url: str,
    token: str | None,
    token_file: str | None,
    topic: str | None,
    timeout: float,
    as_json: bool,
) -> int:
    """Look for what is wrong between here and a gateway, and say how to mend it."""
    call: tuple[str, str, dict[str, Any]] | None = None
    if service is not None:
        if method is None:
            raise click.UsageError("SERVICE and METHOD belong together")
        check_names(service, method)
        call = (service, method, parse_words(parameters))
    steps: list[dict[str, Any]] = []

    def on_step(name: str, finding: Finding, seconds: float) -> None:
        steps.append({"step": name, **dataclasses.asdict(finding), "seconds": round(seconds, 6)})
        if not as_json and finding is not HALTED:
            _print(name, finding)

    walk = Walk(on_step, timeout)
    asyncio.run(walk.run(url, lambda: find_token(token, token_file), call, topic))
    well = all(step["status"] != "wrong" for step in steps)
    halted = [step["step"] for step in steps if step["found"] == HALTED.found]
    if halted and not as_json:
        click.echo(f"not checked, as something above has to be right first: {', '.join(halted)}")
    if as_json:
        click.echo(dump({"well": well, "steps": steps}, pretty=sys.stdout.isatty()))
    return 0 if well else 1


def _print(name: str, finding: Finding) -> None:
    mark, colour = _MARKS[finding.status]
    click.echo(f"{name:<10}{click.style(mark, fg=colour)}: {finding.found}")
    if finding.mend is not None:
        click.echo(f"{'':<10}-> {finding.mend}")


class Walk:
    """All steps, one after the other. ``timeout`` is for each of them, in seconds."""

    def __init__(self, on_step: Callable[[str, Finding, float], None], timeout: float) -> None:
        self._on_step = on_step
        self._timeout = timeout

    async def run(
        self,
        url: str,
        find_token: Callable[[], str | None],
        call: tuple[str, str, dict[str, Any]] | None,
        topic: str | None,
    ) -> None:
        """Take them. What cannot be looked at before something else is right is told as not checked."""
        target = await self._step("url", self._read_url(url))
        proxy = _proxy_for(target) if target else None
        named = await self._step("dns", self._look_up(target, proxy) if target else None)
        reached = await self._step("tcp", self._knock(named, proxy) if named else None)
        secured = await self._step("tls", self._agree_on_tls(reached, proxy) if reached else None)
        answers = await self._step("http", self._ask_for_health(secured, proxy) if secured else None)
        skew = await self._step("clock", self._compare_clocks(answers) if answers else None)
        token = await self._step("token", self._read_token(find_token, skew or 0.0))
        spoken = secured if token and answers and answers.speaks_http else None
        async with contextlib.AsyncExitStack() as stack:
            shaking = self._shake_hands(spoken, token, skew or 0.0, stack) if spoken and token else None
            gateway = await self._step("handshake", shaking)
            greeted = await self._step("hello", self._hear_hello(gateway) if gateway else None)
            await self._step("describe", self._describe(greeted) if greeted else None)
            await self._step("call", self._make_call(greeted, call) if greeted else None)
            await self._step("events", self._subscribe(greeted, topic) if greeted else None)

    async def _step(self, name: str, look: Coroutine[Any, Any, Looked[T]] | None) -> T | None:
        began = time.perf_counter()
        finding, value = (HALTED, None) if look is None else await look
        self._on_step(name, finding, time.perf_counter() - began)
        return value

    # --- on the way there -------------------------------------------------------------------------------------

    async def _read_url(self, url: str) -> Looked[Target]:
        try:
            target = parse_url(url)
        except BadURL as error:
            return Finding("wrong", error.found, error.mend), None
        return diagnosis.about_transport(target, query="?" in url), target

    async def _look_up(self, target: Target, proxy: Proxy | None) -> Looked[Target]:
        host, port = (target.host, target.port) if proxy is None else (proxy.host, proxy.port)
        try:
            async with asyncio.timeout(self._timeout):
                found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except TimeoutError:
            return diagnosis.about_network(socket.gaierror(socket.EAI_AGAIN, "timeout"), host), None
        except (OSError, UnicodeError) as error:
            failure = error if isinstance(error, OSError) else socket.gaierror(socket.EAI_NONAME, "no name")
            return diagnosis.about_network(failure, host), None
        addresses = ", ".join(dict.fromkeys(str(address[0]) for *_, address in found))
        return Finding("ok", addresses if proxy is None else f"{addresses}, of the proxy {proxy.host}"), target

    async def _knock(self, target: Target, proxy: Proxy | None) -> Looked[Target]:
        address = target.address if proxy is None else proxy.address
        host, port = (target.host, target.port) if proxy is None else (proxy.host, proxy.port)
        try:
            async with asyncio.timeout(self._timeout), _connection(host, port):
                pass
        except OSError as error:
            return diagnosis.about_network(error, address, proxied=proxy is not None), None
        return Finding("ok", f"{address} answers{'' if proxy is None else ', which is a proxy'}"), target

    async def _agree_on_tls(self, target: Target, proxy: Proxy | None) -> Looked[Target]:
        if not target.secure or proxy is not None:
            return not_checked("ws:// has none" if proxy is None else _BEHIND_PROXY), target
        try:
            async with asyncio.timeout(self._timeout), _connection(target.host, target.port, secure=True) as streams:
                connection = streams[1].get_extra_info("ssl_object")
                certificate, version = connection.getpeercert(), connection.version()
        except OSError as error:
            return diagnosis.about_tls(error, target), None
        return diagnosis.about_certificate(certificate, version, time.time()), target

    async def _ask_for_health(self, target: Target, proxy: Proxy | None) -> Looked[Answers]:
        if proxy is not None:
            return not_checked(_BEHIND_PROXY), Answers()
        base = target.path.rpartition("/")[0]
        live = await self._get(target, f"{base}/livez")
        if live is not None and live.status == 404 and base:  # the path may be one of several words
            base = ""
            live = await self._get(target, "/livez")
        ready = None if live is None else await self._get(target, f"{base}/readyz")
        finding = diagnosis.about_health(
            None if live is None else live.status,
            None if ready is None else ready.status,
            None if ready is None else ready.json,
        )
        return finding, Answers(speaks_http=live is not None, skew=None if live is None else live.skew)

    async def _get(self, target: Target, path: str) -> Answer | None:
        """The answer to a request, or None if there is none that is HTTP."""
        request = f"GET {path} HTTP/1.0\r\nHost: {target.address}\r\nUser-Agent: nuropb-gateway-doctor\r\n\r\n"
        began = time.time()
        try:
            async with (
                asyncio.timeout(self._timeout),
                _connection(target.host, target.port, secure=target.secure, limit=MAX_ANSWER) as (reader, writer),
            ):
                writer.write(request.encode())
                data = b""
                while len(data) < MAX_ANSWER and (more := await reader.read(MAX_ANSWER)):
                    data += more
        except OSError:
            return None
        return _parse_answer(data, (began + time.time()) / 2)

    async def _compare_clocks(self, answers: Answers) -> Looked[float]:
        # The date has whole seconds, so a small difference is none.
        skew = 0.0 if answers.skew is None or abs(answers.skew) <= diagnosis.LEEWAY else answers.skew
        return diagnosis.about_clock(answers.skew), skew

    # --- at the gateway ---------------------------------------------------------------------------------------

    async def _read_token(self, find_token: Callable[[], str | None], skew: float) -> Looked[str]:
        try:
            token = find_token()
        except OSError as error:
            return Finding("wrong", f"the file: {error.strerror or type(error).__name__}", "is its name right?"), None
        except ValueError as error:
            return Finding("wrong", printable(str(error)), "a token is one word, alone in its file or variable"), None
        if token is None:
            return Finding("wrong", "there is none", f"set {TOKEN_VARIABLE}, or use --token-file"), None
        environment = {name: os.environ.get(f"{ENV_PREFIX}JWT_{name.upper()}", "") for name in ("issuer", "audience")}
        claims = diagnosis.read_claims(token)
        return diagnosis.about_claims(claims, time.time() + skew, **environment), token

    async def _shake_hands(
        self, target: Target, token: str, skew: float, stack: contextlib.AsyncExitStack
    ) -> Looked[Client]:
        from ...client import ConnectionClosed, ConnectionLost

        claims, now = diagnosis.read_claims(token), time.time() + skew
        try:
            gateway = await stack.enter_async_context(session(target, token, timeout=self._timeout))
        except (ConnectionClosed, ConnectionLost) as error:
            if error.status is not None:
                return diagnosis.about_refusal(error.status, said(error.__cause__), claims, now), None
            return _about_ending(error, claims, now), None
        return Finding("ok", "the gateway takes the token"), gateway

    async def _hear_hello(self, gateway: Client) -> Looked[Client]:
        hello = gateway.hello
        if hello is None:
            return Finding("wrong", "the connection has gone", "try again"), None
        return diagnosis.about_hello(hello.protocol, hello.user_id, hello.limits, expected=SUBPROTOCOL), gateway

    async def _describe(self, gateway: Client) -> Looked[None]:
        return await self._attempt(gateway.describe(timeout=self._timeout), diagnosis.about_description), None

    async def _make_call(self, gateway: Client, call: tuple[str, str, dict[str, Any]] | None) -> Looked[None]:
        if call is None:
            return not_checked("name a method that may be called without harm: doctor SERVICE METHOD"), None
        service, method, params = call
        began = time.perf_counter()

        def answered(result: Any) -> Finding:
            took = (time.perf_counter() - began) * 1000
            return Finding("ok", f"{printable(service)}.{printable(method)} answered in {took:.1f} ms")

        return await self._attempt(gateway.request(service, method, params, timeout=self._timeout), answered), None

    async def _subscribe(self, gateway: Client, topic: str | None) -> Looked[None]:
        if topic is None:
            return not_checked("name a topic: --topic"), None
        subscription = gateway.subscribe(topic)
        in_force = asyncio.wait_for(subscription.ready(), self._timeout)
        return await self._attempt(in_force, lambda _: Finding("ok", f"subscribed to {printable(topic)}")), None

    async def _attempt(self, asking: Awaitable[R], find: Callable[[R], Finding]) -> Finding:
        from ...client import ConnectionClosed, ConnectionLost, GatewayError

        try:
            return find(await asking)
        except (ConnectionClosed, ConnectionLost) as error:
            return _about_ending(error, None, time.time())
        except GatewayError as error:
            return diagnosis.about_call(getattr(error, "code", ""), describe_error(error))
        except TimeoutError:
            return diagnosis.about_call("timeout", "no answer in time")


def _about_ending(error: ConnectionClosed | ConnectionLost, claims: Mapping[str, Any] | None, now: float) -> Finding:
    reason = describe_error(error) if error.close_code == BROKEN else error.reason
    return diagnosis.about_close(error.close_code, reason, claims, now)


# --- what is seen -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Proxy:
    """What the environment has the client go through."""

    host: str
    port: int

    @property
    def address(self) -> str:
        """Host and port, and nothing of what the URL of a proxy may have besides."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Answer:
    """What a server said to one request; ``skew`` is by how many seconds its clock is ahead."""

    status: int
    json: object
    skew: float | None


@dataclass(frozen=True)
class Answers:
    """What is known of a server after all of them."""

    speaks_http: bool = True
    skew: float | None = None


def _proxy_for(target: Target) -> Proxy | None:
    """The proxy through which the client goes, by the rules of websockets: the environment says which."""
    if urllib.request.proxy_bypass(f"{target.host}:{target.port}"):
        return None
    proxies = urllib.request.getproxies()
    for scheme in ("wss", "socks", "https") if target.secure else ("ws", "socks", "https", "http"):
        if scheme in proxies:
            with contextlib.suppress(ValueError):
                parts = urlsplit(proxies[scheme])
                return Proxy(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
    return None


@contextlib.asynccontextmanager
async def _connection(
    host: str, port: int, *, secure: bool = False, limit: int = MAX_ANSWER
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    options: dict[str, Any] = {"ssl": ssl.create_default_context(), "server_hostname": host} if secure else {}
    reader, writer = await asyncio.open_connection(host, port, limit=limit, **options)
    try:
        yield reader, writer
    finally:
        # Not closed in good order: there is nothing more to say, and a server might take its time.
        writer.transport.abort()


def _parse_answer(data: bytes, now: float) -> Answer | None:
    """The answer in ``data``, received at about ``now``; None if it is not HTTP."""
    head, _, body = data.partition(b"\r\n\r\n")
    first, _, rest = head.partition(b"\r\n")
    words = first.split(maxsplit=2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        return None
    try:
        date = http.client.parse_headers(io.BytesIO(rest + b"\r\n\r\n")).get("Date", "")
        # A date has whole seconds: on average it is half a second old when it is written.
        skew: float | None = email.utils.parsedate_to_datetime(date).timestamp() + 0.5 - now
    except (ValueError, http.client.HTTPException):
        skew = None
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        content = None
    return Answer(int(words[1]), content, skew)

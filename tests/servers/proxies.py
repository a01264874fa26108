"""nginx and HAProxy in front of a gateway, each with the file of ``deploy/`` as it is, but for where things are."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from nuropb_gateway_asgi.authentication import issue_token
from tests.kit.certificates import Certificate
from tests.kit.gateways import DEADLINE
from tests.kit.processes import ROOT, Process, run_forked, run_process
from tests.servers.processes import unavailable
from tests.servers.provision import find_tool
from tests.servers.rabbitmq import free_port

__all__ = [
    "FOR_CLIENTS",
    "LARGE",
    "NOT_FOR_CLIENTS",
    "ORIGIN",
    "PROXIES",
    "TOKEN",
    "Proxy",
    "ProxyName",
    "port_of",
    "run_proxy",
    "serving",
]

ProxyName: TypeAlias = Literal["nginx", "haproxy"]
PROXIES: Final[tuple[ProxyName, ...]] = ("nginx", "haproxy")
DEPLOY: Final = ROOT / "deploy"

SECRET: Final = "a secret that is long enough to sign with, and no longer"
ORIGIN: Final = "https://app.example.com"
TOKEN: Final = issue_token(SECRET, "alice")
#: 16 KiB, which is what the gateway takes.
LARGE: Final = issue_token(SECRET, "alice", padding="x" * 12162)

#: The routes of a gateway that each proxy passes on.
FOR_CLIENTS: Final = (
    "/ws",
    "/events",
    "/rpc/{service:path}/{method}",
    "/mcp",
    "/.well-known/oauth-protected-resource",
    "/.well-known/oauth-protected-resource/mcp",
    "/client.js",
    "/client-worker.js",
    "/asyncapi.json",
    "/openapi.json",
)
#: The routes that no proxy passes on: for operators, and the console. /readyz is for the proxy's own network.
NOT_FOR_CLIENTS: Final = ("/livez", "/metrics", "/", "/console/{file:path}", "/mcp/calls")

#: The lines that name a gateway.
GATEWAY_LINES: Final = {
    "nginx": ("server 127.0.0.1:8000;", "server 127.0.0.1:8000 max_fails=0;"),
    "haproxy": ("server gateway1 127.0.0.1:8000",),
}

#: What nginx wants around the file, which is a part of its configuration only.
NGINX = """
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log stderr info;
events {{}}
http {{
    client_body_temp_path {directory}; proxy_temp_path {directory}; fastcgi_temp_path {directory};
    uwsgi_temp_path {directory}; scgi_temp_path {directory};
    include {directory}/nuropb-gateway.conf;
}}
"""


@contextlib.asynccontextmanager
async def serving(**settings: str) -> AsyncIterator[tuple[Process, str]]:
    """Run a gateway for proxies, in a process of its own; yield it with the URL of its WebSocket."""
    settings = {"JWT_KEY": SECRET, "ALLOWED_ORIGINS": ORIGIN, "AUTH_COOKIE": "session"} | settings
    async with run_forked("nuropb_gateway_asgi", "serve", "--port", "0", settings=settings) as process:
        yield process, (await process.line(r"ws://\S+"))[0]


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2].partition("/")[0])


@dataclass(frozen=True)
class Proxy:
    """A proxy that runs, and where."""

    process: Process
    port: int
    plain_port: int
    tls: ssl.SSLContext

    def url(self, path: str = "/ws", scheme: str = "wss") -> str:
        port = self.port if scheme.endswith("s") else self.plain_port
        return f"{scheme}://127.0.0.1:{port}{path}"


@contextlib.asynccontextmanager
async def run_proxy(
    name: ProxyName,
    directory: Path,
    gateway_port: int,
    timeouts: str = "75s",
    *,
    others: Sequence[int] = (),
    edits: Mapping[str, str] | None = None,
) -> AsyncIterator[Proxy]:
    """Run a proxy, on free ports, before the gateway at ``gateway_port``; ``timeouts`` for those of 75 s in it.

    ``others`` are the ports of further gateways; ``edits`` are made in the file before anything else.
    """
    program = find_tool(name)
    if program is None:
        unavailable(f"{name} is not installed")
    certificate = Certificate.make(directory)
    port, plain_port = free_port(), free_port()
    changes: dict[str, str] = {}
    for other in others:
        for line in GATEWAY_LINES[name]:
            more = line.replace("8000", str(other)).replace("gateway1", f"other{other}")
            changes[line] = f"{changes.get(line, line)}\n{more}"
    changes |= {"127.0.0.1:8000": f"127.0.0.1:{gateway_port}", "75s": timeouts}
    if name == "nginx":
        changes |= {
            "listen 80;": f"listen 127.0.0.1:{plain_port};",
            "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
            "/etc/ssl/gateway.example.com.pem": str(certificate.certificate),
            "/etc/ssl/private/gateway.example.com.key": str(certificate.key),
            "/var/log/nginx/nuropb-gateway.log": "/dev/stdout",
        }
        main = directory / "nginx.conf"
        main.write_text(NGINX.format(directory=directory))
        (directory / "nuropb-gateway.conf").write_text(rendered(DEPLOY / "nginx.conf", changes, edits))
        command = [program, "-c", str(main), "-p", str(directory), "-e", "stderr"]
    else:
        changes |= {
            "bind :80": f"bind 127.0.0.1:{plain_port}",
            "bind :443": f"bind 127.0.0.1:{port}",
            "/etc/haproxy/gateway.example.com.pem": str(certificate.both),
            "log /dev/log local0": "log stdout format raw local0",
        }
        main = directory / "haproxy.cfg"
        main.write_text(rendered(DEPLOY / "haproxy.cfg", changes, edits))
        command = [program, "-db", "-f", str(main)]
    async with run_process(*command) as process:
        proxy = Proxy(process, port, plain_port, certificate.client())
        await answers(proxy)
        yield proxy


def rendered(file: Path, changes: Mapping[str, str], edits: Mapping[str, str] | None = None) -> str:
    """The file, with other addresses, paths and times in the places where it is said what is to be changed.

    ``edits`` come first, and may be in comments.
    """
    text = file.read_text()
    for old, new in (edits or {}).items():
        assert old in text, f"{file.name} has no {old} any more"
        text = text.replace(old, new)
    for old, new in changes.items():
        assert re.search(rf"^[^#\n]*{re.escape(old)}", text, re.MULTILINE), f"{file.name} has no {old} any more"
        text = text.replace(old, new)
    return text


async def answers(proxy: Proxy) -> None:
    async with asyncio.timeout(DEADLINE):
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
                writer.close()
                await writer.wait_closed()
                return
            assert not proxy.process.ended, proxy.process.output
            await asyncio.sleep(0.02)

"""Caddy, Traefik, Envoy and Apache in front of gateways, each with the file of ``deploy/``, but for addresses."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, TypeAlias

from tests.kit.certificates import Certificate
from tests.kit.processes import ROOT, run_process
from tests.servers.processes import unavailable
from tests.servers.provision import find_tool
from tests.servers.proxies import DEPLOY, Proxy, answers, rendered
from tests.servers.rabbitmq import free_port

__all__ = ["MORE_PROXIES", "MoreProxies", "run_more_proxy"]

MoreProxies: TypeAlias = Literal["caddy", "traefik", "envoy", "apache2"]
MORE_PROXIES: Final[tuple[MoreProxies, ...]] = ("caddy", "traefik", "envoy", "apache2")
#: Where `make matrix` puts the programs that come from PyPI.
PROGRAMS: Final = ROOT / ".venv-proxies" / "bin"

#: What Apache wants around the file, which is a part of its configuration only.
APACHE: Final = """
ServerRoot {directory}
PidFile {directory}/apache.pid
DefaultRuntimeDir {directory}
ErrorLog /dev/stderr
ServerName gateway.example.com
User nobody
Group nogroup
{modules}
Listen 127.0.0.1:{port}
Listen 127.0.0.1:{plain_port}
Include {directory}/nuropb-gateway.conf
"""
MODULES: Final = (
    "mpm_event",
    "authz_core",
    "authz_host",
    "socache_shmcb",
    "ssl",
    "http2",
    "headers",
    "alias",
    "proxy",
    "proxy_http",
    "slotmem_shm",
    "proxy_balancer",
    "proxy_hcheck",
    "lbmethod_byrequests",
    "lbmethod_bybusyness",
    "reqtimeout",
    "remoteip",
)


def find(name: MoreProxies) -> Path:
    program = PROGRAMS / name
    if program.exists():
        return program
    found = find_tool(name)
    if found is None:
        unavailable(f"{name} is not installed")
    return Path(found).resolve()


@contextlib.asynccontextmanager
async def run_more_proxy(
    name: MoreProxies,
    directory: Path,
    gateways: Sequence[int],
    timeout: str = "75s",
    *,
    edits: Mapping[str, str] | None = None,
) -> AsyncIterator[Proxy]:
    """Run a proxy, on free ports, before the gateways at these ports; ``timeout`` in the place of its 75 s.

    ``edits`` are made in the file before anything else.
    """
    program = find(name)
    certificate = Certificate.make(directory)
    port, plain_port = free_port(), free_port()
    files = {
        "/etc/ssl/gateway.example.com.pem": str(certificate.certificate),
        "/etc/ssl/private/gateway.example.com.key": str(certificate.key),
    }
    if name == "caddy":
        addresses = " ".join(f"127.0.0.1:{each}" for each in gateways)
        changes = files | {
            "https://gateway.example.com {": f"https://127.0.0.1:{port} {{",
            "reverse_proxy 127.0.0.1:8000": f"reverse_proxy {addresses}",
            "admin off": f"admin off\n\thttp_port {plain_port}\n\thttps_port {port}",
        }
        main = directory / "Caddyfile"
        main.write_text(rendered(DEPLOY / "Caddyfile", changes, edits))
        command = [str(program), "run", "--adapter", "caddyfile", "--config", str(main)]
    elif name == "traefik":
        servers = "\n".join(f"          - url: http://127.0.0.1:{each}" for each in gateways)
        dynamic = rendered(
            DEPLOY / "traefik" / "dynamic.yml",
            files
            | {"          - url: http://127.0.0.1:8000": servers, "Host(`gateway.example.com`)": "Host(`127.0.0.1`)"},
        )
        (directory / "dynamic.yml").write_text(dynamic)
        main = directory / "traefik.yml"
        changes = {
            '":80"': f'"127.0.0.1:{plain_port}"',
            '":443"': f'"127.0.0.1:{port}"',
            "to: secure": f'to: ":{port}"',
            "/etc/traefik/dynamic.yml": str(directory / "dynamic.yml"),
        }
        main.write_text(rendered(DEPLOY / "traefik" / "traefik.yml", changes, edits))
        command = [str(program), f"--configFile={main}"]
    elif name == "envoy":
        endpoint = "- endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 8000}}}"
        endpoints = ("\n" + " " * 14).join(endpoint.replace("8000", str(each)) for each in gateways)
        changes = files | {
            "address: 0.0.0.0, port_value: 80}": f"address: 127.0.0.1, port_value: {plain_port}}}",
            "address: 0.0.0.0, port_value: 443}": f"address: 127.0.0.1, port_value: {port}}}",
            endpoint: endpoints,
            "stream_idle_timeout: 75s": f"stream_idle_timeout: {timeout}",
        }
        main = directory / "envoy.yaml"
        main.write_text(rendered(DEPLOY / "envoy.yaml", changes, edits))
        command = [str(program), "-c", str(main), "--use-dynamic-base-id", "--concurrency", "1", "-l", "warning"]
    else:
        text = (DEPLOY / "apache.conf").read_text()
        found = re.search(r'^ *BalancerMember "http://127.0.0.1:8000".*\\\n.*$', text, re.MULTILINE)
        assert found is not None
        members = "\n".join(found[0].replace("8000", str(each)) for each in gateways)
        changes = files | {
            found[0].strip(): members.strip(),
            "<VirtualHost *:80>": f"<VirtualHost 127.0.0.1:{plain_port}>",
            "<VirtualHost *:443>": f"<VirtualHost 127.0.0.1:{port}>",
            "/var/log/apache2/nuropb-gateway.log": "/dev/stdout",
            "ProxyTimeout 75": f"ProxyTimeout {timeout.removesuffix('s')}",
        }
        (directory / "nuropb-gateway.conf").write_text(rendered(DEPLOY / "apache.conf", changes, edits))
        folder = program.parents[1] / "lib" / "apache2" / "modules"
        modules = "\n".join(f"LoadModule {each}_module {folder}/mod_{each}.so" for each in MODULES)
        main = directory / "apache.conf"
        main.write_text(APACHE.format(directory=directory, modules=modules, port=port, plain_port=plain_port))
        command = [str(program), "-f", str(main), "-DFOREGROUND"]
    async with run_process(*command) as process:
        proxy = Proxy(process, port, plain_port, certificate.client())
        await answers(proxy)
        yield proxy

"""See to it that the tests have RabbitMQ, nginx, HAProxy and an OpenID provider: ``python -m tests.servers.provision``.

Some of them alone are had by their names, ``rabbitmq``, ``proxies`` or ``openid``, behind it.

A broker that NUROPB_TEST_AMQP_URL names is used as it is. Otherwise the tests boot throwaway nodes, for which
the program has to be installed, as those of the proxies have to be. The provider is npm's oidc-provider, which is put
beside its script. Programs that are missing are installed here for root on Debian. It says in one line for each what
was found, or what to do.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from tests.servers import openid
from tests.servers.rabbitmq import answers_amqp, find_program

APT_GET = ("apt-get", "-o", "DPkg::Lock::Timeout=300")
PROXIES = ("nginx", "haproxy")
#: Debian asks it whether a package may start its daemon: 101 is no.
POLICY = Path("/usr/sbin/policy-rc.d")


def external_url() -> str | None:
    """The broker that NUROPB_TEST_AMQP_URL names, if it answers."""
    url = os.environ.get("NUROPB_TEST_AMQP_URL")
    return url if url and answers_amqp(url, timeout=5.0) else None


def installed() -> bool:
    """Whether a throwaway node can be booted."""
    return all((find_program("rabbitmq-server"), find_program("rabbitmqctl"), shutil.which("epmd")))


def find_proxy(name: str) -> str | None:
    """The path of nginx or haproxy; users who are not root do not have it on their PATH."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


def missing(wanted: Sequence[str]) -> list[str]:
    """Those of the packages whose programs are not there."""
    return [name for name in wanted if not (find_proxy(name) if name in PROXIES else installed())]


def run(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@contextlib.contextmanager
def no_daemons() -> Iterator[None]:
    """Packages that are installed meanwhile start nothing, unless somebody has decided on that already."""
    if POLICY.exists() or not POLICY.parent.is_dir():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()


def install(packages: list[str]) -> str | None:
    """Install Debian's packages. Returns None, or all that was said when it did not work."""
    port_mapper_was_there = listening(4369)
    with no_daemons():
        update = run(*APT_GET, "update")
        package = run(*APT_GET, "install", "-y", "--no-install-recommends", *packages)
    # Only the programs count: an update that failed for one of the sources can still be enough, and so can a
    # package that is there but whose own daemon would not start.
    if missing(packages):
        return update.stdout + package.stdout
    # Nobody had these daemons before, so nobody needs them, now or after the machine has started again.
    for name in packages:
        run("service", name, "stop")
        run("update-rc.d", name, "disable")
    if not port_mapper_was_there:
        run("epmd", "-kill")
    return None


def listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def provide_programs(*, rabbitmq: bool = True, proxies: bool = True) -> int:
    """Provide RabbitMQ and the proxies; return the exit status."""
    url = external_url()
    packages = missing([*(["rabbitmq-server"] if rabbitmq and not url else []), *(PROXIES if proxies else ())])
    if packages and (shutil.which("apt-get") is None or os.geteuid() != 0):
        hint = "as root: apt-get install" if shutil.which("apt-get") else "install"
        broker = ", or set NUROPB_TEST_AMQP_URL to a broker for tests" if "rabbitmq-server" in packages else ""
        print(f"Missing for the tests: {hint} {' '.join(packages)}{broker}", file=sys.stderr)
        # Without a proxy a few tests are skipped; without a broker there is little left, and in CI nothing is skipped.
        if broker or os.environ.get("CI"):
            return 1
    elif packages:
        print(f"Installing Debian's {', '.join(packages)} for the tests", flush=True)
        if (output := install(packages)) is not None:
            print(output, file=sys.stderr)
            print(f"apt-get could not install {', '.join(missing(packages))} (see above)", file=sys.stderr)
            return 1
    if not rabbitmq:
        return 0
    if url is not None:
        parts = urlsplit(url)
        print(f"RabbitMQ: the one of NUROPB_TEST_AMQP_URL, {parts.hostname}:{parts.port or 'default port'}")
        return 0
    if os.environ.get("NUROPB_TEST_AMQP_URL"):
        print("RabbitMQ: nothing answers at NUROPB_TEST_AMQP_URL, so a throwaway node is used")
    print(f"RabbitMQ: throwaway nodes of {find_program('rabbitmq-server')}")
    return 0


def provide_openid_provider() -> int:
    """Return the exit status."""
    if not (shutil.which("node") and shutil.which("npm")):
        if shutil.which("apt-get") is None or os.geteuid() != 0:
            hint = "as root: apt-get install nodejs npm" if shutil.which("apt-get") else "install Node.js and npm"
            print(f"The OpenID provider is missing: {hint}", file=sys.stderr)
            return 1
        print("OpenID provider: installing Debian's nodejs and npm", flush=True)
        output = run(*APT_GET, "update").stdout
        output += run(*APT_GET, "install", "-y", "--no-install-recommends", "nodejs", "npm").stdout
        if not (shutil.which("node") and shutil.which("npm")):
            print(output, file=sys.stderr)
            print(
                "The OpenID provider is missing: apt-get could not install nodejs and npm (see above)", file=sys.stderr
            )
            return 1
    # A lock file would keep the addresses of whichever registry this machine has.
    wanted = (openid.HERE / "package.json").read_text(encoding="utf-8")
    done = openid.HERE / "node_modules" / ".done"
    if openid.installed() and done.exists() and done.read_text(encoding="utf-8") == wanted:
        print("OpenID provider: npm's oidc-provider")
        return 0
    print("OpenID provider: installing npm's oidc-provider", flush=True)
    npm = run("npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts", cwd=openid.HERE)
    if npm.returncode != 0 or not openid.installed():
        print(npm.stdout, file=sys.stderr)
        print("The OpenID provider is missing: npm could not install oidc-provider (see above)", file=sys.stderr)
        return 1
    done.write_text(wanted, encoding="utf-8")
    return 0


def main(names: Sequence[str]) -> int:
    """Provide what is named, or everything."""
    names = names or ("rabbitmq", "proxies", "openid")
    status = provide_programs(rabbitmq="rabbitmq" in names, proxies="proxies" in names)
    return max(status, provide_openid_provider() if "openid" in names else 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""See to it that the tests have RabbitMQ, nginx and HAProxy: ``python -m tests.servers.provision``.

A broker that NUROPB_TEST_AMQP_URL names is used as it is. Otherwise the tests boot throwaway nodes, for which
the program has to be installed, as those of the proxies have to be; root on Debian installs them here. It says in one
line for each what was found, or what to do.
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


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(
        command,
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


def main(*, proxies: bool = True) -> int:
    url = external_url()
    packages = missing([*([] if url else ["rabbitmq-server"]), *(PROXIES if proxies else ())])
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
    if url is not None:
        parts = urlsplit(url)
        print(f"RabbitMQ: the one of NUROPB_TEST_AMQP_URL, {parts.hostname}:{parts.port or 'default port'}")
        return 0
    if os.environ.get("NUROPB_TEST_AMQP_URL"):
        print("RabbitMQ: nothing answers at NUROPB_TEST_AMQP_URL, so a throwaway node is used")
    print(f"RabbitMQ: throwaway nodes of {find_program('rabbitmq-server')}")
    return 0


if __name__ == "__main__":
    sys.exit(main(proxies="--no-proxies" not in sys.argv))

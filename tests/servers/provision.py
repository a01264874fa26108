"""See to it that the tests have a RabbitMQ: ``python -m tests.servers.provision``.

A broker that NUROPB_TEST_AMQP_URL names is used as it is. Otherwise the tests boot throwaway nodes, for which
the program has to be installed; root on Debian installs it here. It says in one line what was found, or what
to do.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from urllib.parse import urlsplit

from tests.servers.rabbitmq import answers_amqp, find_program

APT_GET = ("apt-get", "-o", "DPkg::Lock::Timeout=300")


def external_url() -> str | None:
    """The broker that NUROPB_TEST_AMQP_URL names, if it answers."""
    url = os.environ.get("NUROPB_TEST_AMQP_URL")
    return url if url and answers_amqp(url, timeout=5.0) else None


def installed() -> bool:
    """Whether a throwaway node can be booted."""
    return all((find_program("rabbitmq-server"), find_program("rabbitmqctl"), shutil.which("epmd")))


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


def install() -> str | None:
    """Install Debian's package. Returns None, or all that was said when it did not work."""
    port_mapper_was_there = listening(4369)
    update = run(*APT_GET, "update")
    package = run(*APT_GET, "install", "-y", "--no-install-recommends", "rabbitmq-server")
    # Only the programs count: an update that failed for one of the sources can still be enough, and so can a
    # package that is there but whose own broker would not start.
    if not installed():
        return update.stdout + package.stdout
    # Outside of containers the package starts a broker of its own. Nobody had one before, so nobody needs it.
    run("service", "rabbitmq-server", "stop")
    if not port_mapper_was_there:
        run("epmd", "-kill")
    return None


def listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def main() -> int:
    if (url := external_url()) is not None:
        parts = urlsplit(url)
        print(f"RabbitMQ: the one of NUROPB_TEST_AMQP_URL, {parts.hostname}:{parts.port or 'default port'}")
        return 0
    if os.environ.get("NUROPB_TEST_AMQP_URL"):
        print("RabbitMQ: nothing answers at NUROPB_TEST_AMQP_URL, so a throwaway node is used")
    if installed():
        print(f"RabbitMQ: throwaway nodes of {find_program('rabbitmq-server')}")
        return 0
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        hint = "as root: apt-get install rabbitmq-server" if shutil.which("apt-get") else "install rabbitmq-server"
        print(f"RabbitMQ is missing: {hint}, or set NUROPB_TEST_AMQP_URL to a broker for tests", file=sys.stderr)
        return 1
    print("RabbitMQ: installing Debian's rabbitmq-server for throwaway nodes", flush=True)
    if (output := install()) is not None:
        print(output, file=sys.stderr)
        print("RabbitMQ is missing: apt-get could not install rabbitmq-server (see above)", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

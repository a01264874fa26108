"""See to it that the tests have a RabbitMQ and an OpenID provider: ``python -m tests.servers.provision``.

One of them alone is had by its name, ``rabbitmq`` or ``openid``, behind it.

A broker that NUROPB_TEST_AMQP_URL names is used as it is. Otherwise the tests boot throwaway nodes, for which
the program has to be installed. The provider is npm's oidc-provider, which is put beside its script. Programs that are
missing are installed here for root on Debian. For each of the two it says in one line what was found, or what to do.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from tests.servers import openid
from tests.servers.rabbitmq import answers_amqp, find_program

APT_GET = ("apt-get", "-o", "DPkg::Lock::Timeout=300")


def external_url() -> str | None:
    """The broker that NUROPB_TEST_AMQP_URL names, if it answers."""
    url = os.environ.get("NUROPB_TEST_AMQP_URL")
    return url if url and answers_amqp(url, timeout=5.0) else None


def installed() -> bool:
    """Whether a throwaway node can be booted."""
    return all((find_program("rabbitmq-server"), find_program("rabbitmqctl"), shutil.which("epmd")))


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


def provide_rabbitmq() -> int:
    """Return the exit status."""
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
    provide = {"rabbitmq": provide_rabbitmq, "openid": provide_openid_provider}
    return max([provide[name]() for name in names or provide])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

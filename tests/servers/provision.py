"""RabbitMQ, proxies, promtool and an OpenID provider for the tests: ``python -m tests.servers.provision [NAME ...]``.

The names are ``rabbitmq``, ``tools`` (nginx, HAProxy and promtool) and ``openid``, all three by default, and
``apache2``, for the tests of ``make matrix``.

As root on Debian this program installs the missing packages; otherwise it prints the command that does. RabbitMQ need
not be installed if NUROPB_TEST_AMQP_URL names a broker that answers; without it the tests boot throwaway nodes. The
provider is npm's oidc-provider, installed beside its script. The output is one line for each program.
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
#: Debian's packages, with the program of each that the tests run.
TOOLS = {"nginx": "nginx", "haproxy": "haproxy", "prometheus": "promtool"}
PROGRAMS = TOOLS | {"apache2": "apache2"}
#: Debian's packages run this program before they start a daemon; status 101 forbids it.
POLICY = Path("/usr/sbin/policy-rc.d")


def external_url() -> str | None:
    """Return NUROPB_TEST_AMQP_URL, if a broker answers there."""
    url = os.environ.get("NUROPB_TEST_AMQP_URL")
    return url if url and answers_amqp(url, timeout=5.0) else None


def installed() -> bool:
    """Return whether the programs of a throwaway RabbitMQ node are installed."""
    return all((find_program("rabbitmq-server"), find_program("rabbitmqctl"), find_program("epmd")))


def find_tool(name: str) -> str | None:
    """Return the path of a program, also if its directory is only on root's PATH."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


def missing(wanted: Sequence[str]) -> list[str]:
    """Return the packages whose programs are not installed."""
    return [name for name in wanted if not (find_tool(PROGRAMS[name]) if name in PROGRAMS else installed())]


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
    """Keep Debian's packages from starting their daemons within this context, unless the machine has a policy."""
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
    """Install Debian's packages. Returns None, or the output of apt-get if a program is still missing."""
    port_mapper_was_there = listening(4369)
    with no_daemons():
        update = run(*APT_GET, "update")
        package = run(*APT_GET, "install", "-y", "--no-install-recommends", *packages)
    # Only the programs count: they can be there although the update of one source failed, or a daemon did not start.
    if missing(packages):
        return update.stdout + package.stdout
    # The machine did not have these daemons before, so it needs them neither now nor after a reboot.
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


def provide_programs(*, rabbitmq: bool = True, tools: bool = True, apache: bool = False) -> int:
    """Provide RabbitMQ and the tools, and return the exit status."""
    url = external_url()
    packages = missing(
        [
            *(["rabbitmq-server"] if rabbitmq and not url else []),
            *(TOOLS if tools else ()),
            *(["apache2"] if apache else []),
        ]
    )
    if packages and (shutil.which("apt-get") is None or os.geteuid() != 0):
        hint = "as root: apt-get install" if shutil.which("apt-get") else "install"
        broker = ", or set NUROPB_TEST_AMQP_URL to a broker for tests" if "rabbitmq-server" in packages else ""
        print(f"Missing for the tests: {hint} {' '.join(packages)}{broker}", file=sys.stderr)
        # Tests without their tool are skipped, but most tests need a broker, and CI skips none.
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
    """Provide the OpenID provider, and return the exit status."""
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
    # There is no lock file: it would contain the addresses of this machine's npm registry.
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
    """Provide the named programs, or all of them, and return the exit status."""
    names = names or ("rabbitmq", "tools", "openid")
    status = provide_programs(rabbitmq="rabbitmq" in names, tools="tools" in names, apache="apache2" in names)
    return max(status, provide_openid_provider() if "openid" in names else 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

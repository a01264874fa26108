"""Node and Chromium for the tests of the JavaScript client: ``python -m tests.servers.javascript [node] [chromium]``.

As root on Debian this program installs the missing packages; otherwise it prints a remedy. The output is one line for
each program.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.servers.provision import APT_GET, run

__all__ = ["CLIENT", "CONSOLE", "NODE", "find_chromium", "find_node"]

CLIENT: Final = Path(__file__).resolve().parents[2] / "clients" / "js"
#: The npm packages of the console and its tests.
CONSOLE: Final = CLIENT.parent / "console"
#: The client needs Node 20, which has a WebSocket by an option; the tools that build the client need this version.
NODE_VERSION: Final = (20, 19)
NODE: Final = ".".join(map(str, NODE_VERSION))


@functools.cache
def find_node() -> tuple[str, tuple[int, int]] | None:
    """Return the program and its version, if the version is new enough and npm is installed too."""
    program = shutil.which("node")
    if program is None or shutil.which("npm") is None:
        return None
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    version = version_in(said)
    return (program, version) if version >= NODE_VERSION else None


def version_in(text: str) -> tuple[int, int]:
    """Return the first version in ``text``; (0, 0) without one."""
    match = re.search(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def find_chromium() -> str | None:
    """Return the path of Chromium or Chrome, if one is installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


# --- installation -------------------------------------------------------------------------------------------------


def may_install() -> bool:
    """Return whether this process can install Debian's packages."""
    return shutil.which("apt-get") is not None and os.geteuid() == 0


def install(*packages: str) -> str:
    """Install Debian's packages, and return the output of apt-get."""
    return run(*APT_GET, "install", "-y", "--no-install-recommends", *packages).stdout


def provide_node() -> bool:
    """Provide Node and npm. Returns False if they are missing, after printing the remedy."""
    if (found := find_node()) is not None:
        print(f"Node: {found[0]}, {'.'.join(map(str, found[1]))}")
        return True
    hint = f"Node {NODE} or newer is missing: have node and npm on the PATH, for example those of nodejs.org"
    output = ""
    if may_install():
        output = run(*APT_GET, "update").stdout
        offered = version_in(run("apt-cache", "--quiet=0", "policy", "nodejs").stdout.partition("Candidate:")[2])
        if offered >= NODE_VERSION:
            print("Node: installing Debian's nodejs and npm", flush=True)
            output += install("nodejs", "npm")
            find_node.cache_clear()
            if find_node() is not None:
                return True
        else:
            output = ""
            hint += f" (Debian's own is {'.'.join(map(str, offered))} here)"
    print(f"{output}\n{hint}".strip(), file=sys.stderr)
    return False


def provide_chromium() -> bool:
    """Provide Chromium. Returns False if it is missing, after printing the remedy."""
    if (found := find_chromium()) is not None:
        print(f"Chromium: {found}")
        return True
    output = ""
    if may_install():
        print("Chromium: installing Debian's chromium", flush=True)
        output = run(*APT_GET, "update").stdout + install("chromium")
        if find_chromium() is not None:
            return True
    hint = "as root: apt-get install chromium" if shutil.which("apt-get") else "install chromium"
    print(f"{output}\nChromium is missing: {hint}".strip(), file=sys.stderr)
    return False


def main(names: Sequence[str] = ()) -> int:
    """Provide the named programs, or both of them, and return the exit status."""
    providers = {"node": provide_node, "chromium": provide_chromium}
    provided = [providers[name]() for name in names or providers]
    return 0 if all(provided) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Node and Chromium, which the tests of the JavaScript client run on: ``python -m tests.servers.javascript``.

Run as a program, it sees to it that they are there: root on Debian installs what is missing. It says in one line each
what was found, or what to do.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.servers.provision import APT_GET, run

__all__ = ["CLIENT", "CONSOLE", "NODE", "find_chromium", "find_node"]

CLIENT: Final = Path(__file__).resolve().parents[2] / "clients" / "js"
#: What the console and its tests need of npm.
CONSOLE: Final = CLIENT.parent / "console"
#: The first version that can be asked for a WebSocket; the tools that build the client need more.
NODE_VERSION: Final = (20, 19)
NODE: Final = ".".join(map(str, NODE_VERSION))


@functools.cache
def find_node() -> tuple[str, tuple[int, int]] | None:
    """The program and its version, if it is new enough and has npm beside it."""
    program = shutil.which("node")
    if program is None or shutil.which("npm") is None:
        return None
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    version = version_in(said)
    return (program, version) if version >= NODE_VERSION else None


def version_in(text: str) -> tuple[int, int]:
    """The first version in ``text``."""
    match = re.search(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def find_chromium() -> str | None:
    """The program, if it is installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


# --- to have them -------------------------------------------------------------------------------------------------


def may_install() -> bool:
    """Whether packages can be installed here."""
    return shutil.which("apt-get") is not None and os.geteuid() == 0


def install(*packages: str) -> str:
    """Install packages of Debian; all that was said."""
    return run(*APT_GET, "install", "-y", "--no-install-recommends", *packages).stdout


def provide_node() -> bool:
    """Have Node and npm. False if there is none, and somebody has to do something about it."""
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
    """Have Chromium. False if there is none, and somebody has to do something about it."""
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


def main() -> int:
    return 0 if all([provide_node(), provide_chromium()]) else 1


if __name__ == "__main__":
    sys.exit(main())

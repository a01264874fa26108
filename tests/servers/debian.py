"""Programs of a newer Debian on this machine: ``python -m tests.servers.debian SUITE``, as root, on Debian or Ubuntu.

debootstrap puts the suite into ``.debian/SUITE``, with its RabbitMQ, and ``sid`` with the newest Python, too, in
``.debian/python``. The suite's programs run in it by chroot; Python runs outside of it, with the suite's loader and
libraries, because tests need the programs of this machine as well. Nothing is installed into the machine but
debootstrap and patchelf.

Only the standard library is used, so that ``rabbitmq`` can import it anywhere.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

__all__ = ["ROOTS", "command_in", "main"]

ROOTS: Final = Path(__file__).resolve().parents[2] / ".debian"
#: Where the newest Python is, as a prefix.
PYTHON: Final = ROOTS / "python"
#: Where packages come from: by default, from where debootstrap takes them.
MIRROR: Final = os.environ.get("NUROPB_TEST_DEBIAN_MIRROR")
PACKAGES: Final = {
    "sid": ("rabbitmq-server", "python3.14", "python3.14-venv"),
    "trixie": ("rabbitmq-server",),
}

# The mounts end with the process, because they are in a namespace of its own. $1 is the root, $2 the directory for
# temporary files, where nodes keep their data; the rest is the program, which replaces the shell: it gets the signals.
ENTER = """
set -e
mount --rbind /dev "$1/dev"
mount --rbind /proc "$1/proc"
mkdir -p "$1$2"
mount --bind "$2" "$1$2"
root=$1
shift 2
exec chroot "$root" "$@"
"""


def command_in(root: str, program: str) -> tuple[str, ...]:
    """Make the command that runs a program of another root, to which arguments can be added; it needs to be root."""
    inside = ("/bin/sh", "-c", ENTER, "enter", root, tempfile.gettempdir(), program)
    return ("unshare", "--mount", "--propagation", "private", "--", *inside)


def _run(*command: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LANG": "C.UTF-8"}
    subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=True)


def _install(packages: Sequence[str], *, root: Path | None = None) -> None:
    inside = ("chroot", str(root)) if root else ()
    _run(*inside, "apt-get", "-qq", "update")
    _run(*inside, "apt-get", "-qq", "install", "-y", "--no-install-recommends", *packages)


def make_root(suite: str) -> Path:
    """Make the suite's root if it is not there yet, in some minutes, and return its path."""
    root, done = ROOTS / suite, ROOTS / f"{suite}.done"
    if not done.exists():
        print(f"Setting up Debian's {suite} in {root}, which is done once", flush=True)
        if missing := [name for name in ("debootstrap", "patchelf") if shutil.which(name) is None]:
            _install(missing)
        shutil.rmtree(root, ignore_errors=True)
        root.parent.mkdir(exist_ok=True)
        _run(
            "debootstrap",
            "--variant=minbase",
            "--include=ca-certificates",
            suite,
            str(root),
            *([MIRROR] if MIRROR else ()),
        )
        # Keep the packages from starting their daemons.
        policy = root / "usr/sbin/policy-rc.d"
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
        _install(PACKAGES[suite], root=root)
        done.touch()
    return root


def make_python(root: Path) -> Path:
    """Make the newest Python out of a root, and return the path of its program."""
    program = PYTHON / "bin" / "python3"
    if not program.exists():
        newest = max(root.glob("usr/bin/python3.[0-9]*[0-9]"), key=lambda path: int(path.name.partition(".")[2]))
        shutil.rmtree(PYTHON, ignore_errors=True)
        (PYTHON / "bin").mkdir(parents=True)
        library = PYTHON / "lib" / newest.name
        shutil.copytree(root / "usr/lib" / newest.name, library, symlinks=True)
        for path in library.glob("_sysconfigdata*.py"):
            # venv installs pip from there.
            path.write_text(path.read_text().replace("'/usr/share/python-wheels", f"'{root}/usr/share/python-wheels"))
        copy = PYTHON / "bin" / newest.name
        shutil.copy2(newest, copy)
        loader = next(root.glob("usr/lib*/ld-linux*.so.*"), None) or next(root.glob("usr/lib/*/ld-linux*.so.*"))
        libraries = next(root.glob("usr/lib/*-linux-gnu"))
        _run("patchelf", "--set-interpreter", str(loader), "--force-rpath", "--set-rpath", str(libraries), str(copy))
        program.symlink_to(newest.name)
    return program


def main(suites: Sequence[str]) -> int:
    """Make these suites, and return the exit status."""
    if unknown := set(suites) - set(PACKAGES):
        print(f"unknown: {', '.join(unknown)}; expected some of {', '.join(PACKAGES)}", file=sys.stderr)
        return 2
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        print("Another suite of Debian needs root, on Debian or Ubuntu", file=sys.stderr)
        return 1
    for suite in suites or PACKAGES:
        root = make_root(suite)
        if suite == "sid":
            print(f"Python: {make_python(root)}")
        print(f"RabbitMQ of {suite}: NUROPB_TEST_RABBITMQ_ROOT={root}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

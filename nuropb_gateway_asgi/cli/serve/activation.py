"""systemd's side of a service: sockets that it opens before the start, and messages about the state.

This is sd_listen_fds(3) and sd_notify(3), which are a few environment variables and one datagram.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Final

import click

__all__ = ["descriptor", "notify"]

#: The descriptor of the first socket that systemd passes.
FIRST: Final = 3
#: The word for a socket of systemd, in the place of a number.
SYSTEMD: Final = "systemd"


def descriptor(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Return the number of a file descriptor, as click's callback of an option.

    ``value`` is a number, ``systemd`` for the socket that systemd has passed, or ``systemd:NAME`` for the one with that
    FileDescriptorName. Raises click.BadParameter, with what systemd has passed, if that does not fit.
    """
    if value is None or value.isdecimal():
        return None if value is None else int(value)
    word, _, wanted = value.partition(":")
    if word != SYSTEMD:
        raise click.BadParameter(f"{value!r} is no file descriptor; expected a number, {SYSTEMD} or {SYSTEMD}:NAME")
    passed = _passed()
    if not passed:
        raise click.BadParameter("systemd has passed no socket to this process; start it by a .socket unit")
    fitting = [number for number, name in passed.items() if not wanted or name == wanted]
    if not fitting:
        raise click.BadParameter(
            f"systemd has passed no socket named {wanted}; it has passed {', '.join(passed.values())}"
        )
    if len(fitting) > 1:
        raise click.BadParameter(f"systemd has passed {len(fitting)} sockets; name one of them: {SYSTEMD}:NAME")
    return fitting[0]


def _passed() -> dict[int, str]:
    """Return the sockets that systemd has passed to this process: names by descriptors."""
    try:
        # The variables of another process, such as a parent, are not for this one.
        count = int(os.environ["LISTEN_FDS"]) if int(os.environ["LISTEN_PID"]) == os.getpid() else 0
    except (KeyError, ValueError):
        return {}
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    found = {FIRST + index: names[index] if index < len(names) else "unknown" for index in range(count)}
    for number in found:
        with contextlib.suppress(OSError):
            os.set_inheritable(number, False)
    return found


def notify(state: str) -> None:
    """Tell systemd, with Type=notify, what this process does: ``READY=1`` or ``STOPPING=1``."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address or not hasattr(socket, "AF_UNIX"):
        return
    # A name that begins with @ is in Linux' abstract namespace.
    name = f"\0{address[1:]}" if address.startswith("@") else address
    # A service manager that has gone hears nothing, and the gateway serves without it.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.connect(name)
        manager.sendall(state.encode())

"""``serve --fd``: numbers, and the sockets that systemd passes."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import click
import pytest

from nuropb_gateway_asgi.cli.serve.activation import descriptor, notify


def passed(monkeypatch: pytest.MonkeyPatch, names: str, pid: int | str | None = None) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() if pid is None else pid))
    monkeypatch.setenv("LISTEN_FDS", str(len(names.split(":"))))
    monkeypatch.setenv("LISTEN_FDNAMES", names)
    # No descriptor of this process is changed.
    monkeypatch.setattr(os, "set_inheritable", lambda number, is_inheritable: None)


def convert(value: str) -> int | None:
    command = click.Command("serve")
    return descriptor(click.Context(command), click.Option(["--fd"]), value)


@pytest.mark.parametrize(
    ("names", "value", "number"),
    [("clients", "systemd", 3), ("clients", "systemd:clients", 3), ("others:clients", "systemd:clients", 4)],
)
def test_a_socket_of_systemd_is_found_alone_or_by_its_name(
    names: str, value: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed(monkeypatch, names)
    assert convert(value) == number


@pytest.mark.parametrize(
    ("names", "value", "said"),
    [
        ("a:b", "systemd", "has passed 2 sockets; name one of them"),
        ("a:b", "systemd:c", "no socket named c; it has passed a, b"),
        ("a", "three", "expected a number, systemd or systemd:NAME"),
        ("a", "-1", "expected a number"),
    ],
)
def test_what_does_not_fit_is_named(names: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    passed(monkeypatch, names)
    with pytest.raises(click.BadParameter, match=said):
        convert(value)


@pytest.mark.parametrize("pid", [1, "", "x"])
def test_sockets_of_another_process_are_not_taken(pid: int | str, monkeypatch: pytest.MonkeyPatch) -> None:
    passed(monkeypatch, "clients", pid)
    with pytest.raises(click.BadParameter, match=r"no socket to this process; start it by a \.socket unit"):
        convert("systemd")


def test_a_number_is_taken_as_it_is() -> None:
    assert convert("7") == 7


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="systemd's sockets are Unix sockets")
def test_a_manager_that_has_gone_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    notify("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        name = f"nuropb-gateway-test-{os.getpid()}"
        manager.bind(f"\0{name}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        notify("READY=1")
        assert manager.recv(100) == b"READY=1"

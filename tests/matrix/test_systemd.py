"""The units of ``deploy/``, checked by systemd's own tool."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.kit.processes import ROOT
from tests.servers.processes import unavailable
from tests.servers.provision import find_tool

FILES = ("nuropb-gateway.service", "nuropb-gateway.socket", "nuropb-gateway.service.d/socket.conf")


def verify(folder: Path) -> str:
    program = find_tool("systemd-analyze")
    if program is None:
        unavailable("systemd-analyze is not installed")
    command = [program, "verify", "./nuropb-gateway.service", "./nuropb-gateway.socket"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stderr


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, with a program that is there."""
    (tmp_path / "nuropb-gateway.service.d").mkdir()
    for name in FILES:
        text = (ROOT / "deploy" / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text.replace("/opt/nuropb-gateway/bin/nuropb-gateway", str(shutil.which("env"))))
    return tmp_path


def test_systemd_finds_nothing_in_the_units(units: Path) -> None:
    said = verify(units)
    assert [line for line in said.splitlines() if "nuropb-gateway" in line] == []


def test_systemd_finds_a_mistake(units: Path) -> None:
    file = units / "nuropb-gateway.socket"
    file.write_text(file.read_text().replace("NoDelay", "NoDelays"))
    assert "NoDelays" in verify(units)

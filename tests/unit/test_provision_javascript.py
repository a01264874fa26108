"""What is said and done when Node or Chromium is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.servers import javascript


class Machine:
    """Which programs there are, and what the package manager would install."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.programs: dict[str, str] = {}
        self.offers: dict[str, dict[str, str]] = {}
        self.candidate = "18.20.4+dfsg-1~deb12u2"
        self.commands: list[str] = []
        monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name in self.programs else None)
        monkeypatch.setattr(subprocess, "run", self.run)
        monkeypatch.setattr(javascript, "run", lambda *command: self.run(command))
        monkeypatch.setattr(os, "geteuid", lambda: 0)

    def run(self, command: Any, **_: Any) -> subprocess.CompletedProcess[str]:
        words = list(command)
        self.commands.append(" ".join(words))
        output = ""
        if words[0] == "/usr/bin/node":
            output = self.programs["node"]
        elif words[0] == "apt-cache":
            output = f"nodejs:\n  Installed: (none)\n  Candidate: {self.candidate}\n"
        elif "install" in words:
            for package in words:
                self.programs |= self.offers.get(package, {})
            output = "E: Unable to locate package" if not self.offers else ""
        return subprocess.CompletedProcess(words, 0, output, "")

    @property
    def installed(self) -> bool:
        return any("install" in command for command in self.commands)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    javascript.find_node.cache_clear()
    yield Machine(monkeypatch)
    javascript.find_node.cache_clear()


def test_what_is_there_is_used(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.programs = {"node": "v20.20.2\n", "npm": "", "chromium": ""}
    assert javascript.main() == 0
    assert capsys.readouterr().out == "Node: /usr/bin/node, 20.20\nChromium: /usr/bin/chromium\n"
    assert not machine.installed


@pytest.mark.parametrize(
    "programs",
    [
        {},
        {"node": "v18.20.4\n", "npm": ""},
        {"node": "v20.18.1\n", "npm": ""},
        {"node": "v20.20.2\n"},
        {"node": "?", "npm": ""},
    ],
)
def test_no_node_that_is_new_enough_and_no_root_to_install_one(
    machine: Machine, capsys: pytest.CaptureFixture[str], programs: dict[str, str]
) -> None:
    machine.programs = {"chromium": "", **programs}
    assert javascript.main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Node 20.19 or newer is missing: have node and npm on the PATH")
    assert not machine.installed


def test_debians_node_is_not_installed_where_it_is_too_old(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.programs = {"apt-get": "", "chromium": ""}
    assert javascript.main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("(Debian's own is 18.20 here)")
    assert not machine.installed


def test_root_on_debian_installs_both(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.programs = {"apt-get": ""}
    machine.candidate = "20.19.2+dfsg-1"
    machine.offers = {"nodejs": {"node": "v20.19.2\n"}, "npm": {"npm": ""}, "chromium": {"chromium": ""}}
    assert javascript.main() == 0
    assert capsys.readouterr().err == ""
    assert javascript.find_node() == ("/usr/bin/node", (20, 19))


def test_what_the_package_manager_said_is_shown_when_it_could_not_install(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.programs = {"apt-get": "", "node": "v22.1.0\n", "npm": ""}
    assert javascript.main() == 1
    error = capsys.readouterr().err
    assert "E: Unable to locate package" in error
    assert "as root: apt-get install chromium" in error


def test_one_program_can_be_named(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.programs = {"chromium": ""}
    assert javascript.main(["chromium"]) == 0
    assert capsys.readouterr().out == "Chromium: /usr/bin/chromium\n"
    assert javascript.main(["node", "chromium"]) == 1

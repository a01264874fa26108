"""``deploy/compose.yaml``, by the specification of Compose."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.kit.processes import ROOT
from tests.matrix.deploy_tools import ask
from tests.servers.processes import unavailable
from tests.servers.provision import find_tool

TEXT: Final = (ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8")
CHECK: Final = """
import compose_spec
try:
    compose = compose_spec.PyOptions(apply_merge=True).from_yaml(text)
    compose.validate()
except ValueError as error:
    print(json.dumps({"problem": str(error)}))
else:
    print(json.dumps({"services": compose.service_names()}))
"""


def test_the_file_is_valid() -> None:
    assert "gateway" in ask(CHECK, text=TEXT)["services"]


@pytest.mark.parametrize("mistake", [("stop_grace_period", "stop_grace"), ("secrets: [mesh_url]", "secrets: [mesh]")])
def test_the_check_finds_mistakes(mistake: tuple[str, str]) -> None:
    assert "problem" in ask(CHECK, text=TEXT.replace(*mistake))


def test_prometheus_and_its_alert_manager_find_nothing_in_their_files(tmp_path: Path) -> None:
    promtool, amtool = find_tool("promtool"), find_tool("amtool")
    if promtool is None or amtool is None:
        unavailable("promtool or amtool is not installed")
    deploy = ROOT / "deploy"
    for name in ("compose/prometheus.yml", "prometheus/nuropb-gateway.rules.yml", "prometheus/alertmanager.yml"):
        shutil.copy(deploy / name, tmp_path)
    for command in ([promtool, "check", "config", "prometheus.yml"], [amtool, "check-config", "alertmanager.yml"]):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

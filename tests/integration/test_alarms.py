"""Prometheus' own tool, on the rules and dashboards of ``deploy/``."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.kit.processes import ROOT
from tests.servers.processes import unavailable
from tests.servers.provision import find_tool

PROMETHEUS = ROOT / "deploy" / "prometheus"


def promtool(*arguments: str) -> str:
    program = find_tool("promtool")
    if program is None:
        unavailable("promtool is not installed (Debian: prometheus)")
    process = subprocess.run(
        [program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert process.returncode == 0, process.stdout
    return process.stdout


def test_each_alarm_fires_at_its_symptom_and_is_silent_otherwise() -> None:
    promtool("test", "rules", str(PROMETHEUS / "nuropb-gateway.tests.yml"))


def test_the_configuration_and_its_rules_are_valid() -> None:
    assert "rules found" in promtool("check", "config", str(PROMETHEUS / "prometheus.yml"))


def test_the_expressions_of_the_dashboards_are_valid(tmp_path: Path) -> None:
    expressions = [
        target["expr"].replace("$__rate_interval", "1m")
        for path in (ROOT / "deploy" / "grafana").glob("*.json")
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]
        for target in panel.get("targets", ())
    ]
    assert len(expressions) > 30
    rules = [{"record": f"panel_{number}", "expr": each} for number, each in enumerate(expressions)]
    file = tmp_path / "dashboards.json"  # JSON is YAML, too
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}), encoding="utf-8")
    promtool("check", "rules", str(file))

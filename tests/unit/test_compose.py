"""``deploy/compose.yaml``, compared with the repository and with the gateway's settings."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from nuropb_gateway_asgi import Settings
from nuropb_gateway_asgi.settings import ENV_PREFIX

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
COMPOSE: Final[dict[str, Any]] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: Final[dict[str, Any]] = COMPOSE["services"]
SECRETS: Final = "./secrets/"


def test_every_file_that_is_mounted_is_in_the_repository() -> None:
    sources = [volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())]
    files = [source for source in sources if source.startswith(".") and not source.startswith(SECRETS)]
    assert files
    assert [source for source in files if not (DEPLOY / source).exists()] == []
    named = {source for source in sources if not source.startswith(".")}
    assert named == set(COMPOSE["volumes"])


def test_every_secret_is_named_in_the_walk_that_makes_it() -> None:
    text = (DEPLOY.parent / "docs" / "operations-quickstart.md").read_text(encoding="utf-8")
    sources = [volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())]
    files = [source for source in sources if source.startswith(SECRETS)]
    files += [secret["file"] for secret in COMPOSE["secrets"].values()]
    assert [file for file in files if f"deploy/{file.removeprefix('./')}" not in text] == []
    used = {name for service in SERVICES.values() for name in service.get("secrets", ())}
    assert used == set(COMPOSE["secrets"])


def test_every_variable_of_the_gateway_is_a_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment: dict[str, str] = SERVICES["gateway"]["environment"]
    names = {field.name for field in fields(Settings)} | {"mesh_url_file"}
    assert {name.removeprefix(ENV_PREFIX).lower() for name in environment} <= names
    (tmp_path / "mesh_url").write_text("amqp://nuropb:secret@rabbitmq:5672/")
    (tmp_path / "jwt_key").write_text("k" * 43)
    for name, value in environment.items():
        monkeypatch.setenv(name, value.replace("/run/secrets", str(tmp_path)))
    assert Settings.from_env().mesh_url == "amqp://nuropb:secret@rabbitmq:5672/"


def test_no_port_is_open_to_other_machines() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_the_prometheus_of_the_containers_is_that_of_a_machine_but_for_addresses() -> None:
    own = yaml.safe_load((DEPLOY / "compose" / "prometheus.yml").read_text(encoding="utf-8"))
    other = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    assert own["rule_files"] == other["rule_files"]
    assert own["global"] == other["global"]
    (mine, theirs) = own["scrape_configs"][0], other["scrape_configs"][0]
    assert mine.pop("static_configs")[0]["targets"] == ["gateway:8000"]
    theirs.pop("static_configs")
    assert mine == theirs


def test_the_dashboards_are_where_grafana_looks_for_them() -> None:
    provider = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/nuropb-gateway.yml").read_text())
    folder = provider["providers"][0]["options"]["path"]
    mounted = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    dashboards = {f"./grafana/{path.name}": f"{folder}/{path.name}" for path in (DEPLOY / "grafana").glob("*.json")}
    assert dashboards
    assert dashboards.items() <= mounted.items()
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"][0]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in SERVICES

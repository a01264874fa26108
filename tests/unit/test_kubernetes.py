"""The manifests and the chart of ``deploy/``, compared with the gateway's settings, paths and rules."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import httpx
import yaml

from nuropb_gateway_asgi import Gateway, Settings
from nuropb_gateway_asgi.settings import ENV_PREFIX

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
CHART: Final = DEPLOY / "helm" / "nuropb-gateway"
RULES: Final = DEPLOY / "prometheus" / "nuropb-gateway.rules.yml"
MANIFESTS: Final[dict[str, Any]] = {
    each["kind"]: each
    for file in ("gateway.yaml", "monitoring.yaml")
    for each in yaml.safe_load_all((DEPLOY / "kubernetes" / file).read_text(encoding="utf-8"))
}
POD: Final[dict[str, Any]] = MANIFESTS["Deployment"]["spec"]["template"]["spec"]
SETTINGS: Final[dict[str, str]] = MANIFESTS["ConfigMap"]["data"]


def test_every_variable_of_the_manifests_and_the_chart_is_a_setting() -> None:
    names = {f"{ENV_PREFIX}{field.name.upper()}" for field in fields(Settings)}
    names |= {f"{ENV_PREFIX}MESH_URL_FILE", "FORWARDED_ALLOW_IPS"}
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    refused = schema["properties"]["settings"]["propertyNames"]["not"]["enum"]
    assert {*SETTINGS, *values["settings"], *refused} <= names


async def test_the_probes_ask_paths_of_the_gateway() -> None:
    app = Gateway(Settings()).app
    container = POD["containers"][0]
    paths = {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    paths.add(MANIFESTS["ServiceMonitor"]["spec"]["endpoints"][0]["path"])
    assert paths == {"/livez", "/readyz", "/metrics"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        assert {(await client.get(path)).status_code for path in paths} <= {200, 503}


def test_the_pod_is_killed_after_the_drain_only() -> None:
    delay = int(SETTINGS[f"{ENV_PREFIX}SHUTDOWN_DELAY"])
    assert POD["terminationGracePeriodSeconds"] >= delay + Settings().drain_timeout + 5


def test_the_port_is_that_of_the_image() -> None:
    (port,) = POD["containers"][0]["ports"]
    dockerfile = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    assert f"EXPOSE {port['containerPort']}\n" in dockerfile
    assert f'"--port", "{port["containerPort"]}"]' in dockerfile
    assert f"USER {POD['securityContext']['runAsUser']}:{POD['securityContext']['runAsGroup']}\n" in dockerfile


def test_the_alarms_of_the_operator_and_of_the_chart_are_those_of_prometheus() -> None:
    rules = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    assert MANIFESTS["PrometheusRule"]["spec"] == rules
    assert (CHART / "files" / RULES.name).read_bytes() == RULES.read_bytes()


def test_the_job_of_the_monitor_is_the_one_that_the_alarms_name() -> None:
    label = MANIFESTS["ServiceMonitor"]["spec"]["jobLabel"]
    job = MANIFESTS["Service"]["metadata"]["labels"][label]
    assert f'up{{job="{job}"}}' in RULES.read_text(encoding="utf-8")


def test_the_autoscaler_asks_for_a_metric_that_the_adapter_makes() -> None:
    (rule,) = yaml.safe_load((DEPLOY / "kubernetes" / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    metric = MANIFESTS["HorizontalPodAutoscaler"]["spec"]["metrics"][0]["pods"]
    assert rule["name"]["as"] == metric["metric"]["name"]
    assert int(metric["target"]["averageValue"]) < Settings().max_connections


def test_every_value_of_the_chart_is_in_its_schema_and_its_readme() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))["properties"]
    readme = (CHART / "README.md").read_text(encoding="utf-8")
    assert values.keys() == schema.keys() - {"global"}
    for name, value in values.items():
        assert f"`{name}" in readme
        if isinstance(value, dict) and "properties" in schema[name]:
            assert value.keys() <= schema[name]["properties"].keys()
            assert [key for key in value if f"{name}.{key}`" not in readme and f".{key}`" not in readme] == []


def test_the_version_of_the_chart_is_that_of_the_package() -> None:
    from nuropb_gateway_asgi import __version__

    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)
    assert POD["containers"][0]["image"].endswith(f":{__version__}")

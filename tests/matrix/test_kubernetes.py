"""The manifests and the chart of ``deploy/``: linted, rendered and compared, without a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.kit.processes import ROOT
from tests.matrix.deploy_tools import ask, run_tool

CHART: Final = ROOT / "deploy" / "helm" / "nuropb-gateway"
KUBERNETES: Final = ROOT / "deploy" / "kubernetes"
#: The oldest version that the files name, and the newest for which the tool has schemas.
VERSIONS: Final = ("1.29", "1.37")
#: What the schemas of Kubernetes do not have: the resources of the Prometheus Operator.
CUSTOM: Final = ("ServiceMonitor", "PrometheusRule")

RENDER: Final = """
from helm_python import chart
loaded = chart.Chart.load(path)
print(json.dumps(loaded.render(values, name=name, namespace="default")))
"""
LINT: Final = """
from helm_python import chart
print(json.dumps(chart.lint(path, strict=True)))
"""
REFUSE: Final = """
from helm_python import chart
try:
    chart.Chart.load(path).validate_schema(values)
except Exception as error:
    print(json.dumps(str(error)))
else:
    print("null")
"""


def render(name: str = "nuropb-gateway", **values: Any) -> dict[str, dict[str, Any]]:
    """Return the objects of the chart, by kind."""
    texts = ask(RENDER, path=str(CHART), name=name, values=values)
    objects = [yaml.safe_load(text) for path, text in texts.items() if path.endswith(".yaml")]
    return {each["kind"]: each for each in objects if each}


def plain() -> dict[str, dict[str, Any]]:
    """Return the objects of the plain manifests, by kind."""
    files = ("gateway.yaml", "monitoring.yaml")
    found = [each for file in files for each in yaml.safe_load_all((KUBERNETES / file).read_text())]
    return {each["kind"]: each for each in found}


def stripped(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest without what tells one release of the chart from another."""
    labels = manifest["metadata"]["labels"]
    for name in ("app.kubernetes.io/version", "app.kubernetes.io/managed-by", "helm.sh/chart"):
        labels.pop(name, None)
    if manifest["kind"] == "Deployment":
        template = manifest["spec"]["template"]
        template["metadata"].pop("annotations", None)
        template["spec"]["containers"][0].pop("imagePullPolicy", None)
    return manifest


@pytest.fixture(scope="module")
def rendered() -> dict[str, dict[str, Any]]:
    return render()


def test_helm_finds_nothing_in_the_chart() -> None:
    found = ask(LINT, path=str(CHART))
    messages = [each for each in found["messages"] if "icon is recommended" not in str(each)]
    assert messages == []


@pytest.mark.parametrize("version", VERSIONS)
def test_the_plain_manifests_and_the_rendered_chart_are_valid(
    version: str, rendered: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    chart = tmp_path / "chart.yaml"
    chart.write_text(yaml.safe_dump_all(each for kind, each in rendered.items() if kind not in CUSTOM))
    files = (str(KUBERNETES / "gateway.yaml"), str(chart))
    done = run_tool("kubernetes-validate", "--strict", "-k", version, *files)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout + done.stderr).count("passed") == 2 * (len(rendered) - len(CUSTOM))


def test_the_chart_by_its_defaults_makes_the_plain_manifests(rendered: dict[str, dict[str, Any]]) -> None:
    other = plain()
    assert rendered.keys() == other.keys()
    for kind, manifest in rendered.items():
        assert stripped(manifest) == stripped(other[kind]), kind


def test_two_releases_in_one_namespace_share_nothing() -> None:
    objects = render("second")
    assert {each["metadata"]["name"] for each in objects.values()} == {"second-nuropb-gateway"}
    labels = objects["Deployment"]["spec"]["selector"]["matchLabels"]
    assert labels["app.kubernetes.io/instance"] == "second"
    assert objects["Service"]["spec"]["selector"] == labels


def test_values_that_leave_parts_out() -> None:
    objects = render(
        autoscaling={"enabled": False},
        podDisruptionBudget={"enabled": False},
        networkPolicy={"enabled": False},
        monitoring={"serviceMonitor": False, "prometheusRule": False},
        secret={"name": "other", "jwtKey": False},
        replicas=3,
        shutdownDelay=20,
        drainTimeout=60,
    )
    assert objects.keys() == {"ServiceAccount", "ConfigMap", "Deployment", "Service"}
    assert objects["Deployment"]["spec"]["replicas"] == 3
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 90
    assert pod["volumes"][0]["secret"]["secretName"] == "other"
    settings = objects["ConfigMap"]["data"]
    assert "NUROPB_GATEWAY_JWT_KEY_FILE" not in settings
    assert settings["NUROPB_GATEWAY_DRAIN_TIMEOUT"] == "60"


@pytest.mark.parametrize(
    "values",
    [
        {"imagine": {}},
        {"settings": {"NUROPB_GATEWAY_JWT_KEY": "secret"}},
        {"settings": {"NUROPB_GATEWAY_MAX_CONNECTIONS": 5000}},
        {"secret": {"name": ""}},
        {"networkPolicy": {"from": []}},
        {"shutdownDelay": -1},
    ],
    ids=str,
)
def test_the_schema_of_the_values_refuses_mistakes(values: dict[str, Any]) -> None:
    assert ask(REFUSE, path=str(CHART), values=values) is not None


def test_the_schema_of_the_values_accepts_its_defaults() -> None:
    assert ask(REFUSE, path=str(CHART), values={}) is None

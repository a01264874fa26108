"""The rules and dashboards of ``deploy/``, compared with the gateway's own metrics and with the documents."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import yaml

from nuropb_gateway_asgi import Gateway, Settings
from nuropb_gateway_asgi.protocol import CloseCode, ErrorCode

ROOT: Final = Path(__file__).parents[2]
RULES: Final = ROOT / "deploy" / "prometheus" / "nuropb-gateway.rules.yml"
RULE_TESTS: Final = RULES.with_name("nuropb-gateway.tests.yml")
DASHBOARDS: Final = sorted((ROOT / "deploy" / "grafana").glob("*.json"))
OPERATIONS: Final = ROOT / "docs" / "operations.md"
#: Series of Prometheus itself.
OWN_SERIES: Final = {"up", "ALERTS"}
METRIC: Final = re.compile(r"[a-z]+:nuropb_gateway_[a-z0-9_:]+|nuropb_gateway_[a-z_]+")


def rules(kind: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


def panels(path: Path) -> list[dict[str, Any]]:
    return [panel for panel in json.loads(path.read_text(encoding="utf-8"))["panels"] if panel["type"] != "row"]


def variables(path: Path) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["templating"]["list"]
    return listed


def expressions() -> Iterator[str]:
    for kind in ("record", "alert"):
        yield from (rule["expr"] for rule in rules(kind))
    for path in DASHBOARDS:
        yield from (target["expr"] for panel in panels(path) for target in panel["targets"])
        yield from (each["query"]["query"] for each in variables(path) if each["type"] == "query")


@pytest.fixture
async def metrics() -> set[str]:
    """The names of the series at a gateway's ``/metrics``, with those of fetched keys."""
    gateway = Gateway(Settings(jwt_oidc_issuer="https://login.example.com/", jwt_audience="gateway"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(gateway.app), base_url="http://gateway") as client:
        text = (await client.get("/metrics")).text
    suffixes = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}
    types = re.findall(r"^# TYPE (\S+)(?<!_created) (\w+)$", text, re.MULTILINE)
    return {name + suffix for name, kind in types for suffix in suffixes[kind]}


async def test_every_metric_in_rules_and_dashboards_is_one_of_the_gateway(metrics: set[str]) -> None:
    known = metrics | {rule["record"] for rule in rules("record")}
    used = {name for expression in expressions() for name in METRIC.findall(expression)}
    assert used <= known, used - known
    assert len(used) > 30


async def test_every_metric_of_the_gateway_is_in_the_documents(metrics: set[str]) -> None:
    text = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    names = {re.sub(r"_(bucket|count|sum)$", "", name) for name in metrics}
    assert {name for name in names if f"`{name}`" not in text} == set()


def test_every_code_in_rules_and_dashboards_is_one_of_the_protocol() -> None:
    known = {"ok", *ErrorCode, *(str(int(code)) for code in CloseCode)}
    values = [value for expression in expressions() for value in re.findall(r'\bcode[!=]=?~?"([^"]+)"', expression)]
    assert {code for value in values for code in value.split("|")} <= known
    assert len(values) > 3


def test_every_alarm_leads_to_its_paragraph() -> None:
    headings = re.findall(r"^##+ (.+)$", OPERATIONS.read_text(encoding="utf-8"), re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for alarm in rules("alert"):
        document, _, anchor = alarm["annotations"]["runbook_url"].partition("#")
        assert (document, anchor in anchors) == ("https://docs.example.com/operations.md", True), alarm["alert"]


def test_every_alarm_is_in_the_table_of_the_document() -> None:
    table = set(re.findall(r"^\| `(Nuropb\w+)` \|", OPERATIONS.read_text(encoding="utf-8"), re.MULTILINE))
    assert {alarm["alert"] for alarm in rules("alert")} == table


def test_every_alarm_has_a_case_in_which_it_is_silent_and_one_in_which_it_fires() -> None:
    silent, fires = yaml.safe_load(RULE_TESTS.read_text(encoding="utf-8"))["tests"]
    alarms = {alarm["alert"] for alarm in rules("alert")}
    assert {case["alertname"] for case in silent["alert_rule_test"] if not case["exp_alerts"]} == alarms
    assert {case["alertname"] for case in fires["alert_rule_test"] if case["exp_alerts"]} == alarms


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_panel_says_what_it_shows(path: Path) -> None:
    for panel in panels(path):
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
    assert len({panel["id"] for panel in panels(path)}) == len(panels(path))


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_use_the_variables_that_they_have(path: Path) -> None:
    text = json.dumps([target["expr"] for panel in panels(path) for target in panel["targets"]])
    used = set(re.findall(r"\$(?!__)(\w+)", text))
    assert used == {each["name"] for each in variables(path)} - {"datasource"}

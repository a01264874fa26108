"""The dashboards of ``deploy/``, read and written by Grafana's own types: a field that these do not have is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

from tests.kit.processes import ROOT
from tests.matrix.deploy_tools import ask

DASHBOARDS: Final = sorted((ROOT / "deploy" / "grafana").glob("*.json"))
READ_AND_WRITE: Final = """
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
plugins.register_default_plugins()
print(JSONEncoder().encode(Dashboard.from_json(dashboard)))
"""


def lost(ours: Any, theirs: Any, place: str = "") -> list[str]:
    """Return the places at which ``theirs`` lacks or changes a value of ``ours``."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [each for name in ours for each in lost(ours[name], theirs.get(name), f"{place}/{name}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [each for index, (our, their) in pairs for each in lost(our, their, f"{place}/{index}")]
    return [] if ours == theirs else [place]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_grafana_knows_every_field_of_a_dashboard(path: Path) -> None:
    dashboard = json.loads(path.read_text(encoding="utf-8"))
    assert lost(dashboard, ask(READ_AND_WRITE, dashboard=dashboard)) == []


def test_fields_that_grafana_does_not_know_are_found() -> None:
    dashboard = json.loads(DASHBOARDS[0].read_text(encoding="utf-8"))
    panel = dashboard["panels"][0]
    panel["tittle"] = panel.pop("title")
    panel["options"]["graphMod"] = panel["options"].pop("graphMode")
    found = lost(dashboard, ask(READ_AND_WRITE, dashboard=dashboard))
    assert found == ["/panels/0/options/graphMod", "/panels/0/tittle"]

"""``deploy/compose.yaml``, by the specification of Compose."""

from __future__ import annotations

from typing import Final

import pytest

from tests.kit.processes import ROOT
from tests.matrix.deploy_tools import ask

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

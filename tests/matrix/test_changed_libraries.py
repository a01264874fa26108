"""The fall-back to uvicorn's own protocols, with each of the names missing that the gateway relies on."""

from __future__ import annotations

from pathlib import Path

from tests.integration.test_server_changed_libraries import RENAMES, UVICORN, all_at_once


async def test_plain_uvicorn_without_any_of_the_names_uses_its_own_protocols(tmp_path: Path) -> None:
    assert await all_at_once(UVICORN, RENAMES.values(), tmp_path) == {}

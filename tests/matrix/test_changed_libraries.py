"""The fall-back to uvicorn's own protocols, with each of the names missing that the gateway relies on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.test_server_changed_libraries import (
    PLACEMENT_RENAMES,
    RENAMES,
    SERVE,
    SOME,
    STOCK,
    SUPERVISOR_RENAMES,
    UVICORN,
    all_at_once,
    supervised,
)


async def test_plain_uvicorn_without_any_of_the_names_uses_its_own_protocols(tmp_path: Path) -> None:
    assert await all_at_once(UVICORN, RENAMES.values(), tmp_path) == {}


@pytest.mark.parametrize("command", [STOCK, SERVE], ids=["uvicorn", "serve"])
async def test_every_way_to_start_it_works_without_a_name_of_each_kind(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    assert await all_at_once(command, [RENAMES[name] for name in SOME], tmp_path) == {}


async def test_a_uvicorn_of_another_program_without_a_name_for_the_placement_keeps_its_own_protocols(
    tmp_path: Path,
) -> None:
    assert await all_at_once(STOCK, PLACEMENT_RENAMES.values(), tmp_path) == {}


async def test_a_supervisor_without_any_of_its_names_is_uvicorns_own(tmp_path: Path) -> None:
    assert await all_at_once(supervised(tmp_path), SUPERVISOR_RENAMES.values(), tmp_path) == {}

"""The mesh on working copies of aiormq, in each of which one name that the mesh uses is changed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

import aio_pika
import aiormq
import pytest

from nuropb_gateway_asgi.mesh.rabbitmq._aiormq import REPLACEABLE

ROOT: Final = Path(__file__).parents[2]
#: Seconds.
TIMEOUT: Final = 60.0
#: Processes at the same time.
WORKERS: Final = 3
#: Two names that the mesh cannot do without, and the errors that say so.
REQUIRED: Final = {
    "basic_publish": "SettingsError: the installed aiormq .* has no aiormq.Channel.basic_publish; install .*",
    "PublishError": "ImportError: the installed aiormq .* has no aiormq.exceptions.PublishError; install .*",
}
NAMES: Final = ("", *(each.name for each in REPLACEABLE), *REQUIRED)

RESULTS: Final = {
    "request": "hello",
    "command": "confirmed",
    "to nobody": "returned",
    "event": "news",
    "request after a loss": "hello",
}


class Ended(NamedTuple):
    """The end of a trial."""

    status: int
    stdout: str
    stderr: str

    @property
    def said(self) -> dict[str, Any]:
        assert self.status == 0, self.stderr
        said: dict[str, Any] = json.loads(self.stdout)
        return said


def copy_of_libraries(directory: Path, name: str) -> Path:
    """Make copies of aio-pika and aiormq in which ``name`` is called something else, everywhere."""
    copied = directory / (name or "unchanged")
    for library in (aio_pika, aiormq):
        source = Path(library.__file__ or "").parent
        shutil.copytree(source, copied / source.name)  # with its bytecode, which saves time
    if name:
        for path in copied.rglob("*.py"):
            text, count = re.subn(rf"\b{name}\b", f"{name}_renamed", path.read_text())
            if count:
                path.write_text(text)
    return copied


@pytest.fixture(scope="module")
def trials(amqp_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Ended]]:
    """Try out each copy; the outcomes by the changed name, and by "" for the unchanged copy."""
    directory = tmp_path_factory.mktemp("copies")

    def run(name: str) -> Ended:
        path = copy_of_libraries(directory, name)
        ended = subprocess.run(
            [sys.executable, "-m", "tests.servers.mesh_trial", amqp_url],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(path)},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    with ThreadPoolExecutor(WORKERS) as workers:
        yield dict(zip(NAMES, workers.map(run, NAMES), strict=True))


def test_an_unchanged_copy_is_used_on_the_fast_lane_without_a_warning(trials: dict[str, Ended]) -> None:
    said = trials[""].said
    assert "unchanged" in said["aiormq"]
    assert (said["results"], said["warnings"]) == (RESULTS, [])
    assert (said["fast lane"], said["own sockets"]) == (True, True)


@pytest.mark.parametrize("changed", REPLACEABLE, ids=lambda changed: changed.name)
def test_without_a_replaceable_name_everything_works_with_one_warning(trials: dict[str, Ended], changed: Any) -> None:
    said = trials[changed.name].said
    assert changed.name in said["aiormq"]
    assert said["results"] == RESULTS
    (warning,) = said["warnings"]
    assert f"has no {changed.owner}.{changed.name}: {changed.fallback}; install " in warning
    assert said["own sockets"] is (changed.name in ("connection_tune", "number", "lock"))
    assert said["fast lane"] is (changed.name == "lock")


@pytest.mark.parametrize("name", REQUIRED)
def test_without_a_required_name_the_mesh_is_not_made_and_one_line_says_why(
    trials: dict[str, Ended], name: str
) -> None:
    ended = trials[name]
    assert ended.status == 1
    assert re.fullmatch(rf"(.*\.)?{REQUIRED[name]}", ended.stderr.splitlines()[-1])

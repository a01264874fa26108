"""The modules of ``--service``, loaded again with those that they import."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nuropb_gateway_asgi import SettingsError
from nuropb_gateway_asgi.mocks.modules import ServiceModules
from nuropb_gateway_asgi.mocks.sources import Sources

SERVICE = """
from mocked_shop.names import NAME

class Users:
    _service_name = "users"

    def me(self):
        return NAME
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a package with a service and a module that it imports."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = frozenset(sys.modules)
    folder = tmp_path / "mocked_shop"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "names.py").write_text("NAME = 'one'")
    (folder / "services.py").write_text(SERVICE)
    yield folder
    for name in sys.modules.keys() - before:
        if name.startswith("mocked_"):
            del sys.modules[name]


def name_of(modules: ServiceModules) -> str:
    service: Any = modules.make("mocked_shop.services:Users")
    name: str = service.me()
    return name


def test_a_module_that_a_service_imports_is_loaded_again(project: Path) -> None:
    modules = ServiceModules(["mocked_shop.services:Users"])
    assert name_of(modules) == "one"
    assert {project / "services.py", project / "names.py"} <= modules.files
    (project / "names.py").write_text("NAME = 'two'")
    with modules.renewed():
        assert name_of(modules) == "two"


def test_a_module_that_is_imported_during_a_call_is_loaded_again(project: Path) -> None:
    late = SERVICE.replace("from mocked_shop.names import NAME", "")
    late = late.replace("return NAME", "from mocked_shop.names import NAME; return NAME")
    (project / "services.py").write_text(late)
    modules = ServiceModules(["mocked_shop.services:Users"])
    assert name_of(modules) == "one"
    (project / "names.py").write_text("NAME = 'two'")
    with modules.renewed():
        assert name_of(modules) == "two"


def test_modules_of_other_folders_stay(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path_factory.mktemp("library")
    monkeypatch.syspath_prepend(str(other))
    (other / "mocked_library.py").write_text("NAME = 'one'")
    (project / "services.py").write_text(SERVICE.replace("mocked_shop.names", "mocked_library"))
    modules = ServiceModules(["mocked_shop.services:Users"])
    assert name_of(modules) == "one"
    library = sys.modules["mocked_library"]
    with modules.renewed():
        assert name_of(modules) == "one"
    assert sys.modules["mocked_library"] is library
    assert modules.files == {project / "__init__.py", project / "services.py"}


def test_the_old_modules_stay_where_the_new_ones_fail(project: Path) -> None:
    modules = ServiceModules(["mocked_shop.services:Users"])
    name_of(modules)
    names = sys.modules["mocked_shop.names"]
    (project / "names.py").write_text("NAME = 1 / 0")
    with pytest.raises(SettingsError, match="ZeroDivisionError"), modules.renewed():
        name_of(modules)
    assert sys.modules["mocked_shop.names"] is names


@pytest.mark.parametrize("text", [None, "NAME = ", "NAME = 1 / 0"])
def test_the_file_for_which_a_load_fails_is_watched(project: Path, text: str | None) -> None:
    modules = ServiceModules(["mocked_shop.services:Users"])
    name_of(modules)
    culprit = project / "others.py"
    (project / "services.py").write_text(SERVICE.replace("names", "others"))
    if text is not None:
        culprit.write_text(text)
    with pytest.raises(SettingsError), modules.renewed():
        name_of(modules)
    assert culprit in modules.files
    culprit.write_text("NAME = 'other'")
    with modules.renewed():
        assert name_of(modules) == "other"


def test_a_recording_knows_its_calls_until_its_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "traffic.jsonl"
    path.write_text('{"kind":"head","format":"nuropb-traffic/1"}\n')
    sources = Sources(replays=[path])
    sources.load()
    (first,) = sources.replayed
    sources.load()
    assert sources.replayed == [first]
    path.write_text('{"kind":"head","format":"nuropb-traffic/1","redacted":[]}\n')
    sources.load()
    assert sources.replayed != [first]

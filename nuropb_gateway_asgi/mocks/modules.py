"""The modules of service classes, and those that they import from the same project: loaded, and loaded again."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from ..exceptions import SettingsError

__all__ = ["ServiceModules"]

_OWN_PACKAGE: Final = __name__.partition(".")[0]
#: The folders of Python and of installed packages, which may lie in a project's folder (``.venv``).
_INSTALLED: Final = tuple(
    {Path(path) for name, path in sysconfig.get_paths().items() if name.endswith(("stdlib", "lib"))}
)


class ServiceModules:
    """The service classes ``module:Class``, and the modules of their project: those that came with them."""

    def __init__(self, names: Sequence[str]) -> None:
        self._named = {name.partition(":")[0] for name in names}
        self._before = frozenset(sys.modules)
        #: The folders from which the services' modules were imported.
        self._roots: set[Path] = set()
        #: Files without which the last load would not have failed.
        self._suspects: set[Path] = set()

    @property
    def files(self) -> set[Path]:
        """The files whose change may change a service."""
        return {path for path in map(_file, self._loaded().values()) if path is not None} | self._suspects

    def make(self, name: str) -> object:
        """Make the service ``module:Class``, or take the object of that name. Raises SettingsError."""
        module_name, colon, attribute = name.partition(":")
        if not colon or not attribute:
            raise SettingsError(f"--service {name}: no class; expected module:Class")
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        try:
            found: Any = importlib.import_module(module_name)
            for each in attribute.split("."):
                found = getattr(found, each)
            service = found() if isinstance(found, type) else found
        except Exception as error:  # the module runs the developer's own code
            self._suspects = self._files_of(error)
            raise SettingsError(f"--service {name}: {type(error).__name__}: {error}") from error
        if not isinstance(getattr(service, "_service_name", None), str):
            raise SettingsError(f"--service {name}: the service has no name; set _service_name in the class")
        made: object = service
        return made

    @contextlib.contextmanager
    def renewed(self) -> Iterator[None]:
        """Forget all modules of the project, so that the block imports them again. If it raises, the old ones stay."""
        old = self._loaded()
        for name in old:
            del sys.modules[name]
        importlib.invalidate_caches()  # of folders with new files
        try:
            yield
        except BaseException:
            for name in self._loaded():
                del sys.modules[name]
            sys.modules.update(old)
            raise
        self._suspects = set()

    def _loaded(self) -> dict[str, ModuleType]:
        """Return the modules of the project that are loaded, by name."""
        found = {name: sys.modules[name] for name in self._named & sys.modules.keys()}
        for name, module in found.items():
            if (path := _file(module)) is not None:
                self._roots.add(path.parents[name.count(".") + (path.name == "__init__.py")])
        for name, module in tuple(sys.modules.items()):
            if name not in self._before and name.partition(".")[0] != _OWN_PACKAGE:
                path = _file(module)
                if path is not None and self._has(path):
                    found[name] = module
        return found

    def _has(self, path: Path) -> bool:
        """Return whether a file is one of the project, and not of an installed package."""
        return any(map(path.is_relative_to, self._roots)) and not any(map(path.is_relative_to, _INSTALLED))

    def _files_of(self, error: Exception) -> set[Path]:
        """Return the files of the project that an error comes from, and the one that a failed import needs."""
        names = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        if isinstance(error, SyntaxError) and error.filename is not None:
            names.append(error.filename)
        if isinstance(error, ModuleNotFoundError) and error.name is not None:
            names += [str(root.joinpath(*error.name.split(".")).with_suffix(".py")) for root in self._roots]
        return {path for path in map(Path, names) if self._has(path)}


def _file(module: ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file) if isinstance(file, str) and file.endswith(".py") else None

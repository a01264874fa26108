"""The files and classes that mocked services come from: loaded, and loaded again when they change."""

from __future__ import annotations

import importlib
import logging
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import anyio

from ..exceptions import SettingsError
from ..mesh.embedded_host import EmbeddedHost
from ..wire.services import describe_service
from .definition import ServiceDefinition
from .file_service import FileService
from .mock_file import read_mocks
from .openapi import read_openapi
from .replay import Replay

__all__ = ["Mocked", "Sources"]

logger = logging.getLogger(__name__)

#: Seconds between two looks at the files.
LOOK_INTERVAL: Final = 0.5


@dataclass(frozen=True)
class Mocked:
    """A service in the place of a real one: the object, its source, and each method with the way of its answers."""

    service: object
    source: str
    methods: tuple[tuple[str, str], ...]


class Sources:
    """The mock files, OpenAPI documents and service classes (``module:Class``) of one mesh.

    ``seed`` repeats the delays of a run.
    """

    def __init__(
        self,
        mocks: Sequence[Path] = (),
        openapi: Sequence[Path] = (),
        classes: Sequence[str] = (),
        replays: Sequence[Path] = (),
        *,
        seed: int = 0,
    ) -> None:
        self._replays = tuple(replays)
        #: The recordings of the last load, which know the calls that they had no answer for.
        self.replayed: list[Replay] = []
        self._mocks = tuple(mocks)
        self._openapi = tuple(openapi)
        self._classes = tuple(classes)
        self._seed = seed

    def load(self) -> dict[str, Mocked]:
        """Load all services, by name. Raises SettingsError for a mistake in a file, and OSError for no file."""
        found: dict[str, Mocked] = {}
        for name, mocked in self._loaded():
            if name in found:
                raise SettingsError(f"{mocked.source}: the service {name} is also in {found[name].source}")
            found[name] = mocked
        return found

    def _loaded(self) -> Iterator[tuple[str, Mocked]]:
        for path in self._mocks:
            for definition in read_mocks(path):
                yield definition.name, self._mocked(definition, "")
        for path in self._openapi:
            for definition in read_openapi(path):
                yield definition.name, self._mocked(definition, "its example or schema")
        self.replayed = [Replay(path) for path in self._replays]
        for path, replay in zip(self._replays, self.replayed, strict=True):
            for name, recorded in replay.services().items():
                yield name, Mocked(recorded, str(path), replay.methods(name))
        for name in self._classes:
            service = _made(name)
            yield str(getattr(service, "_service_name")), Mocked(service, name, _described(service))  # noqa: B009

    def _mocked(self, definition: ServiceDefinition, how: str) -> Mocked:
        # Not for secrets: a seed repeats the delays.
        service = FileService(definition, random.Random(self._seed))  # noqa: S311
        methods = tuple((each.name, how or each.how) for each in definition.methods)
        return Mocked(service, definition.source, methods)

    async def watch(self, host: EmbeddedHost, current: Mapping[str, Mocked], tell: Callable[[str], object]) -> None:
        """Load all services again whenever a file changes, and put them in place of the ``current`` ones.

        A mistake is told, and the services stay as they are. Runs until cancelled.
        """
        seen = self._state()
        while True:
            await anyio.sleep(LOOK_INTERVAL)
            if (state := self._state()) == seen:
                continue
            seen = state
            try:
                for name in self._classes:
                    _reload(name)
                loaded = self.load()
                for name in loaded.keys() & {host.own_name}:
                    raise SettingsError(f"{loaded[name].source}: {name} is the name of the gateway itself")
            except (SettingsError, OSError) as error:
                tell(f"nothing was loaded, as before: {error}")
                continue
            for name in current.keys() - loaded.keys():
                host.remove(name)
            for name, mocked in loaded.items():
                host.add(name, mocked.service)
            current = loaded
            tell(f"loaded again: {', '.join(loaded)}")

    def _state(self) -> tuple[tuple[float, int], ...]:
        return tuple(
            _stamp(path) for path in (*self._mocks, *self._openapi, *self._replays, *map(_file_of, self._classes))
        )


def _stamp(path: Path | None) -> tuple[float, int]:
    try:
        status = path.stat() if path is not None else None
    except OSError:  # an editor replaces it just now
        status = None
    return (0.0, 0) if status is None else (status.st_mtime_ns, status.st_size)


def _file_of(name: str) -> Path | None:
    module = sys.modules.get(name.partition(":")[0])
    file = getattr(module, "__file__", None)
    return None if file is None else Path(file)


def _made(name: str) -> object:
    """Make the service ``module:Class``, or take the object of that name."""
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
        raise SettingsError(f"--service {name}: {type(error).__name__}: {error}") from error
    if not isinstance(getattr(service, "_service_name", None), str):
        raise SettingsError(f"--service {name}: the service has no name; set _service_name in the class")
    made: object = service
    return made


def _reload(name: str) -> None:
    module = sys.modules.get(name.partition(":")[0])
    try:
        if module is not None:
            importlib.reload(module)
    except Exception as error:  # the module runs the developer's own code
        raise SettingsError(f"--service {name}: {type(error).__name__}: {error}") from error


def _described(service: object) -> tuple[tuple[str, str], ...]:
    described = describe_service(service)["methods"].items()
    return tuple((name, (each["description"] or "the method itself").partition("\n")[0]) for name, each in described)

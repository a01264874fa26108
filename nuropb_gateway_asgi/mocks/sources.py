"""The files and classes that mocked services come from: loaded, and loaded again when they change."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import anyio

from ..exceptions import SettingsError
from ..mesh.embedded_host import EmbeddedHost
from ..wire.services import PublishEvent, describe_service
from .definition import ServiceDefinition
from .file_service import FileService
from .mock_file import read_mocks
from .modules import ServiceModules
from .openapi import read_openapi
from .replay import Replay

__all__ = ["Mocked", "Sources"]

logger = logging.getLogger(__name__)

#: The time and size of a file.
Stamp: TypeAlias = tuple[int, int]

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
        #: The time and size of each recording's file.
        self._recordings: dict[Path, tuple[Stamp, Replay]] = {}
        self._changed = asyncio.Event()
        self._mocks = tuple(mocks)
        self._openapi = tuple(openapi)
        self._classes = tuple(classes)
        self._modules = ServiceModules(self._classes)
        self._seed = seed

    def load(self) -> dict[str, Mocked]:
        """Load all services, by name. Raises SettingsError for a mistake in a file, and OSError for no file."""
        found: dict[str, Mocked] = {}
        for name, mocked in self._loaded():
            if name in found:
                raise SettingsError(f"{mocked.source}: the service {name} is also in {found[name].source}")
            found[name] = mocked
        self.replayed = [self._recordings[path][1] for path in self._replays]
        self._changed.set()
        return found

    def _loaded(self) -> Iterator[tuple[str, Mocked]]:
        for path in self._mocks:
            for definition in read_mocks(path):
                yield definition.name, self._mocked(definition, "")
        for path in self._openapi:
            for definition in read_openapi(path):
                yield definition.name, self._mocked(definition, "its example or schema")
        for path in self._replays:
            replay = self._recording(path)
            for name, recorded in replay.services().items():
                yield name, Mocked(recorded, str(path), replay.methods(name))
        for name in self._classes:
            service = self._modules.make(name)
            yield str(getattr(service, "_service_name")), Mocked(service, name, _described(service))  # noqa: B009

    def _recording(self, path: Path) -> Replay:
        """Return the recording of a file. It stays the same, and knows its calls, until its file changes."""
        stamp = _stamp(path)
        kept = self._recordings.get(path)
        if kept is None or kept[0] != stamp:
            kept = self._recordings[path] = stamp, Replay(path)
        return kept[1]

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
            try:
                with self._modules.renewed():
                    loaded = self.load()
                    for name in loaded.keys() & {host.own_name}:
                        raise SettingsError(f"{loaded[name].source}: {name} is the name of the gateway itself")
            except (SettingsError, OSError) as error:
                tell(f"nothing was loaded, as before: {error}")
                continue
            finally:  # the services may need other files now; a change during the load is seen next time
                seen = {path: state.get(path, stamp) for path, stamp in self._state().items()}
            for name in current.keys() - loaded.keys():
                host.remove(name)
            for name, mocked in loaded.items():
                host.add(name, mocked.service)
            current = loaded
            tell(f"loaded again: {', '.join(loaded)}")

    async def play(self, emit: PublishEvent, in_use: asyncio.Event, tell: Callable[[str], object]) -> None:
        """Publish the events of each recording once, from the time on when ``in_use`` is set, and again if it changes.

        Runs until cancelled.
        """
        playing: dict[Replay, anyio.CancelScope] = {}
        async with anyio.create_task_group() as tasks:
            while True:
                self._changed.clear()
                for gone in playing.keys() - set(self.replayed):
                    playing.pop(gone).cancel()
                for replay in self.replayed:
                    if replay not in playing and replay.events:
                        playing[replay] = anyio.CancelScope()
                        tasks.start_soon(_play, replay, playing[replay], emit, in_use, tell, name="recorded events")
                await self._changed.wait()

    def _state(self) -> dict[Path, Stamp]:
        paths = (*self._mocks, *self._openapi, *self._replays, *self._modules.files)
        return {path: _stamp(path) for path in paths}


async def _play(
    replay: Replay, scope: anyio.CancelScope, emit: PublishEvent, in_use: asyncio.Event, tell: Callable[[str], object]
) -> None:
    with scope:
        in_use.clear()
        await in_use.wait()
        tell(f"{replay.path}: {len(replay.events)} recorded events are published now, in their recorded distance")
        await replay.play(emit)


def _stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except OSError:  # an editor replaces it just now
        return 0, 0
    return status.st_mtime_ns, status.st_size


def _described(service: object) -> tuple[tuple[str, str], ...]:
    described = describe_service(service)["methods"].items()
    return tuple((name, (each["description"] or "the method itself").partition("\n")[0]) for name, each in described)

"""Drivers that run the client's steps of the scripts in ``tests/conformance``.

The driver of the JavaScript client is ``clients/js/tests/driver.js``. Both take the same steps and report in the same
words.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from nuropb_gateway_asgi import client as client_module
from nuropb_gateway_asgi.client import Backoff, Client, ClientOptions, GatewayEvent, Subscription

from .gateways import DEADLINE
from .scripted import Markers, ScriptedGateway, ScriptError, Step, difference

__all__ = ["Driver", "JavaScriptDriver", "PythonDriver", "Script", "play", "scripts"]

DIRECTORY: Final = Path(__file__).resolve().parents[1] / "conformance"
CLIENT_EVENTS: Final = ("state", "event", "gap", "dropped", "unsubscribed", "goodbye", "warning")
#: Options of the clients: short waits, without randomness.
OPTIONS: Final[Mapping[str, Any]] = {"backoff_base": 0.002, "backoff_cap": 0.02, "random": 0.5}

#: Set when the gateway has taken all its steps, or has failed. Then the client may close.
THE_END: Final = "the end"

Script = Mapping[str, Any]


class Driver(Protocol):
    """Runs the client's steps of a script."""

    async def run(self, url: str, script: Script, markers: Markers) -> None:
        """Run all steps. Raises ScriptError if the client behaves differently."""


def scripts() -> Iterator[tuple[str, Script]]:
    """Yield all scripts with their names. A script with ``cases`` is yielded once for each case."""
    for path in sorted(DIRECTORY.glob("*.json")):
        for script in json.loads(path.read_text(encoding="utf-8")):
            for case in script.get("cases", [{}]):
                name = script["name"].format(**case)
                yield f"{path.stem}: {name}", _filled(script, case)


def _filled(value: Any, case: Mapping[str, Any]) -> Any:
    """Replace each ``%name`` in ``value`` by that member of the case."""
    if isinstance(value, dict):
        return {key: _filled(each, case) for key, each in value.items() if key != "cases"}
    if isinstance(value, list):
        return [_filled(each, case) for each in value]
    if isinstance(value, str) and value.startswith("%"):
        return case[value[1:]]
    return value


async def play(script: Script, driver: Driver) -> None:
    """Run a script with a client and a scripted gateway. Fails with all their problems."""
    markers = Markers()
    gateway = ScriptedGateway(script["gateway"], markers)
    async with gateway.serve() as url:
        playing = asyncio.create_task(driver.run(url, script, markers))
        ending = asyncio.create_task(_end(gateway, markers))
        # The client's side ends last, unless it fails.
        await asyncio.wait((playing,), timeout=DEADLINE)
        late = not playing.done()
        for task in (playing, ending):
            task.cancel()
        await asyncio.wait((playing, ending))
        problems = list(gateway.failures)
        if late:
            problems.append("the client's side was not done in time")
        elif (error := playing.exception()) is not None:
            problems.append(str(error))
    assert not problems, "\n".join(problems)


async def _end(gateway: ScriptedGateway, markers: Markers) -> None:
    await gateway.finished()
    markers.set(THE_END)


class PythonDriver:
    """Runs the steps with the Python client."""

    async def run(self, url: str, script: Script, markers: Markers) -> None:
        """Run all steps of ``script``."""
        given = {**OPTIONS, **script.get("options", {})}
        random = given.pop("random")
        backoff = Backoff(given.pop("backoff_base"), given.pop("backoff_cap"), random=lambda: random)
        options = ClientOptions(backoff=backoff, proxy=None, **given)
        client = Client(url, _token(script.get("token", "t1")), options)
        actor = _Actor(client, markers)
        try:
            for position, step in enumerate(script["client"], start=1):
                try:
                    async with asyncio.timeout(script.get("step_timeout", DEADLINE / 2)):
                        await actor.do(step)
                except TimeoutError:
                    raise ScriptError(f"client step {position} ({json.dumps(step)}): not in time; {actor}") from None
                except ScriptError as error:
                    raise ScriptError(f"client step {position} ({json.dumps(step)}): {error}") from error
            await markers.wait(THE_END)
        finally:
            await client.close()
            await actor.end()


def _token(given: Any) -> Any:
    """Return a token, or for a list a function that returns its items in turn, and the last one for ever."""
    if not isinstance(given, list):
        return given
    tokens = list(given)

    async def token() -> Any:
        value = tokens.pop(0) if len(tokens) > 1 else tokens[0]
        if isinstance(value, dict):
            raise RuntimeError(value["raise"])
        return value

    return token


class _Heard:
    """The values that a listener of one name has received, in order."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._news = asyncio.Event()

    def __call__(self, value: Any) -> None:
        self.values.append(_plain(value))
        self._news.set()

    async def next(self) -> Any:
        while not self.values:
            self._news.clear()
            await self._news.wait()
        return self.values.pop(0)


class _Actor:
    def __init__(self, client: Client, markers: Markers) -> None:
        self._client = client
        self._markers = markers
        self._tasks: dict[str, asyncio.Task[Any]] = {}
        self._subscriptions: dict[str, Subscription] = {}
        self._heard: dict[str, _Heard] = {}
        for name in CLIENT_EVENTS:
            self._listen(name, client.on)

    def __str__(self) -> str:
        return f"the client is {_plain(self._client.state)}, and has told {self._told}"

    @property
    def _told(self) -> dict[str, Any]:
        return {name: heard.values for name, heard in self._heard.items() if heard.values}

    def _listen(self, name: str, on: Callable[..., object], prefix: str = "") -> None:
        heard = self._heard[prefix + name] = _Heard()
        if name == "state":
            # States of the JavaScript client have the hello of the connection.
            on(name, lambda state: heard({**_plain(state), "hello": _plain(self._client.hello)}))
        else:
            on(name, heard)

    async def end(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def do(self, step: Step) -> None:
        match step:
            case {"request": call, "as": name, **options}:
                self._tasks[name] = asyncio.create_task(self._client.request(*call, **options))
                await asyncio.sleep(0)  # let the task start
            case {"command": call, "as": name, **options}:
                self._tasks[name] = asyncio.create_task(self._client.command(*call, **options))
                await asyncio.sleep(0)
            case {"describe": service, "as": name}:
                self._tasks[name] = asyncio.create_task(self._client.describe(service))
                await asyncio.sleep(0)
            case {"keep_calling": [service, method], "until": marker, **options}:
                await self._keep_calling(service, method, marker, options)
            case {"result": name, "is": value}:
                _compare(value, await self._tasks[name])
            case {"error": name, "is": value}:
                _compare(value, await self._failure(self._tasks[name]))
            case {"cancel": name}:
                self._tasks[name].cancel()
            case {"authorize": token, "as": name}:
                self._tasks[name] = asyncio.create_task(self._client.authorize(token))
                await asyncio.sleep(0)
            case {"subscribe": topics, "as": name, **options}:
                self._subscribe(name, topics, **options)
            case {"ready": name}:
                await self._subscriptions[name].ready()
            case {"refused": name, "is": value}:
                _compare(value, await self._failure(self._subscriptions[name].ready()))
            case {"event": name, "is": value}:
                heard = self._heard.get(f"{name}.events")
                event = await (anext(self._subscriptions[name]) if heard is None else heard.next())
                _compare(value, _plain(event) if isinstance(event, GatewayEvent) else event)
            case {"ends": name, "is": value}:
                _compare(value, await self._end(self._subscriptions[name]))
            case {"unsubscribe": name}:
                self._subscriptions[name].unsubscribe()
            case {"heard": name, "is": value}:
                await self._hear(name, value)
            case {"silent": name}:
                if self._heard[name].values:
                    raise ScriptError(f"the client has told {self._heard[name].values}")
            case {"wait": name}:
                await self._markers.wait(name)
            case {"signal": name}:
                self._markers.set(name)
            case {"close": _}:
                await self._client.close()
            case _:
                raise ScriptError("there is no such step")

    async def _keep_calling(self, service: str, method: str, marker: str, options: Mapping[str, Any]) -> None:
        """Make one call after the other. Each has an id of its own, which the answer must repeat."""
        number = 0
        while not self._markers.is_set(marker):
            number += 1
            id_ = f"{id(self)}-{number}"
            _compare(id_, await self._client.request(service, method, {"id": id_}, **options))

    def _subscribe(
        self,
        name: str,
        topics: Any,
        *,
        callback: bool = False,
        buffer: int = 1000,
        listen: bool = True,
        since: dict[str, Any] | None = None,
    ) -> None:
        heard: _Heard | None = None
        if callback:
            heard = self._heard[f"{name}.events"] = _Heard()
        subscription = self._client.subscribe(topics, heard, buffer=buffer, since=since)
        self._subscriptions[name] = subscription
        for each in ("gap", "dropped", "ended", "recovered") if listen else ():
            self._listen(each, subscription.on, f"{name}.")

    async def _hear(self, name: str, wanted: Any) -> None:
        """Wait for the client to emit ``wanted`` under ``name``, and skip other values before it."""
        passed = []
        try:
            while difference(wanted, given := await self._heard[name].next()) is not None:
                passed.append(given)
        except asyncio.CancelledError:
            self._heard[name].values = passed
            raise

    @staticmethod
    async def _failure(waited: Any) -> Any:
        try:
            result = await waited
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            return {"class": "cancelled"}
        except Exception as error:
            return _plain(error)
        raise ScriptError(f"it has not failed: {result!r}")

    @staticmethod
    async def _end(subscription: Subscription) -> Any:
        try:
            event = await anext(subscription)
        except StopAsyncIteration:
            return None
        except Exception as error:
            return _plain(error)
        raise ScriptError(f"it has not ended: {event}")


def _compare(wanted: Any, given: Any) -> None:
    if reason := difference(wanted, given):
        raise ScriptError(reason)


def _plain(value: Any) -> Any:
    """Convert a value of the client to the form that both drivers share."""
    if isinstance(value, BaseException):
        plain: dict[str, Any] = {"class": type(value).__name__, "description": str(value)}
        for name in ("code", "description", "retryable", "retry_after", "trace_id", "close_code", "reason", "topics"):
            if hasattr(value, name):
                plain[name] = _plain(getattr(value, name))
        if not isinstance(value.__cause__, client_module.GatewayError | RuntimeError | None):
            return plain
        return plain | {"cause": None if value.__cause__ is None else _plain(value.__cause__)}
    if isinstance(value, GatewayEvent):
        position = {} if value.position is None else {"position": _plain(value.position)}
        return {"topic": value.topic, "event": value.event, "trace_id": value.trace_id, **position}
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


async def _start(command: Sequence[str]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, limit=2**24)


class JavaScriptDriver:
    """Runs the steps in a program for Node. Each message in either direction is a line of JSON."""

    def __init__(self, command: Sequence[str], process: asyncio.subprocess.Process) -> None:
        self._command = command
        self._process = process
        # Whether the program is still at the steps of a script that was given up.
        self._is_busy = False

    @classmethod
    @contextlib.asynccontextmanager
    async def start(cls, *command: str) -> AsyncIterator[JavaScriptDriver]:
        """Start the program. It exits when its standard input is closed."""
        driver = cls(command, await _start(command))
        try:
            yield driver
        finally:
            await driver._end()

    async def _end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        if self._is_busy:
            self._process.kill()
        await self._process.wait()

    async def run(self, url: str, script: Script, markers: Markers) -> None:
        """Run all steps of ``script``."""
        if self._is_busy:
            # Else its messages about the former script would be taken for those about this one.
            await self._end()
            self._process = await _start(self._command)
        self._is_busy = True
        await self._run(url, script, markers)

    async def _run(self, url: str, script: Script, markers: Markers) -> None:
        given = {**OPTIONS, **script.get("options", {})}
        await self._tell({"run": {"url": url, "token": "t1", **script, "options": given, "gateway": None}})
        waits: set[asyncio.Task[None]] = set()
        try:
            while "done" not in (message := await self._hear()):
                if "signal" in message:
                    markers.set(message["signal"])
                else:
                    waits.add(asyncio.create_task(self._wait(markers, message["wait"])))
        finally:
            for task in waits:
                task.cancel()
            if waits:
                await asyncio.wait(waits)
        self._is_busy = False
        if message["done"] is not None:
            raise ScriptError(message["done"])

    async def _wait(self, markers: Markers, name: str) -> None:
        await markers.wait(name)
        await self._tell({"reached": name})

    async def _tell(self, message: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        await self._process.stdin.drain()

    async def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise ScriptError(f"the driver has ended with {await self._process.wait()}")
        message: dict[str, Any] = json.loads(line)
        return message

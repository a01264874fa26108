"""Headless Chromium, and the part of the DevTools protocol that tests of pages need."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import tempfile
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as websocket_connect
from websockets.exceptions import ConnectionClosed

from .gateways import DEADLINE
from .javascript import chromium

__all__ = ["Browser", "PageError", "Tab", "run_browser"]

#: No sandbox, because root cannot have one; and no features that use the network.
FLAGS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--no-first-run",
    "--remote-debugging-port=0",
)
#: Seconds for a start, which takes one or two seconds of CPU time.
START_TIMEOUT: Final = 60.0


class PageError(AssertionError):
    """An exception in the page, thrown by an evaluated expression."""


class Browser:
    """A running Chromium."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._reader = asyncio.create_task(self._read())

    @contextlib.asynccontextmanager
    async def profile(self) -> AsyncIterator[Profile]:
        """Open a window that shares nothing with others: no storage, no workers."""
        context = (await self.send("Target.createBrowserContext"))["browserContextId"]
        try:
            yield Profile(self, context)
        finally:
            await self.send("Target.disposeBrowserContext", browserContextId=context)

    async def send(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its result."""
        id_ = next(self._ids)
        message = {"id": id_, "method": method, "params": params} | ({"sessionId": session} if session else {})
        answer = self._answers[id_] = asyncio.get_running_loop().create_future()
        await self._connection.send(json.dumps(message))
        async with asyncio.timeout(DEADLINE):
            response = await answer
        if "error" in response:
            raise PageError(f"{method}: {response['error']['message']}")
        result: dict[str, Any] = response["result"]
        return result

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                message = json.loads(await self._connection.recv())
                answer = self._answers.pop(message.get("id"), None)
                if answer is not None and not answer.done():
                    answer.set_result(message)

    async def close(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            await self._connection.send(json.dumps({"id": next(self._ids), "method": "Browser.close"}))
        await self._reader


class Profile:
    """A browser profile: its tabs share storage and workers, like the tabs of one person."""

    def __init__(self, browser: Browser, context: str) -> None:
        self._browser = browser
        self._context = context

    async def open(self, url: str) -> Tab:
        """Open a page in a new tab, and wait until it is loaded."""
        target = await self._browser.send("Target.createTarget", url="about:blank", browserContextId=self._context)
        target_id = target["targetId"]
        session = await self._browser.send("Target.attachToTarget", targetId=target_id, flatten=True)
        tab = Tab(self._browser, target_id, session["sessionId"])
        await tab.go_to(url)
        return tab


class Tab:
    """A page in a tab."""

    def __init__(self, browser: Browser, target: str, session: str) -> None:
        self._browser = browser
        self._target = target
        self._session = session

    async def go_to(self, url: str) -> None:
        """Load another page."""
        await self._browser.send("Page.navigate", self._session, url=url)
        await self.evaluate(
            "new Promise((resolve) => document.readyState === 'complete' && location.href === "
            f"{json.dumps(url)} ? resolve() : addEventListener('load', () => resolve()))"
        )

    async def evaluate(self, expression: str) -> Any:
        """Return the value of an expression; a promise is awaited. Raises PageError for exceptions in the page."""
        answer = await self._browser.send(
            "Runtime.evaluate", self._session, expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            thrown = answer["exceptionDetails"].get("exception", {})
            raise PageError(thrown.get("description") or str(thrown.get("value") or answer["exceptionDetails"]["text"]))
        return answer["result"].get("value")

    async def until(self, condition: str) -> None:
        """Poll the page until the condition holds."""
        look = f"const look = () => ({condition}) ? resolve() : setTimeout(look, 10)"
        await self.evaluate(f"new Promise((resolve) => {{ {look}; look(); }})")

    async def close(self) -> None:
        """Close the tab, like a person."""
        await self._browser.send("Target.closeTarget", targetId=self._target)

    async def kill(self) -> None:
        """Crash the page's process: its code is not notified."""
        # There is no answer, because the process that would send it is gone.
        with contextlib.suppress(PageError, TimeoutError):
            async with asyncio.timeout(0.5):
                await self._browser.send("Page.crash", self._session)


@contextlib.asynccontextmanager
async def run_browser() -> AsyncIterator[Browser]:
    """Run Chromium with a temporary profile, which is deleted at the end."""
    program = chromium()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        process = await asyncio.create_subprocess_exec(
            program, *FLAGS, f"--user-data-dir={directory}", "about:blank", stdout=DEVNULL, stderr=DEVNULL
        )
        try:
            url = await _debugger(Path(directory))
            async with websocket_connect(url, max_size=None, compression=None, proxy=None, ping_interval=None) as each:
                browser = Browser(each)
                try:
                    yield browser
                finally:
                    await browser.close()
            async with asyncio.timeout(DEADLINE):
                await process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _debugger(directory: Path) -> str:
    """Return the URL of the browser's debugger, which the browser writes to a file once it listens."""
    file = directory / "DevToolsActivePort"
    async with asyncio.timeout(START_TIMEOUT):
        while True:
            with contextlib.suppress(FileNotFoundError, ValueError):
                port, path = file.read_text().split("\n")
                return f"ws://127.0.0.1:{port}{path}"
            await asyncio.sleep(0.02)

"""Pages in Chromium, used by labels and roles, keys and clicks. Based on playwright-core, in Node."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from tests.servers.javascript import CONSOLE
from tests.servers.processes import unavailable

from .javascript import chromium, node
from .waiting import DEADLINE

__all__ = ["Page", "PageError", "Pages", "run_pages"]

HERE: Final = Path(__file__).resolve().parent
#: Seconds for one step. Waiting steps of Playwright time out earlier.
PATIENCE: Final = DEADLINE


class PageError(AssertionError):
    """A failed step, mostly because an element is missing."""


class Pages:
    """A running Chromium."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._reader = asyncio.create_task(self._read())

    @contextlib.asynccontextmanager
    async def open(self, url: str, *, phone: bool = False, dark: bool = False, **options: Any) -> AsyncIterator[Page]:
        """Open a page in a window that shares nothing with others. ``options`` are those of a Playwright context."""
        size = {"width": 390, "height": 844} if phone else {"width": 1440, "height": 900}
        options = {"viewport": size, "isMobile": phone, "hasTouch": phone, "reducedMotion": "reduce"} | options
        id_ = next(self._ids)
        await self.send(id_, options={**options, "colorScheme": "dark" if dark else "light"})
        page = Page(self, id_)
        try:
            await page.go_to(url)
            yield page
        finally:
            await self.send(id_, code="close")

    async def send(self, page: int, **command: Any) -> Any:
        """Have Node perform a step, and return its result."""
        id_ = next(self._ids)
        answer = self._answers[id_] = asyncio.get_running_loop().create_future()
        self._stdin.write(json.dumps({"id": id_, "page": page, **command}).encode() + b"\n")
        async with asyncio.timeout(PATIENCE):
            return await answer

    async def _read(self) -> None:
        while line := await self._stdout.readline():
            message = json.loads(line)
            answer = self._answers.pop(message["id"])
            if answer.done():
                continue
            if "error" in message:
                answer.set_exception(PageError(message["error"]))
            else:
                answer.set_result(message["result"])

    async def close(self) -> None:
        self._stdin.close()
        await self._reader


class Page:
    """A page. Elements are waited for, and found by role and name, as by assistive technology."""

    def __init__(self, pages: Pages, id_: int) -> None:
        self._pages = pages
        self._id = id_

    async def run(self, code: str, **args: Any) -> Any:
        """Run Playwright code with ``page`` and ``args``."""
        return await self._pages.send(self._id, code=code, args=args)

    async def go_to(self, url: str) -> None:
        await self.run("await page.goto(args.url)", url=url)

    async def click(self, name: str, role: str = "button", *, within: str = "body") -> None:
        code = "await page.locator(args.within).getByRole(args.role, { name: args.name, exact: true }).click()"
        await self.run(code, name=name, role=role, within=within)

    async def fill(self, label: str, text: str) -> None:
        """Put text into a field. ``label`` is the beginning of its label, in whole words."""
        code = "await page.locator('input, textarea, select').and(page.getByLabel(RegExp(args.label))).fill(args.text)"
        await self.run(code, label=rf"^{re.escape(label)}(\s|$)", text=text)

    async def press(self, *keys: str) -> None:
        """Press keys such as ``Tab`` or ``Control+Enter`` in the focused element."""
        await self.run("for (const key of args.keys) await page.keyboard.press(key)", keys=keys)

    async def type(self, text: str) -> None:
        """Type text into the focused element."""
        await self.run("await page.keyboard.type(args.text)", text=text)

    async def sees(self, text: str, *, within: str = "body") -> None:
        """Wait until the text is visible."""
        code = "await page.locator(args.within).getByText(args.text).filter({ visible: true }).first().waitFor()"
        await self.run(code, text=text, within=within)

    async def misses(self, text: str, *, within: str = "body") -> None:
        """Wait until the text is hidden."""
        found = "page.locator(args.within).getByText(args.text).filter({ visible: true }).first()"
        await self.run(f"await {found}.waitFor({{ state: 'hidden' }})", text=text, within=within)

    async def text(self, within: str = "body") -> str:
        text: str = await self.run("return page.locator(args.within).first().innerText()", within=within)
        return text

    async def focus(self) -> str:
        """Describe the focused element: its role or else its tag, and its label or text."""
        focused: str = await self.run(
            """return page.evaluate(() => {
                 const { activeElement: at } = document;
                 const label = at.getAttribute("aria-label") ?? at.labels?.[0]?.innerText ?? at.innerText;
                 return `${at.getAttribute("role") ?? at.tagName.toLowerCase()}: ${label.trim().split("\\n")[0]}`;
               })"""
        )
        return focused

    async def evaluate(self, expression: str) -> Any:
        return await self.run("return page.evaluate(args.expression)", expression=expression)

    async def until(self, condition: str) -> None:
        """Wait until an expression holds in the page."""
        # Playwright's own wait evaluates a string in the page, which the page's Content-Security-Policy forbids.
        async with asyncio.timeout(PATIENCE):
            while not await self.evaluate(condition):
                await asyncio.sleep(0.02)

    async def seen(self, what: str) -> list[Any]:
        """Return all ``problems`` (errors and warnings in the browser's log), ``requests`` or ``sockets`` so far."""
        found: list[Any] = await self.run("return seen[args.what]", what=what)
        return found

    async def downloaded(self) -> tuple[str, str]:
        """Return name and text of the downloaded file."""
        name, text = await self.run(
            """while (seen.downloads.length === 0) await page.waitForEvent("download").catch(() => {});
               const download = seen.downloads.pop();
               const chunks = [];
               for await (const chunk of await download.createReadStream()) chunks.push(chunk);
               return [download.suggestedFilename(), Buffer.concat(chunks).toString()]"""
        )
        return name, text

    async def accessibility_problems(self) -> list[str]:
        """Return the violations that axe finds, each with rule and element."""
        found: list[str] = await self.run(
            """await page.evaluate(axe);
               const { violations } = await page.evaluate(() => globalThis.axe.run());
               return violations.flatMap(({ id, nodes }) => nodes.map(({ html, any }) =>
                 `${id}: ${html.slice(0, 200)} ${any.map((each) => each.message).join(" ")}`))"""
        )
        return found


@contextlib.asynccontextmanager
async def run_pages() -> AsyncIterator[Pages]:
    """Run Chromium, and end all its processes at the end."""
    program, *flags = node()
    browser = chromium()
    if not (CONSOLE / "node_modules" / "playwright-core").is_dir():
        unavailable("playwright-core is not installed: make clients/console/.installed")
    process = await asyncio.create_subprocess_exec(
        program, *flags, str(HERE / "pages.mjs"), str(CONSOLE), browser, stdin=PIPE, stdout=PIPE, limit=2**24
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            assert await process.stdout.readline() == b"{}\n", "Chromium did not start"
        pages = Pages(process)
        try:
            yield pages
        finally:
            await pages.close()
        async with asyncio.timeout(PATIENCE):
            await process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()

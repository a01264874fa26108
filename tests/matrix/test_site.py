"""The site that ``make docs`` builds."""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Final

from tests.kit.pages import run_pages
from tests.kit.processes import ROOT, run_process
from tests.servers.rabbitmq import free_port

SITE: Final = ROOT / "site" / "built"


async def test_the_site_has_every_document_a_search_and_no_broken_link() -> None:
    # Strict: a link that leads nowhere fails the build. make may be a part of another one.
    environment = {"MAKEFLAGS": "", "MFLAGS": "", "PATH": os.environ["PATH"]}
    async with run_process("make", "docs", environment=environment, cwd=ROOT) as process:
        assert await process.wait(600.0) == 0, process.output
    built = {page.stem for page in SITE.glob("*.html")}
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} <= built
    index = json.loads((SITE / "search" / "search_index.json").read_text(encoding="utf-8"))
    found = {entry["location"].partition("#")[0] for entry in index["docs"] if "issue_token" in entry["text"]}
    assert {"issuing-tokens.html", "tutorial.html"} <= found
    home = (SITE / "index.html").read_text(encoding="utf-8")
    assert 'href="tutorial.html"' in home
    assert not re.search(r'<(?:script|link)[^>]* (?:src|href)="https?:', home)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = ("-m", "http.server", "--directory", str(SITE), "--bind", "127.0.0.1", str(port))
    async with run_process(sys.executable, "-u", *command) as server, run_pages() as pages:
        await server.line("Serving HTTP")
        async with pages.open(f"{url}/faq.html") as page:
            await page.run("await page.getByLabel('Search').first().click()")
            await page.type("issue_token")
            await page.sees("Issuing tokens", within=".md-search-result")
            assert {request[1].split("/")[2] for request in await page.seen("requests")} == {url.split("/")[2]}

"""The documents: links, tables, and the snippets that a reader copies."""

from __future__ import annotations

import ast
import fnmatch
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from nuropb_gateway_asgi.mesh.demo import DemoService
from nuropb_gateway_asgi.wire.description import describe_for_clients, parse_description
from nuropb_gateway_asgi.wire.services import describe_service

ROOT: Final = Path(__file__).resolve().parents[2]
PAGES: Final = sorted(
    page
    for pattern in ("*.md", "docs/*.md", "examples/*.md", "clients/*/README.md", "tests/*/README.md")
    for page in ROOT.glob(pattern)
)

FENCE: Final = re.compile(r"^( *)```.*?^\1```$", re.DOTALL | re.MULTILINE)
CODE: Final = re.compile(r"`[^`\n]+`")
LINK: Final = re.compile(r"\]\(\s*([^)\s]+)\s*\)")
HEADING: Final = re.compile(r"^#{1,6} +(.*?)\s*$", re.MULTILINE)
ANCHOR: Final = re.compile(r'<a id="([^"]+)">')


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def slug(heading: str) -> str:
    """Return the anchor that GitHub makes of a heading."""
    text = LINK.sub("]", heading.replace("`", "")).replace("[", "").replace("]", "")
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    text = prose(page)
    counted: Counter[str] = Counter()
    found = set(ANCHOR.findall(text))
    for heading in HEADING.findall(text):
        name = slug(heading)
        found.add(name if counted[name] == 0 else f"{name}-{counted[name]}")
        counted[name] += 1
    return found


def rows(text: str) -> Iterator[tuple[int, str]]:
    """Yield the rows of tables that are not in a code block, with their lines."""
    blank = FENCE.sub(lambda match: "\n" * match[0].count("\n"), text)
    for number, line in enumerate(blank.splitlines(), 1):
        if line.lstrip().startswith("|"):
            yield number, line.strip()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    broken = []
    for target in LINK.findall(CODE.sub("", prose(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        other = page if path == "" else (page.parent / path).resolve()
        if not other.exists() or (anchor and other.suffix == ".md" and anchor not in anchors(other)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_row_of_a_table_has_as_many_cells_as_its_head_and_no_escaped_bar(page: Path) -> None:
    broken, cells, last = [], 0, 0
    for number, row in rows(page.read_text(encoding="utf-8")):
        if number != last + 1:
            cells = row.count("|")
        # Some renderers show the backslash, and a reader copies it.
        if row.count("|") != cells or "\\|" in row:
            broken.append(f"{number}: {row}")
        last = number
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_nothing_is_installed_by_the_name_of_a_package_that_is_not_published(page: Path) -> None:
    # `npm install` of the JavaScript client names a file, `pip install` a checkout.
    assert re.findall(r"(?:pip|uv|pipx) (?:add|install) +[\"']?nuropb-gateway-asgi.*", page.read_text("utf-8")) == []


def test_commands_take_the_token_from_the_variable_that_the_gateway_prints() -> None:
    text = (ROOT / "docs" / "transports.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\$([A-Z_]*TOKEN)", text)) == {"NUROPB_GATEWAY_TOKEN"}


def test_the_sample_of_describe_is_the_answer_of_the_demo() -> None:
    text = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
    (sample,) = (block for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL) if '"unavailable":' in block)
    described = json.dumps(describe_service(DemoService())).encode()
    assert json.loads(sample)["payload"]["result"] == {
        "services": {"demo": describe_for_clients(parse_description("demo", described, 0.0), ["add"])},
        "unavailable": [],
    }


def test_every_document_has_its_place_on_the_site() -> None:
    text = (ROOT / "site" / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"- (?:[^:\n]+: )?(\S+\.md)$", text, re.MULTILINE)
    documents = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").glob("**/*.md")}
    elsewhere = {"index.md", "examples/README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"}
    assert sorted(listed) == sorted(documents | elsewhere)


def python_snippets() -> list[tuple[str, str]]:
    """Return all code blocks in Python, with their pages and lines."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^```python\b[^\n]*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            found.append((f"{name_of(page)}:{text.count(chr(10), 0, match.start()) + 1}", match[1]))
    return found


def test_every_snippet_of_python_can_be_read() -> None:
    broken = []
    for place, text in python_snippets():
        try:
            # Snippets of the inside of a coroutine function await.
            compile(text, place, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST, dont_inherit=True)
        except SyntaxError as error:
            broken.append(f"{place}: {error}")
    assert broken == []


def test_every_file_of_deploy_is_in_the_table_of_how_it_is_tested() -> None:
    text = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    table = text.partition("## How each file is tested")[2].partition("\n## ")[0]
    patterns = [name for row in table.splitlines()[7:] for name in re.findall(r"`([^`]+)`", row.split("|")[1])]
    deploy = ROOT / "deploy"
    files = {path.relative_to(deploy).as_posix() for path in deploy.rglob("*") if path.is_file()}
    files = {name for name in files if not name.startswith("secrets/")}
    matched = {pattern: {name for name in files if fnmatch.fnmatchcase(name, pattern)} for pattern in patterns}
    assert [pattern for pattern, names in matched.items() if not names] == []
    assert files - set().union(*matched.values()) == set()

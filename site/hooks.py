"""Files outside ``docs/`` for the site: README.md as its first page, other documents, and the files that they name."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any, Final

from mkdocs.structure.files import File, Files

ROOT: Final = Path(__file__).resolve().parents[1]
#: Documents outside docs/, by the names of their pages.
PAGES: Final = {
    "index.md": "README.md",
    "examples/README.md": "examples/README.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "SECURITY.md": "SECURITY.md",
}
#: The place of all other files of the repository on the site.
COPIES: Final = "repository"

FENCE: Final = re.compile(r"^( *)```.*?^\1```$", re.DOTALL | re.MULTILINE)
LINK: Final = re.compile(r"(\]\(\s*)([^)\s#]+)(#[^)\s]*)?(?=\s*\))")

Config = Any


def on_files(files: Files, config: Config) -> Files:
    """Add the documents outside ``docs/``."""
    for name, source in PAGES.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Config, files: Files) -> str:
    """Turn links of the repository into links of the site, and add the files that they lead to."""
    name = page.file.src_uri
    here = posixpath.dirname(PAGES.get(name, f"docs/{name}"))

    def turned(match: re.Match[str]) -> str:
        before, target, anchor = match[1], match[2], match[3] or ""
        if re.match(r"[a-z]+:", target):
            return match[0]
        path = posixpath.normpath(posixpath.join(here, target))
        return f"{before}{posixpath.relpath(_page_of(path, config, files), posixpath.dirname(name) or '.')}{anchor}"

    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [LINK.sub(turned, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, LINK.sub(turned, markdown[end:])])


def _page_of(path: str, config: Config, files: Files) -> str:
    """Return the name on the site of a file or folder of the repository, which is copied there if it has none."""
    if (ROOT / path).is_dir():
        readme = f"{path}/README.md"
        path = readme if (ROOT / readme).exists() else path
    for name, source in PAGES.items():
        if path == source:
            return name
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if not (ROOT / path).is_file():
        return path  # for the check of links to report
    name = f"{COPIES}/{path}.txt" if not path.endswith((".png", ".svg")) else f"{COPIES}/{path}"
    if files.get_file_from_path(name) is None:
        files.append(File.generated(config, name, content=(ROOT / path).read_bytes()))
    return name

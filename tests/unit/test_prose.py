"""Ceilings for the prose of the package and its documents.

A clause that stands for a noun ("what is known of past requests" for "a cache") has to be read twice. Such clauses are
counted by their first two words, per 1,000 words of docstrings and comments, of log lines and error texts, and of
documents. A few are good English, so the ceilings are above zero. A failure lists every place with its line.
"""

from __future__ import annotations

import ast
import functools
import inspect
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
PACKAGE: Final = "nuropb_gateway_asgi"

#: Clauses per 1,000 words.
CODE_CEILING: Final = 1.0
DOCUMENT_CEILING: Final = 1.5
#: The share of docstrings that open with a relative or indefinite word, in percent.
OPENING_CEILING: Final = 2.0

PRONOUNS: Final = "what whatever who whoever"
CONTINUATIONS: Final = (
    "is are was were has have had come comes came goes waits can cannot may must would will does"
    " said says asked asks belongs becomes follows lacks makes gets knows it they"
)
OPENINGS: Final = "what who whom whoever whose where how why one those that it they this"


def any_of(words: str) -> str:
    """A pattern for one of the words."""
    return f"(?:{'|'.join(words.split())})"


CLAUSE: Final = re.compile(rf"\b{any_of(PRONOUNS)} {any_of(CONTINUATIONS)}\b", re.IGNORECASE)
OPENING: Final = re.compile(rf"{any_of(OPENINGS)}\b", re.IGNORECASE)
FENCE: Final = re.compile(r"```.*?```", re.DOTALL)

DEFINITIONS: Final = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
LOG_METHODS: Final = frozenset({"debug", "info", "warning", "error", "exception", "critical"})
LOGGERS: Final = frozenset({"log", "_log", "logger", "_logger"})


@dataclass(frozen=True)
class Text:
    """One docstring, comment, string or document, and its place."""

    file: str
    line: int
    text: str

    @property
    def words(self) -> int:
        return len(self.text.split())

    def clauses(self) -> Iterator[str]:
        """A line for each clause that is found."""
        for number, line in enumerate(self.text.split("\n")):
            for match in CLAUSE.finditer(line):
                yield f"{self.file}:{self.line + number}: {match[0]!r} in: {line.strip()}"

    def opening(self) -> Iterator[str]:
        """A line, if the first word is a relative or indefinite one."""
        if match := OPENING.match(self.text):
            yield f"{self.file}:{self.line}: {match[0]!r} opens: {self.text.partition(chr(10))[0]}"


def docstrings(source: str, file: str = "") -> Iterator[Text]:
    """The docstrings of a module, its classes and its functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DEFINITIONS) and (text := ast.get_docstring(node, clean=False)):
            blank = len(text) - len(text.lstrip())
            line = node.body[0].lineno + text[:blank].count("\n")
            yield Text(file, line, inspect.cleandoc(text))


def comments(source: str, file: str = "") -> Iterator[Text]:
    """The comments of a module, each line by itself."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield Text(file, token.start[0], token.string.lstrip("#: "))


def messages(source: str, file: str = "") -> Iterator[Text]:
    """The format strings of log lines, and the texts of exceptions where they are raised."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Raise(exc=ast.Call(args=args, keywords=keywords)):
                roots = [*args, *(keyword.value for keyword in keywords)]
            case ast.Call(func=ast.Attribute(attr=method, value=logger), args=[first, *_]) if (
                method in LOG_METHODS and name_of(logger) in LOGGERS
            ):
                roots = [first]
            case _:
                continue
        for root in roots:
            for line, text in strings(root):
                yield Text(file, line, text)


def name_of(node: ast.expr) -> str:
    """The last name of a dotted one; empty for any other expression."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def strings(node: ast.AST) -> Iterator[tuple[int, str]]:
    """The string literals within an expression; a formatted value is an ellipsis."""
    match node:
        case ast.Constant(value=str(text)):
            yield node.lineno, text
        case ast.JoinedStr(values=values):
            yield node.lineno, "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in values)
        case _:
            for child in ast.iter_child_nodes(node):
                yield from strings(child)


def document(source: str, file: str = "") -> Iterator[Text]:
    """A document of Markdown, without its blocks of code."""
    yield Text(file, 1, FENCE.sub(lambda match: "\n" * match[0].count("\n"), source))


@functools.cache
def texts(root: str, suffix: str, find: Callable[[str, str], Iterator[Text]]) -> list[Text]:
    """Everything that ``find`` yields of one file, or of the files with this suffix in a directory."""
    path = ROOT / root
    files = sorted(path.rglob(f"*{suffix}")) if path.is_dir() else [path]
    assert files
    return [
        text for file in files for text in find(file.read_text(encoding="utf-8"), file.relative_to(ROOT).as_posix())
    ]


def check(found: list[str], share: float, ceiling: float, what: str) -> None:
    """Fail with all places, if there are too many."""
    if share > ceiling:
        pytest.fail("\n".join([*found, f"{share:.1f} {what}; at most {ceiling} are allowed"]), pytrace=False)


def check_clauses(counted: list[Text], ceiling: float) -> None:
    found = [line for text in counted for line in text.clauses()]
    words = sum(text.words for text in counted)
    assert words
    share = 1000 * len(found) / words
    check(found, share, ceiling, f"clauses per 1,000 words stand for a noun ({len(found)} in {words})")


def test_docstrings_and_comments_have_nouns() -> None:
    code = texts(PACKAGE, ".py", docstrings) + texts(PACKAGE, ".py", comments)
    check_clauses(code + texts(PACKAGE, ".md", document), CODE_CEILING)


def test_log_lines_and_error_texts_have_nouns() -> None:
    check_clauses(texts(PACKAGE, ".py", messages), CODE_CEILING)


@pytest.mark.parametrize("root", ["README.md", "CONTRIBUTING.md", "docs"])
def test_documents_have_nouns(root: str) -> None:
    check_clauses(texts(root, ".md", document), DOCUMENT_CEILING)


def test_docstrings_open_with_a_verb_or_a_noun() -> None:
    counted = texts(PACKAGE, ".py", docstrings)
    found = [line for text in counted for line in text.opening()]
    what = f"% of docstrings open with a relative or indefinite word ({len(found)} of {len(counted)})"
    check(found, 100 * len(found) / len(counted), OPENING_CEILING, what)


SAMPLE: Final = '''"""The first line.

What is known, and what it costs.
"""

import logging

logger = logging.getLogger(__name__)


class Cache:
    """Those that are kept."""

    #: Whoever comes, and whatever
    # is left
    size = 1  # what is what


def fail(count: int, reason: str | None) -> None:
    """
    Whose turn it is.
    """
    logger.warning("%d are left of what was", count)
    logger.info("who has " + str(count) if reason else f"{reason} is who said {count}")
    print("what is printed")
    raise ValueError(
        f"refused: {count}"
        " what has no name",
        reason or "whatever",
    ) from None
'''


def found(texts: Iterator[Text]) -> list[str]:
    return [line.removeprefix(":").replace("'", "") for text in texts for line in text.clauses()]


def test_clauses_are_found_in_docstrings() -> None:
    line = "What is known, and what it costs."
    assert found(docstrings(SAMPLE)) == [f"3: What is in: {line}", f"3: what it in: {line}"]
    openings = [line for text in docstrings(SAMPLE) for line in text.opening()]
    assert openings == [":12: 'Those' opens: Those that are kept.", ":21: 'Whose' opens: Whose turn it is."]


def test_clauses_are_found_in_comments() -> None:
    assert found(comments(SAMPLE)) == [
        "14: Whoever comes in: Whoever comes, and whatever",
        "16: what is in: what is what",
    ]


def test_clauses_are_found_in_log_lines_and_raised_exceptions() -> None:
    assert found(messages(SAMPLE)) == [
        "27: what has in: refused: … what has no name",
        "23: what was in: %d are left of what was",
        "24: who has in: who has",
        "24: who said in: … is who said …",
    ]


def test_clauses_are_found_in_documents_but_not_in_their_code() -> None:
    source = "# What is it\n\n```\nwhat is code\n```\n\nNobody knows who is there.\nWhat\nis more.\n"
    assert found(document(source)) == ["1: What is in: # What is it", "7: who is in: Nobody knows who is there."]
    assert sum(text.words for text in document(source)) == 12

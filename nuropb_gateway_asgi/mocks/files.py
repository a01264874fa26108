"""Files of mocks, read as trees of nodes within limits that no file can pass.

JSON, TOML, and YAML with PyYAML (``yaml_nodes``). A file comes from a colleague or from a generator; a mistake in it,
or a file made to exhaust the reader, ends with the file, the line and the reason.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from .nodes import MAX_DEPTH, MAX_NODES, MAX_SIZE, Flaw, MockFileError, Node, checked_number, number
from .yaml_nodes import read_yaml

__all__ = ["explained", "read_file"]

#: Lines of a TOML file in which the line of a flaw is looked for: the search reads the file once for each line.
MAX_SEARCHED: Final = 2000

_TOKEN = re.compile(r'[ \t\r\n]*([\[\]{},:]|"(?:[^"\\\x00-\x1f]|\\.)*"|[-+.0-9A-Za-z]+|$)')


def read_file(path: Path) -> Node:
    """Read a file by its suffix: .json, .toml, .yaml or .yml. Raises MockFileError, and OSError for no file."""
    suffix = path.suffix.lower()
    data = path.read_bytes()
    if len(data) > MAX_SIZE:
        raise MockFileError(f"{path}:1: the file has {len(data)} bytes; expected at most {MAX_SIZE}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise MockFileError(f"{path}:{line}: a character is not UTF-8; expected a text in UTF-8") from None
    try:
        if suffix == ".json":
            return _read_json(text)
        if suffix == ".toml":
            return _read_toml(text)
        if suffix in (".yaml", ".yml"):
            return read_yaml(text)
    except Flaw as flaw:
        raise explained(path, flaw, text) from None
    raise MockFileError(f"{path}:1: the suffix {suffix!r} is no format; expected .yaml, .json or .toml")


def explained(path: Path, flaw: Flaw, text: str | None = None) -> MockFileError:
    """Make the error of a flaw in the file at ``path``."""
    if isinstance(flaw.where, int):
        line = flaw.where
    elif (line := flaw.where.line) == 0:
        line = _toml_line(path.read_text(encoding="utf-8-sig") if text is None else text, flaw.where.path)
    return MockFileError(f"{path}:{line}: {flaw.reason}")


# --- JSON ---------------------------------------------------------------------------------------------------------


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    position, line = 0, 1
    while True:
        match = _TOKEN.match(text, position)
        if match is None:
            line += text.count("\n", position, len(text) - len(text[position:].lstrip(" \t\r\n")))
            raise Flaw(line, "not JSON: an unexpected character")
        line += text.count("\n", position, match.start(1))
        yield match[1], line
        if match[1] == "":
            return
        position = match.end()


def _read_json(text: str) -> Node:
    tokens = _tokens(text)
    stack: list[tuple[Node, str | None]] = []
    count = 0
    token, line = next(tokens)
    while True:  # a value begins with this token
        count += 1
        if count > MAX_NODES:
            raise Flaw(line, f"the file has more than {MAX_NODES} values")
        is_list, is_mapping = token.startswith("["), token.startswith("{")
        node = Node([] if is_list else {} if is_mapping else _json_scalar(token, line), line)
        if is_list or is_mapping:
            if len(stack) >= MAX_DEPTH:
                raise Flaw(line, f"lists and mappings are nested too deeply; expected at most {MAX_DEPTH} levels")
            stack.append((node, None))
            token, line = next(tokens)
            if token not in ("]", "}"):
                if isinstance(node.value, dict):
                    stack[-1] = node, _json_key(node, token, line, tokens)
                    token, line = next(tokens)
                continue
            _close(node, token, line)
            stack.pop()
        while stack:  # a value is complete
            parent, key = stack[-1]
            _put(parent, key, node)
            token, line = next(tokens)
            if token.startswith(","):
                token, line = next(tokens)
                if isinstance(parent.value, dict):
                    stack[-1] = parent, _json_key(parent, token, line, tokens)
                    token, line = next(tokens)
                break
            _close(parent, token, line)
            node, _ = stack.pop()
        else:
            token, line = next(tokens)
            if token:
                raise Flaw(line, "not JSON: text after the end")
            return node


def _put(parent: Node, key: str | None, node: Node) -> None:
    if isinstance(parent.value, list):
        parent.value.append(node)
    else:
        parent.value[key] = node


def _close(node: Node, token: str, line: int) -> None:
    if token != ("}" if isinstance(node.value, dict) else "]"):
        raise Flaw(line, "not JSON: a comma or a closing bracket is missing")


def _json_key(parent: Node, token: str, line: int, tokens: Iterator[tuple[str, int]]) -> str:
    key = _json_scalar(token, line)
    if not isinstance(key, str):
        raise Flaw(line, "not JSON: a key is no text in double quotes")
    if key in parent.key_lines:
        raise Flaw(line, f"the key {key[:40]!r} is given twice")
    parent.key_lines[key] = line
    if next(tokens)[0] != ":":
        raise Flaw(line, "not JSON: a colon is missing")
    return key


def _json_scalar(token: str, line: int) -> Any:
    if token in ("true", "false", "null"):
        return {"true": True, "false": False, "null": None}[token]
    try:
        if token.startswith('"'):
            text: str = json.loads(token)
            text.encode()  # raises for a lone surrogate
            return text
        if re.fullmatch(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?", token):
            return number(token, line)
    except ValueError:
        raise Flaw(line, "not JSON: an invalid text") from None
    raise Flaw(line, "not JSON: a value is missing or no value of JSON")


# --- TOML ---------------------------------------------------------------------------------------------------------


def _read_toml(text: str) -> Node:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"\(at line (\d+)", str(error))
        line = int(found[1]) if found else text.count("\n") + 1
        raise Flaw(line, f"not TOML: {str(error).partition(' (at')[0]}") from None
    except (RecursionError, ValueError):  # ValueError: an integer with more than 4300 digits
        raise Flaw(1, "not TOML: nested too deeply, or a number is too long") from None
    return _toml_node(document, (), [0])


def _toml_node(value: Any, path: tuple[str | int, ...], count: list[int]) -> Node:
    node = Node(value, 0, path)
    count[0] += 1
    if len(path) > MAX_DEPTH or count[0] > MAX_NODES:
        raise Flaw(node, f"too many values, or nested too deeply; expected {MAX_NODES} values and {MAX_DEPTH} levels")
    if isinstance(value, dict):
        node.value = {name: _toml_node(each, (*path, name), count) for name, each in value.items()}
    elif isinstance(value, list):
        node.value = [_toml_node(each, (*path, index), count) for index, each in enumerate(value)]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        checked_number(value, node)
    elif not isinstance(value, str | bool):
        node.value = value.isoformat()  # a date or a time
    return node


def _toml_line(text: str, path: tuple[str | int, ...]) -> int:
    """Return the line that brings the value at ``path``: the first one up to which the file has it."""
    lines = text.split("\n")
    for end in range(1, min(len(lines), MAX_SEARCHED) + 1):
        try:
            value: Any = tomllib.loads("\n".join(lines[:end]))
        except tomllib.TOMLDecodeError:
            continue  # within a value of several lines
        try:
            for each in path:
                value = value[each]
        except (KeyError, IndexError, TypeError):
            continue
        return end
    return 1

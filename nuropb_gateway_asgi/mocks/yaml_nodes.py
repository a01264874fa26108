"""YAML as a tree with lines, by the events of PyYAML, whose constructors would follow aliases and tags."""

from __future__ import annotations

import re
from typing import Any, Final

from .nodes import MAX_DEPTH, MAX_NODES, Flaw, Node, number

__all__ = ["read_yaml"]

_NUMBER: Final = re.compile(r"[-+]?(?:[0-9]+|(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)")
#: Those of YAML 1.2's core schema. In YAML 1.1 the word "no" is false.
_WORDS: Final = {"": None, "~": None, "null": None, "true": True, "false": False}
_ODD: Final = re.compile(r"[-+]?\.(?:inf|nan)", re.IGNORECASE)


def read_yaml(text: str) -> Node:
    """Read a document, or raise Flaw. The file is read event by event, so a limit ends it wherever it is passed."""
    try:
        import yaml
    except ImportError:
        raise Flaw(
            1,
            "YAML needs PyYAML, which is not installed; install the gateway with its extra dev, or write JSON or TOML",
        ) from None
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return _build(yaml.parse(text, Loader=loader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = 1 if mark is None else mark.line + 1
        raise Flaw(line, f"not YAML: {getattr(error, 'problem', None) or 'an unexpected character'}") from None


def _build(events: Any) -> Node:
    root: Node | None = None
    stack: list[tuple[Node, list[str]]] = []
    count = 0
    for event in events:
        name = type(event).__name__
        line = event.start_mark.line + 1
        if name in ("StreamStartEvent", "StreamEndEvent", "DocumentStartEvent", "DocumentEndEvent"):
            if name == "DocumentStartEvent" and root is not None:
                raise Flaw(line, "a second document; expected one")
            continue
        if name in ("MappingEndEvent", "SequenceEndEvent"):
            stack.pop()
            continue
        if name == "AliasEvent" or event.anchor is not None:
            raise Flaw(line, "an anchor or alias; expected none: write the value where it is used")
        if event.tag is not None and event.tag not in ("!", "tag:yaml.org,2002:str"):
            raise Flaw(line, "a tag; expected values of JSON alone")
        count += 1
        if count > MAX_NODES:
            raise Flaw(line, f"the file has more than {MAX_NODES} values")
        if name == "ScalarEvent":
            node = Node(_scalar(event, line), line)
        else:
            if len(stack) >= MAX_DEPTH:
                raise Flaw(line, f"lists and mappings are nested too deeply; expected at most {MAX_DEPTH} levels")
            node = Node({} if name == "MappingStartEvent" else [], line)
        if not stack:
            root = node
        elif not _put(*stack[-1], node):
            continue  # a key
        if name != "ScalarEvent":
            stack.append((node, []))
    return Node(None, 1) if root is None else root


def _put(parent: Node, keys: list[str], node: Node) -> bool:
    """Put a node into its parent; return False if it is a key, which waits in ``keys`` for its value."""
    if isinstance(parent.value, list):
        parent.value.append(node)
        return True
    if keys:
        parent.value[keys.pop()] = node
        return True
    key = node.value
    if not isinstance(key, str):
        raise Flaw(node, "a key is no text; expected a text, in quotes where it looks like a number or like true")
    if key in parent.key_lines:
        raise Flaw(node, f"the key {key[:40]!r} is given twice")
    parent.key_lines[key] = node.line
    keys.append(key)
    return False


def _scalar(event: Any, line: int) -> Any:
    text: str = event.value
    if event.style not in (None, "") or event.tag == "tag:yaml.org,2002:str":
        return text
    if text.lower() in _WORDS and text in (text.lower(), text.upper(), text.title()):
        return _WORDS[text.lower()]
    if _NUMBER.fullmatch(text):
        return number(text, line)
    if _ODD.fullmatch(text):
        raise Flaw(line, "a number is out of range; expected a finite one")
    return text

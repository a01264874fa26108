"""An index of a policy's topic patterns: finds those that cover or overlap a client's pattern. Pure.

A decision about a pattern visits the branches of its words only, so the number of the policy's patterns hardly matters.
Patterns are normalised and split once, when the policy is read. A word with a placeholder is a branch of its own, which
is compared with the caller's value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from ..topics import normalise, split
from .patterns import Parts, TopicPattern, fill_in

if TYPE_CHECKING:
    from ..authentication import Identity

__all__ = ["TopicIndex"]

T = TypeVar("T")

#: Fills in a word with placeholders for one caller; None for a placeholder without a value.
_Values: TypeAlias = Callable[[Parts], str | None]


class TopicIndex(Generic[T]):
    """A tree of items under topic patterns with placeholders."""

    __slots__ = ("_root",)

    def __init__(self, items: Iterable[tuple[TopicPattern, T]]) -> None:
        self._root: _Node[T] = _Node(repeats=False)
        for pattern, item in items:
            node = self._root
            for word in normalise(pattern.words):
                node = node.child(word)
            node.items.append(item)

    def covering(self, pattern: str, identity: Identity) -> Iterator[T]:
        """Yield the items whose pattern certainly matches every topic that ``pattern`` matches.

        The answers are those of :func:`~..topics.covers`, for the patterns with this caller's values.
        """
        value = _values(identity)
        nodes: set[_Node[T]] = set()
        self._root.enter(nodes)
        for word in normalise(split(pattern)):
            following: set[_Node[T]] = set()
            for node in nodes:
                if node.repeats:
                    following.add(node)
                if word != "#":  # any run of words: no pattern takes it but by a # of its own
                    node.step(word, value, following)
            nodes = following
        for node in nodes:
            yield from node.items

    def overlapping(self, pattern: str, identity: Identity) -> Iterator[T]:
        """Yield the items whose pattern may match a topic that ``pattern`` matches.

        The answers are those of :func:`~..topics.overlaps`, for the patterns with this caller's values.
        """
        value = _values(identity)
        nodes: set[_Node[T]] = set()
        self._root.enter(nodes)
        for word in split(pattern):
            following: set[_Node[T]] = set()
            if word == "#":
                for node in nodes:
                    node.descend(value, following)
            else:
                for node in nodes:
                    if node.repeats:
                        following.add(node)
                    if word == "*":
                        for child in node.following(value):
                            child.enter(following)
                    else:
                        node.step(word, value, following)
            nodes = following
        for node in nodes:
            yield from node.items


class _Node(Generic[T]):
    """A place where patterns branch. ``items`` are those of the pattern that ends here."""

    __slots__ = ("children", "filled", "items", "repeats")

    def __init__(self, *, repeats: bool) -> None:
        #: By literal word, ``*`` and ``#``.
        self.children: dict[str, _Node[T]] = {}
        #: By words with placeholders.
        self.filled: dict[Parts, _Node[T]] = {}
        self.items: list[T] = []
        #: Whether the node is reached by a ``#``, and so by any number of words.
        self.repeats = repeats

    def child(self, word: str | Parts) -> _Node[T]:
        """Return the branch of a word, which is made if it is missing."""
        if isinstance(word, str):
            return self.children.get(word) or self.children.setdefault(word, _Node(repeats=word == "#"))
        return self.filled.get(word) or self.filled.setdefault(word, _Node(repeats=False))

    def enter(self, nodes: set[_Node[T]]) -> None:
        """Add this node, and the nodes reached from it by a ``#`` that stands for no word."""
        node: _Node[T] | None = self
        while node is not None:
            nodes.add(node)
            node = node.children.get("#")

    def step(self, word: str, value: _Values, to: set[_Node[T]]) -> None:
        """Add the nodes that are reached by ``word``."""
        for key in (word, "*"):
            child = self.children.get(key)
            if child is not None:
                child.enter(to)
        for parts, child in self.filled.items():
            if value(parts) == word:
                child.enter(to)

    def following(self, value: _Values) -> Iterator[_Node[T]]:
        """Yield the nodes that are reached by one word, whatever it is."""
        for word, child in self.children.items():
            if word != "#":
                yield child
        for parts, child in self.filled.items():
            if value(parts) is not None:
                yield child

    def descend(self, value: _Values, nodes: set[_Node[T]]) -> None:
        """Add the nodes that are reached by any number of words."""
        pending = [self]
        while pending:
            node = pending.pop()
            if node not in nodes:
                nodes.add(node)
                pending += node.following(value)
                if (repeated := node.children.get("#")) is not None:
                    pending.append(repeated)


def _values(identity: Identity) -> _Values:
    """Return a function that fills in each word once."""
    known: dict[Parts, str | None] = {}

    def value(word: Parts) -> str | None:
        if word not in known:
            known[word] = fill_in(word, identity)
        return known[word]

    return value

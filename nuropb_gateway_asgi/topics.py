"""AMQP topic patterns: their syntax, matching, inclusion and overlap, and a tree of subscribers.

The rules are those of the topic exchange (AMQP 0-9-1, section 3.1.3.3) as RabbitMQ implements it: a topic is words
separated by dots; in a pattern the word ``*`` stands for exactly one word and ``#`` for zero or more. Words may be
empty (``a..b`` has three), but the empty topic has no words: ``#`` matches it and ``*`` does not.

Pure: no I/O, no awaits. Patterns come from untrusted clients, so the cost of every function is bounded by
the product of the sizes of its arguments.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from collections.abc import Set as AbstractSet
from typing import Final, Generic, Never, TypeVar

__all__ = [
    "GATEWAY_TOPICS",
    "MAX_BYTES",
    "TopicTree",
    "check_pattern",
    "check_topic",
    "covers",
    "matches",
    "normalise",
    "overlaps",
    "split",
]

#: The topics of the events that the gateway itself sends to clients. A client obeys these (it leaves after a goodbye,
#: it ends subscriptions), so an event of the mesh never has one of them when it reaches a client.
GATEWAY_TOPICS: Final = frozenset({"hello", "goodbye", "unsubscribed", "gap", "dropped", "closed"})
#: Maximum length of a routing key, an AMQP short string.
MAX_BYTES: Final = 255
#: Maximum number of words. Each is a node in a tree, here and in the broker, and 255 bytes could hold 256 words.
MAX_WORDS: Final = 32
#: RabbitMQ refuses a binding with more # words (https://github.com/rabbitmq/rabbitmq-server/pull/17039), and
#: its refusal closes the channel that all clients share.
MAX_HASHES: Final = 2

T = TypeVar("T", bound=Hashable)
#: A word; policies have words with placeholders, too.
W = TypeVar("W")

#: Shared by the nodes without items, which are most: an empty set for each would double their size.
_NOTHING: Final[frozenset[Never]] = frozenset()


def check_pattern(pattern: str) -> str | None:
    """Return the reason why ``pattern`` cannot be subscribed to, or None. The reason does not quote it.

    To RabbitMQ a word such as ``a*`` is a literal. It is refused, because a client that sends it means a wildcard and
    would wait for ever.
    """
    reason = _check_text(pattern)
    if reason is not None:
        return reason
    words = split(pattern)
    if len(words) > MAX_WORDS:
        return f"more than {MAX_WORDS} words"
    if words.count("#") > MAX_HASHES:
        return f"more than {MAX_HASHES} # words"
    if any(len(word) > 1 and ("*" in word or "#" in word) for word in words):
        return "a word that mixes * or # with other characters"
    return None


def check_topic(topic: str) -> str | None:
    """Return the reason why ``topic`` cannot be published to, or None. The reason does not quote it.

    To RabbitMQ ``*`` and ``#`` are ordinary letters in a topic. They are refused, because no pattern matches exactly
    such a topic. The gateway's own topics are refused, because clients would take the event for the gateway's.
    """
    reason = _check_text(topic)
    if reason is None and ("*" in topic or "#" in topic):
        return "* or # in a topic"
    if topic in GATEWAY_TOPICS:
        return "reserved for the gateway's own events"
    return reason


def matches(pattern: str, topic: str) -> bool:
    """Return whether an exchange routes a message with this topic to a queue bound with this pattern."""
    return _match(split(pattern), split(topic))


def covers(general: str, specific: str) -> bool:
    """Return whether ``general`` certainly matches every topic that ``specific`` matches.

    True is always right. False can be wrong where only the number of words decides: ``*.#`` (at least one word)
    includes ``#.a``, but not word by word. If ``specific`` has no ``#``, the answer is exact.
    """
    words = normalise(split(specific))
    return _match(normalise(split(general)), [None if word == "#" else word for word in words])


def overlaps(one: str, other: str) -> bool:
    """Return whether some topic may match both patterns.

    False is always right. True can be wrong in one case: the only common topic of ``*`` and ``#.`` is a single empty
    word, and such a topic cannot be written.
    """
    # Pairs of positions, one in each pattern, that a common topic can lead to. Each pair is visited once, so the work
    # is at most the product of the two lengths.
    left, right = split(one), split(other)
    seen = {(0, 0)}
    pairs = [(0, 0)]
    while pairs:
        at, to = pairs.pop()
        first = left[at] if at < len(left) else None
        second = right[to] if to < len(right) else None
        if first is None and second is None:
            return True
        following = []
        # A `#` stands for no more words, or takes the next word of the other pattern (which may be a `#`, too).
        if first == "#":
            following.append((at + 1, to))
            if second is not None:
                following.append((at, to + 1))
        if second == "#":
            following.append((at, to + 1))
            if first is not None:
                following.append((at + 1, to))
        if first is not None and second is not None and (first == second or "*" in (first, second)):
            following.append((at + 1, to + 1))
        for pair in following:
            if pair not in seen:
                seen.add(pair)
                pairs.append(pair)
    return False


class TopicTree(Generic[T]):
    """A tree of items under topic patterns, found by topic.

    A trie over words: a match follows only the branches of the topic's words, so patterns unrelated to the topic cost
    it nothing. Patterns are not interpreted: ``#.*`` and ``*.#`` are two patterns.
    """

    __slots__ = ("_items", "_root")

    def __init__(self) -> None:
        self._items: dict[str, set[T]] = {}
        self._root: _Node[T] = _Node(repeats=False)

    def __len__(self) -> int:
        return len(self._items)

    @property
    def is_empty(self) -> bool:
        """Whether the tree has shrunk to a root without items."""
        return not (self._items or self._root.children or self._root.items)

    def patterns(self) -> Sequence[str]:
        """Return a copy of the patterns with items; the tree may change while the copy is used."""
        return list(self._items)

    def add(self, pattern: str, item: T) -> bool:
        """Add ``item`` to ``pattern``; return whether it is the first (and a queue must be bound)."""
        items = self._items.get(pattern)
        if items is not None:
            items.add(item)
            return False
        self._items[pattern] = items = {item}
        node = self._root
        for word in split(pattern):
            child = node.children.get(word)
            if child is None:
                child = node.children[word] = _Node(repeats=word == "#")
            node = child
        node.items = items
        return True

    def remove(self, pattern: str, item: T) -> bool:
        """Remove ``item`` from ``pattern``; return whether it was the last (and a queue must be unbound).

        Does nothing and returns False if ``pattern`` does not have ``item``.
        """
        items = self._items.get(pattern)
        if items is None or item not in items:
            return False
        items.remove(item)
        if items:
            return False
        del self._items[pattern]
        self._prune(pattern)
        return True

    def match(self, topic: str) -> set[T]:
        """Return a new set of the items of all patterns that match ``topic``."""
        # All readings of the topic advance together as a set of nodes. Two of them that meet in a node go on
        # as one, so the work is at most words x nodes, however many ways there are to split the topic between
        # `#`s.
        nodes: set[_Node[T]] = set()
        _enter(self._root, nodes)
        for word in split(topic):
            following: set[_Node[T]] = set()
            for node in nodes:
                if node.repeats:
                    following.add(node)
                for key in (word, "*"):
                    _enter(node.children.get(key), following)
            nodes = following
        found: set[T] = set()
        return found.union(*(node.items for node in nodes))

    def _prune(self, pattern: str) -> None:
        path: list[tuple[_Node[T], str]] = []
        node = self._root
        for word in split(pattern):
            path.append((node, word))
            node = node.children[word]
        for parent, word in reversed(path):
            child = parent.children[word]
            if child.items or child.children:
                break
            del parent.children[word]


class _Node(Generic[T]):
    """A place where patterns branch. ``items`` are those of the pattern that ends here."""

    __slots__ = ("children", "items", "repeats")

    def __init__(self, *, repeats: bool) -> None:
        self.children: dict[str, _Node[T]] = {}
        self.items: AbstractSet[T] = _NOTHING
        self.repeats = repeats


def _enter(node: _Node[T] | None, nodes: set[_Node[T]]) -> None:
    """Add ``node``, and the nodes reached from it by a ``#`` that stands for no word."""
    while node is not None:
        nodes.add(node)
        node = node.children.get("#")


def split(text: str) -> list[str]:
    """Return the words of a topic or pattern."""
    return text.split(".") if text else []


def _check_text(text: str) -> str | None:
    if not text:
        return "empty"
    # Before the length: a lone surrogate is not printable, and encoding it fails.
    if not text.isprintable():
        return "characters that are not printable"
    if len(text.encode()) > MAX_BYTES:
        return f"longer than {MAX_BYTES} bytes"
    return None


def normalise(words: Sequence[W]) -> list[W]:
    """Return an equal pattern in which every run of wildcards has its ``*`` words first, then one ``#``."""
    result: list[W] = []
    pending: W | None = None
    for word in words:
        if word == "#":
            pending = word
            continue
        if pending is not None and word != "*":
            result.append(pending)
            pending = None
        result.append(word)
    if pending is not None:
        result.append(pending)
    return result


def _match(pattern: Sequence[str], words: Sequence[str | None]) -> bool:
    """Match word by word. None in ``words`` stands for any run of words, so only ``#`` can take it.

    After a mismatch only the last ``#`` takes one more word. Earlier ``#`` need not: the words between two ``#`` have a
    fixed number, and their leftmost place leaves the most words to the rest. So the cost is at most the product of the
    two lengths, where trying every place would be exponential.
    """
    at = position = resume = 0
    after_hash: int | None = None
    while position < len(words):
        expected = pattern[at] if at < len(pattern) else None
        word = words[position]
        if expected == "#":
            at += 1
            after_hash, resume = at, position
        elif expected is not None and (expected == word or (expected == "*" and word is not None)):
            at += 1
            position += 1
        elif after_hash is not None:
            resume += 1
            at, position = after_hash, resume
        else:
            return False
    return all(expected == "#" for expected in pattern[at:])

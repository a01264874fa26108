from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nuropb_gateway_asgi.topics import TopicTree, check_pattern, check_topic, covers, matches, overlaps

# Two literals, the empty word and the wildcards: enough for every rule, and small enough to meet often.
topics = st.lists(st.sampled_from(["a", "b", ""]), max_size=8).map(".".join)
patterns = st.lists(st.sampled_from(["a", "b", "", "*", "#"]), max_size=8).map(".".join)
# So few patterns that a random remove often finds the item of a random add.
few_patterns = st.lists(st.sampled_from(["a", "*", "#"]), max_size=3).map(".".join)


def reference(pattern: str, topic: str) -> bool:
    """The rules of the exchange as a regular expression over words that all end with a dot."""
    word = {"*": r"[^.]*\.", "#": r"([^.]*\.)*"}
    expression = "".join(word.get(w, re.escape(w + ".")) for w in pattern.split(".")) if pattern else ""
    return re.fullmatch(expression, topic + "." if topic else "") is not None


def every(alphabet: str, length: int) -> list[str]:
    """Return all topics of up to ``length`` words, without the empty topic."""
    return [".".join(words) for n in range(1, length + 1) for words in itertools.product(alphabet, repeat=n)]


class Counted(str):
    """A word that counts comparisons and hashes of it. A topic of this type splits into such words."""

    looks = 0

    def split(self, *args: object, **kwargs: object) -> list[str]:
        return [Counted(word) for word in str(self).split(".")]

    def __eq__(self, other: object) -> bool:
        Counted.looks += 1
        return str.__eq__(self, other)

    def __hash__(self) -> int:
        Counted.looks += 1
        return str.__hash__(self)


@pytest.fixture(autouse=True)
def _from_zero() -> None:
    Counted.looks = 0


# --- check_pattern, check_topic -------------------------------------------------------------------------

TEXTS = [
    # text, reason as a pattern, reason as a topic
    ("orders", None, None),
    ("orders.created", None, None),
    ("orders..created", None, None),
    (".", None, None),
    ("with space.née.注文", None, None),
    ("a" * 255, None, None),
    ("é" * 127, None, None),
    ("", "empty", "empty"),
    ("a" * 256, "longer than 255 bytes", "longer than 255 bytes"),
    ("é" * 128, "longer than 255 bytes", "longer than 255 bytes"),
    ("a\n", "characters that are not printable", "characters that are not printable"),
    ("a\0b", "characters that are not printable", "characters that are not printable"),
    ("a\x7f", "characters that are not printable", "characters that are not printable"),
    ("a\u202eb", "characters that are not printable", "characters that are not printable"),
    ("a\ud800b", "characters that are not printable", "characters that are not printable"),
    ("*", None, "* or # in a topic"),
    ("#", None, "* or # in a topic"),
    ("*.created", None, "* or # in a topic"),
    ("orders.#", None, "* or # in a topic"),
    ("#.#", None, "* or # in a topic"),
    ("#.a.#.b", None, "* or # in a topic"),
    (".".join("*" * 32), None, "* or # in a topic"),
    ("#.#.#", "more than 2 # words", "* or # in a topic"),
    ("#.a.#.b.#", "more than 2 # words", "* or # in a topic"),
    ("a*", "a word that mixes * or # with other characters", "* or # in a topic"),
    ("orders.#created", "a word that mixes * or # with other characters", "* or # in a topic"),
    ("**", "a word that mixes * or # with other characters", "* or # in a topic"),
    ("##", "a word that mixes * or # with other characters", "* or # in a topic"),
    ("*#.a", "a word that mixes * or # with other characters", "* or # in a topic"),
    (".".join("a" * 32), None, None),
    (".".join("a" * 33), "more than 32 words", None),
    ("." * 255, "more than 32 words", None),
]


@pytest.mark.parametrize(("text", "as_pattern", "as_topic"), TEXTS)
def test_patterns_and_topics_are_accepted_or_refused_with_a_reason(
    text: str, as_pattern: str | None, as_topic: str | None
) -> None:
    assert check_pattern(text) == as_pattern
    assert check_topic(text) == as_topic


# --- matches --------------------------------------------------------------------------------------------

MATCHES = [
    # pattern, matching topics, other topics
    ("orders.created", ["orders.created"], ["orders", "orders.created.eu", "Orders.created", "", "orders."]),
    ("orders.*", ["orders.created", "orders."], ["orders", "orders.created.eu", ".orders", ""]),
    ("*.created", ["orders.created", ".created"], ["created", "a.orders.created"]),
    ("*", ["orders", "#", "*"], ["", ".", "a.b"]),
    ("*.*", ["a.b", "."], ["a", "a.b.c", ""]),
    ("#", ["", "a", ".", "a.b.c"], []),
    ("orders.#", ["orders", "orders.", "orders.created", "orders.created.eu"], ["", "order", "a.orders"]),
    ("#.created", ["created", "orders.created", "a.b.created"], ["", "created.a", "createdb"]),
    ("a.#.b", ["a.b", "a.x.b", "a..b", "a.b.b", "a.x.y.b"], ["a", "b", "ab", "a.b.c", "x.a.b"]),
    ("#.a.#", ["a", "x.a", "a.x", "x.a.y", "a.a"], ["", "x", "x.y"]),
    ("#.#", ["", "a", "a.b"], []),
    ("#.*", ["a", "a.b"], [""]),
    ("*.#", ["a", "a.b"], [""]),
    ("a.#.*.b", ["a.x.b", "a.x.y.b"], ["a.b"]),
    ("a..b", ["a..b"], ["a.b", "a.x.b"]),
    ("a*", ["a*"], ["a", "ab"]),
    ("", [""], ["a", "."]),
]


@pytest.mark.parametrize(("pattern", "matching", "others"), MATCHES)
def test_a_pattern_matches_as_the_topic_exchange_does(pattern: str, matching: list[str], others: list[str]) -> None:
    assert [topic for topic in matching + others if matches(pattern, topic)] == matching


@given(patterns, topics)
def test_matching_agrees_with_a_regular_expression(pattern: str, topic: str) -> None:
    assert matches(pattern, topic) == reference(pattern, topic)


@pytest.mark.parametrize(
    "pattern",
    ["#.a." * 40 + "b", "#." * 100 + "b", "#.*." * 40 + "b", "#" + ".a" * 60 + ".#" + ".a" * 60 + ".b"],
)
def test_matching_costs_at_most_the_product_of_the_lengths(pattern: str) -> None:
    topic = Counted(".".join("a" * 128))
    assert not matches(pattern, topic)
    assert Counted.looks <= len(pattern.split(".")) * 128


# --- covers ---------------------------------------------------------------------------------------------

COVERS = [
    # general, covered, not covered
    ("orders.created", ["orders.created"], ["orders.*", "orders.#", "orders", "#", "Orders.created"]),
    ("orders.*", ["orders.*", "orders.created"], ["orders", "orders.#", "*.created", "orders.a.b", "*.*"]),
    ("orders.#", ["orders", "orders.*", "orders.#", "orders.*.x", "orders.#.x.#"], ["#", "*", "#.orders"]),
    ("#", ["", "a", "*", "#", "a.*.#.b", "#.#"], []),
    ("#.#", ["", "a", "*", "#"], []),
    ("*", ["a", "*"], ["", "#", "a.b", "*.*", "*.#"]),
    ("*.#", ["a", "*", "#.*", "*.#", "a.#", "#.*.#", "*.*"], ["#", ""]),
    ("#.*", ["a", "*", "#.*", "*.#", "*.*.#"], ["#", ""]),
    ("#.*.#.*", ["*.*", "*.#.*", "a.#.*", "a.b"], ["*", "*.#", "#"]),
    ("#.b", ["b", "*.b", "#.b", "a.#.b", "b.b"], ["#", "*", "b.#", "b.*"]),
    ("a.#.b", ["a.b", "a.*.b", "a.#.b", "a.#.x.#.b"], ["a.#", "#.b", "#", "a.*"]),
    ("#.a.#", ["a", "*.a", "#.a.#", "x.a.y", "#.a", "a.#"], ["#", "*", "*.#", "x"]),
    ("users.u1.#", ["users.u1", "users.u1.mail"], ["users.u2", "users.*", "users.#", "users.*.mail"]),
    ("a*", ["a*"], ["ab", "a", "*"]),
    ("", [""], ["a", "*", "#"]),
]


@pytest.mark.parametrize(("general", "covered", "others"), COVERS)
def test_a_pattern_covers_the_patterns_that_it_includes(general: str, covered: list[str], others: list[str]) -> None:
    assert [pattern for pattern in covered + others if covers(general, pattern)] == covered


def test_covering_is_refused_where_only_the_number_of_words_decides() -> None:
    assert not covers("*.#", "#.a")


def test_a_covered_pattern_matches_no_more_topics() -> None:
    # "z" is in no pattern: it stands for all other words.
    universe = ["", *every("az", 5)]
    matched = {pattern: {topic for topic in universe if reference(pattern, topic)} for pattern in every("a*#", 4)}
    for general, specific in itertools.product(matched, repeat=2):
        included = matched[specific] <= matched[general]
        if "#" in specific:
            assert included or not covers(general, specific), (general, specific)
        else:
            assert included == covers(general, specific), (general, specific)


@given(patterns, patterns, st.data())
def test_a_covering_pattern_matches_every_topic_of_the_covered(
    general: str, specific: str, data: st.DataObject
) -> None:
    words: list[str] = []
    for word in specific.split(".") if specific else []:
        size = {"#": st.integers(0, 3), "*": st.just(1)}.get(word)
        words += [word] if size is None else data.draw(size.flatmap(_some_words))
    # A single empty word cannot be written: the empty topic has no words.
    assume(words != [""])
    topic = ".".join(words)
    assert matches(specific, topic)
    assert matches(general, topic) or not covers(general, specific)


def _some_words(size: int) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(["a", "b", "z", ""]), min_size=size, max_size=size)


@given(patterns, topics)
def test_covering_a_topic_is_matching_it(pattern: str, topic: str) -> None:
    assert covers(pattern, topic) == matches(pattern, topic)


@given(patterns)
def test_a_pattern_covers_itself(pattern: str) -> None:
    assert covers(pattern, pattern)


# --- overlaps -------------------------------------------------------------------------------------------

OVERLAPS = [
    # pattern, patterns with a common topic, patterns without one
    ("orders.created", ["orders.created", "orders.*", "#", "*.created", "#.created"], ["orders", "*", "orders.*.x"]),
    ("orders.*", ["orders.created", "*.created", "*.*", "#.a", "orders.#"], ["orders", "*", "users.*", "a.b.c"]),
    ("orders.#", ["orders", "*", "#.orders", "#.x", "*.*.*", "#"], ["users.#", "users", "", "*s.x"]),
    ("#.eu", ["orders.#", "eu", "*", "a.eu", "#.eu.#", "a.*"], ["eu.us", "", "a.#.us"]),
    ("a.#.b", ["a.b", "#.b", "a.#", "a.*.b", "*.*", "a.#.c.#.b"], ["a", "b", "*", "b.#", "#.a"]),
    ("a.*.#", ["a.b", "#.c", "*.#", "a.#"], ["a", "b.#", ""]),
    ("#.a.#", ["#.b.#", "b.*", "*", "b.#"], ["b", "", "b.b"]),
    ("", ["", "#", "#.#"], ["a", "*", "*.#"]),
    ("a..b", ["a.*.b", "a..#"], ["a.b", "a.x.b"]),
]


@pytest.mark.parametrize(("pattern", "meeting", "others"), OVERLAPS)
def test_patterns_overlap_where_a_topic_is_matched_by_both(pattern: str, meeting: list[str], others: list[str]) -> None:
    assert [other for other in meeting + others if overlaps(pattern, other)] == meeting
    assert [other for other in meeting + others if overlaps(other, pattern)] == meeting


def test_overlapping_agrees_with_trying_every_topic() -> None:
    universe = ["", *every("abz", 6)]
    matched = {pattern: {topic for topic in universe if reference(pattern, topic)} for pattern in every("ab*#", 3)}
    for one, other in itertools.product(matched, repeat=2):
        assert overlaps(one, other) == bool(matched[one] & matched[other]), (one, other)


@given(patterns, patterns, topics)
def test_patterns_that_do_not_overlap_never_match_the_same(one: str, other: str, topic: str) -> None:
    assert overlaps(one, other) == overlaps(other, one)
    assert overlaps(one, other) or not (matches(one, topic) and matches(other, topic))
    assert overlaps(one, topic) or not matches(one, topic)


@given(patterns, patterns)
def test_a_pattern_overlaps_the_patterns_that_it_covers(general: str, specific: str) -> None:
    assert overlaps(general, specific) or not covers(general, specific)


def test_overlapping_costs_at_most_the_product_of_the_lengths() -> None:
    one = Counted(".".join(["#", "a"] * 30 + ["b"]))
    other = Counted(".".join(["#", "a"] * 30 + ["c"]))
    Counted.looks = 0
    assert not overlaps(one, other)
    # Each pair of positions is visited once, with a few comparisons.
    assert Counted.looks <= 8 * 62 * 62


def test_a_single_empty_word_cannot_be_written_and_counts_all_the_same() -> None:
    assert overlaps("*", "#.")


# --- TopicTree ------------------------------------------------------------------------------------------


def test_a_tree_says_when_a_pattern_comes_and_goes() -> None:
    tree: TopicTree[str] = TopicTree()
    assert tree.add("orders.*", "x")
    assert not tree.add("orders.*", "x")
    assert not tree.add("orders.*", "y")
    assert tree.add("orders.#", "x")
    assert (len(tree), set(tree.patterns())) == (2, {"orders.*", "orders.#"})
    assert not tree.remove("orders.*", "x")
    assert tree.remove("orders.*", "y")
    assert (len(tree), set(tree.patterns())) == (1, {"orders.#"})


@pytest.mark.parametrize(("pattern", "item"), [("orders", "x"), ("orders.*", "y"), ("orders.*.eu", "x"), ("", "x")])
def test_removing_an_absent_item_does_nothing(pattern: str, item: str) -> None:
    tree: TopicTree[str] = TopicTree()
    tree.add("orders.*", "x")
    assert not tree.remove(pattern, item)
    assert tree.patterns() == ["orders.*"]
    assert tree.match("orders.created") == {"x"}


def test_an_item_is_found_once_however_many_patterns_match() -> None:
    tree: TopicTree[str] = TopicTree()
    for pattern in ["orders.created", "orders.*", "#", "*.#", "#.created", "#.#"]:
        tree.add(pattern, "x")
    tree.add("*.created", "y")
    tree.add("users.*", "z")
    assert tree.match("orders.created") == {"x", "y"}
    assert tree.match("") == {"x"}


@pytest.mark.parametrize(("pattern", "matching", "others"), MATCHES)
def test_a_tree_matches_as_the_topic_exchange_does(pattern: str, matching: list[str], others: list[str]) -> None:
    tree: TopicTree[str] = TopicTree()
    tree.add(pattern, "x")
    assert [topic for topic in matching + others if tree.match(topic)] == matching


def test_the_set_that_a_tree_returns_belongs_to_the_caller() -> None:
    tree: TopicTree[str] = TopicTree()
    tree.add("a", "x")
    tree.match("a").clear()
    patterns_then = tree.patterns()
    tree.add("b", "x")
    assert tree.match("a") == {"x"}
    assert patterns_then == ["a"]


@given(
    st.lists(st.tuples(st.booleans(), few_patterns, st.integers(0, 1)), max_size=60),
    st.lists(topics, max_size=5),
)
def test_a_tree_agrees_with_a_list_of_patterns(steps: list[tuple[bool, str, int]], asked: list[str]) -> None:
    tree: TopicTree[int] = TopicTree()
    model: set[tuple[str, int]] = set()
    for adding, pattern, item in steps:
        before = {p for p, _ in model}
        if adding:
            model.add((pattern, item))
            assert tree.add(pattern, item) == (pattern not in before)
        else:
            model.discard((pattern, item))
            assert tree.remove(pattern, item) == (pattern in before - {p for p, _ in model})
        assert len(tree) == len({p for p, _ in model})
    assert sorted(tree.patterns()) == sorted({p for p, _ in model})
    for topic in asked:
        assert tree.match(topic) == {item for p, item in model if reference(p, topic)}


@given(st.lists(patterns, unique=True))
def test_an_emptied_tree_keeps_nothing(added: list[str]) -> None:
    tree: TopicTree[int] = TopicTree()
    for pattern in added:
        tree.add(pattern, 1)
    for pattern in added:
        assert tree.remove(pattern, 1)
    assert tree.is_empty


def test_unrelated_patterns_cost_a_match_nothing() -> None:
    tree: TopicTree[int] = TopicTree()
    for pattern in ["orders.*.eu", "orders.#", "#.eu"]:
        tree.add(pattern, 0)
    topic = Counted("orders.created.eu")
    tree.match(topic)
    alone, Counted.looks = Counted.looks, 0
    for n in range(1000):
        tree.add(f"orders.created.eu.{n}", n)
        tree.add(f"orders.{n}.eu", n)
        tree.add(f"users.u{n}.#", n)
        tree.add(f"#.{n}", n)
    assert tree.match(topic) == {0}
    # Twice: beside those for the lookups, there are hits, and a hit also compares.
    assert Counted.looks <= 2 * alone


def test_a_match_looks_at_most_once_at_each_word_in_each_node() -> None:
    tree: TopicTree[int] = TopicTree()
    tree.add(".".join(["#", "a"] * 40), 1)
    topic = Counted(".".join("a" * 120))
    assert tree.match(topic) == {1}
    # Once for the lookup and, where it hits, once to compare.
    assert Counted.looks <= 2 * 120 * 81

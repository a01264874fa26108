"""The index of a policy's topics: compared with plain comparisons of patterns."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nuropb_gateway_asgi.authentication import Identity
from nuropb_gateway_asgi.authorization.patterns import TopicPattern
from nuropb_gateway_asgi.authorization.topic_index import TopicIndex
from nuropb_gateway_asgi.topics import check_pattern, covers, overlaps

words = st.sampled_from(["a", "b", "", "*", "#", "{user_id}", "x-{user_id}", "{claim:team}"])
rules = st.lists(words, min_size=1, max_size=5).map(".".join).filter(lambda text: check_pattern(text) is None)
asked = st.lists(st.sampled_from(["a", "b", "", "*", "#", "x-a"]), max_size=6).map(".".join)
callers = st.builds(
    lambda user_id, claims: Identity(user_id=user_id, username="u", token="t", claims=claims),
    st.sampled_from(["a", "b", "*"]),
    st.sampled_from([{}, {"team": "b"}, {"team": 7}]),
)


@given(st.lists(rules, max_size=8), asked, callers)
def test_patterns_that_cover_or_overlap_are_those_of_a_plain_comparison(
    texts: list[str], pattern: str, caller: Identity
) -> None:
    patterns = [TopicPattern.parse(text) for text in texts]
    index = TopicIndex((each, number) for number, each in enumerate(patterns))
    own = [each.fill_in(caller) for each in patterns]
    covering = [number for number, each in enumerate(own) if each is not None and covers(each, pattern)]
    assert sorted(index.covering(pattern, caller)) == covering
    meeting = [number for number, each in enumerate(own) if each is not None and overlaps(each, pattern)]
    assert sorted(index.overlapping(pattern, caller)) == meeting


@given(rules)
def test_the_words_of_a_pattern_are_its_text(text: str) -> None:
    caller = Identity(user_id="u", username="u", token="t", claims={"team": "c"})
    pattern = TopicPattern.parse(text)
    words = [
        word if isinstance(word, str) else "".join(p if isinstance(p, str) else p.value(caller) or "" for p in word)
        for word in pattern.words
    ]
    assert ".".join(words) == pattern.fill_in(caller)

"""The generation cache, and identifiers."""

import os

from hypothesis import given
from hypothesis import strategies as st

from nuropb_gateway_asgi.generation_cache import GenerationCache
from nuropb_gateway_asgi.identifiers import new_id


@given(st.integers(1, 5), st.lists(st.integers(0, 12)))
def test_at_least_the_last_keys_are_kept_and_at_most_twice_as_many(count: int, keys: list[int]) -> None:
    cache: GenerationCache[int, int] = GenerationCache(count)
    last: dict[int, int] = {}
    for position, key in enumerate(keys):
        cache.add(key, position)
        last[key] = position
        assert len(cache) <= 2 * count
    for key in keys[-count:]:
        assert key in cache
    for key in range(13):
        assert cache.get(key) == (last[key] if key in cache else None)


def test_a_renewed_key_keeps_its_value_and_is_the_latest() -> None:
    cache: GenerationCache[str, list[str]] = GenerationCache(1)
    kept = cache.renew("a", list)
    cache.add("b", [])
    assert cache.renew("a", list) is kept
    cache.add("c", [])
    assert (cache.get("a"), cache.get("b")) == (kept, None)


def test_identifiers_differ_and_have_one_form() -> None:
    identifiers = [new_id() for _ in range(1000)]
    assert len(set(identifiers)) == len(identifiers)
    assert all(len(each) == 32 and set(each) <= set("0123456789abcdef") for each in identifiers)


def test_a_forked_process_has_other_identifiers_than_its_parent() -> None:
    new_id()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, "".join(new_id() for _ in range(256)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    theirs = {told[start : start + 32] for start in range(0, len(told), 32)}
    assert len(theirs) == 256
    assert not theirs & {new_id() for _ in range(256)}

"""What is remembered for a while, and names that nobody else has."""

import os

from hypothesis import given
from hypothesis import strategies as st

from nuropb_gateway_asgi.generation_cache import GenerationCache
from nuropb_gateway_asgi.identifiers import new_id


@given(st.integers(1, 5), st.lists(st.integers(0, 12)))
def test_at_least_the_last_ones_are_remembered_and_at_most_twice_as_many(count: int, keys: list[int]) -> None:
    memory: GenerationCache[int, int] = GenerationCache(count)
    last: dict[int, int] = {}
    for position, key in enumerate(keys):
        memory.add(key, position)
        last[key] = position
        assert len(memory) <= 2 * count
    for key in keys[-count:]:
        assert key in memory
    for key in range(13):
        assert memory.get(key) == (last[key] if key in memory else None)


def test_names_are_all_different_and_look_alike() -> None:
    names = [new_id() for _ in range(1000)]
    assert len(set(names)) == len(names)
    assert all(len(name) == 32 and set(name) <= set("0123456789abcdef") for name in names)


def test_a_forked_process_has_other_names_than_its_parent() -> None:
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

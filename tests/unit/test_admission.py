from __future__ import annotations

import contextlib
from typing import Any

import pytest

from nuropb_gateway_asgi.exceptions import ConnectionLimitReached
from nuropb_gateway_asgi.limits import admission as admission_module
from nuropb_gateway_asgi.limits.admission import TOO_LONG, Admission, Arrival, address_of
from nuropb_gateway_asgi.rates import Rate, parse_limit


def test_a_process_has_only_so_many_connections() -> None:
    admission = Admission(1)
    with admission.connection():
        with pytest.raises(ConnectionLimitReached) as caught, admission.connection():
            pass
        assert not caught.value.per_user
        assert len(admission) == 1
    with pytest.raises(KeyError), admission.connection():
        raise KeyError
    with admission.connection():
        pass
    assert len(admission) == 0


class Waiting:
    """Connections without a token, by name; a connection that is turned out leaves at once."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._stacks: dict[str, contextlib.ExitStack] = {}
        self.turned_out: list[str] = []

    def arrive(self, name: str, address: str) -> None:
        stack = self._stacks[name] = contextlib.ExitStack()
        stack.enter_context(self._admission.waiting(address, lambda: self._on_turned_out(name)))

    def _on_turned_out(self, name: str) -> None:
        self.turned_out.append(name)
        self.leave(name)

    def leave(self, name: str) -> None:
        self._stacks.pop(name).close()

    def leave_all(self) -> None:
        for name in list(self._stacks):
            self.leave(name)


def test_connections_without_a_token_have_half_of_the_places_and_the_oldest_gives_way() -> None:
    admission = Admission(4)
    waiting = Waiting(admission)
    for name in ("a", "b", "c", "d"):
        waiting.arrive(name, address=name)
    assert waiting.turned_out == ["a", "b"]
    waiting.leave_all()
    for name in ("e", "f"):
        waiting.arrive(name, address=name)
    assert waiting.turned_out == ["a", "b"]
    waiting.leave_all()
    assert admission.is_idle


def test_the_address_with_the_most_connections_without_a_token_loses_one_first() -> None:
    waiting = Waiting(Admission(8))
    for name, address in (("a1", "a"), ("b1", "b"), ("b2", "b"), ("b3", "b")):
        waiting.arrive(name, address)
    waiting.arrive("c1", "c")
    assert waiting.turned_out == ["b1"]
    waiting.arrive("b4", "b")  # with as many as any other address, it replaces one of its own
    assert waiting.turned_out == ["b1", "b2"]


def test_one_address_replaces_its_own_connections_without_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission_module, "MAX_WAITING_PER_ADDRESS", 3)
    waiting = Waiting(Admission(1000))
    waiting.arrive("b1", "b")
    for number in range(1, 6):
        waiting.arrive(f"a{number}", "a")
    assert waiting.turned_out == ["a1", "a2"]


def test_a_newcomer_finds_a_place_among_any_number_of_silent_connections() -> None:
    waiting = Waiting(Admission(2 * admission_module.MAX_WAITING))
    for number in range(admission_module.MAX_WAITING):
        waiting.arrive(f"silent {number}", f"192.0.2.{number % 10}")
    waiting.arrive("honest", "198.51.100.1")
    for number in range(admission_module.MAX_WAITING):
        waiting.arrive(f"silent again {number}", f"192.0.2.{number % 10}")
    assert "honest" not in waiting.turned_out
    assert len(waiting.turned_out) == admission_module.MAX_WAITING + 1


def rate(text: str) -> Rate | None:
    return parse_limit(text)


def refused(admission: Admission, address: str, now: float, arrival: Arrival = Arrival.WITH_TOKEN) -> str | None:
    try:
        admission.on_arrival(address, arrival, now)
    except ConnectionLimitReached as error:
        return "for itself alone" if error.per_user else str(error)
    return None


def test_one_address_may_not_connect_faster_than_its_rate() -> None:
    admission = Admission(10, per_address=rate("1/s burst 3"))
    assert [refused(admission, "a", 0.0) for _ in range(4)] == [None] * 3 + ["too many handshakes from a"]
    assert refused(admission, "b", 0.0) is None
    assert refused(admission, "a", 1.0) is None
    assert refused(admission, "a", 1.5) is not None


def test_a_connection_without_an_address_counts_for_no_address() -> None:
    admission = Admission(10, per_address=rate("1/s"), max_per_address=1)
    assert [refused(admission, "", 0.0) for _ in range(3)] == [None] * 3
    admission.on_failure("", Arrival.WITH_TOKEN, 0.0)
    with admission.connection(""), admission.connection(""):
        assert refused(admission, "", 0.0) is None


def test_many_without_an_address_may_be_without_a_token() -> None:
    waiting = Waiting(Admission(10_000))
    for number in range(admission_module.MAX_WAITING_PER_ADDRESS + 1):
        waiting.arrive(str(number), "")
    assert not waiting.turned_out


@pytest.mark.parametrize("arrival", [Arrival.WITH_TOKEN, Arrival.WITHOUT_TOKEN])
def test_a_handshake_that_ends_without_a_valid_token_counts_ten_times(arrival: Arrival) -> None:
    admission = Admission(10, per_address=rate("1/s burst 30"))
    for _ in range(3):
        assert refused(admission, "a", 0.0, arrival) is None
        admission.on_failure("a", arrival, 0.0)
    assert refused(admission, "a", 0.5, arrival) is not None
    # After any number of them the address waits no longer than its bucket takes to fill.
    for _ in range(100):
        admission.on_failure("a", arrival, 0.5)
    assert refused(admission, "a", 31.0, arrival) is None


def test_handshakes_without_a_token_take_nothing_from_those_with_one() -> None:
    admission = Admission(10, handshakes=rate("1/s burst 2"), per_address=rate("1/s burst 2"))
    for address in ("a", "b", "c"):
        refused(admission, address, 0.0, Arrival.WITHOUT_TOKEN)
        admission.on_failure(address, Arrival.WITHOUT_TOKEN, 0.0)
    assert refused(admission, "d", 0.0, Arrival.WITHOUT_TOKEN) == "too many handshakes"
    assert refused(admission, "a", 0.0) is None


def test_handshakes_with_a_refused_token_count_for_their_address_alone() -> None:
    admission = Admission(10, handshakes=rate("1/s burst 2"), per_address=rate("1/s burst 20"))
    for address in ("a", "b", "c", "a", "b", "c"):
        assert refused(admission, address, 0.0) is None
        admission.on_refusal(Arrival.WITH_TOKEN, 0.0)
        admission.on_failure(address, Arrival.WITH_TOKEN, 0.0)
    assert refused(admission, "a", 0.0) == "too many handshakes from a"
    assert [refused(admission, each, 0.0) for each in "de"] == [None, None]
    for arrival in (Arrival.WITHOUT_TOKEN, Arrival.CALL):  # neither takes a place among all, so none is given back
        admission.on_refusal(arrival, 0.0)
    assert refused(admission, "f", 0.0) == "too many handshakes"


def test_a_call_counts_only_if_its_token_is_refused() -> None:
    admission = Admission(10, handshakes=rate("1/s"), per_address=rate("1/s burst 10"))
    for _ in range(100):
        admission.on_arrival("a", Arrival.CALL, 0.0)
    admission.on_failure("a", Arrival.CALL, 0.0)
    admission.on_arrival("a", Arrival.CALL, 0.0)
    admission.on_failure("a", Arrival.CALL, 0.0)
    with pytest.raises(ConnectionLimitReached, match="from a"):
        admission.on_arrival("a", Arrival.CALL, 0.0)
    admission.on_arrival("b", Arrival.CALL, 0.0)
    admission.on_arrival("", Arrival.CALL, 0.0)
    admission.on_arrival("a", Arrival.CALL, 9.0)


def test_wrong_tokens_on_a_live_connection_count_like_those_of_handshakes() -> None:
    admission = Admission(10, per_address=rate("1/s burst 30"))
    assert [admission.on_wrong_token("a", "alice", 0.0) for _ in range(3)] == [False] * 3
    assert refused(admission, "a", 0.0) == "too many handshakes from a"


def test_a_user_may_send_five_wrong_tokens_a_minute_from_any_number_of_addresses() -> None:
    admission = Admission(10)
    assert [admission.on_wrong_token(f"a{each}", "alice", 0.0) for each in range(7)] == [False] * 5 + [True] * 2
    assert not admission.on_wrong_token("a1", "bob", 0.0)
    assert not admission.on_wrong_token("a1", "alice", 12.0)


def test_a_user_has_only_so_many_connections() -> None:
    admission = Admission(10, max_per_user=2)
    admission.enter("alice")
    admission.enter("alice")
    with pytest.raises(ConnectionLimitReached) as caught:
        admission.enter("alice")
    assert caught.value.per_user
    admission.enter("bob")
    admission.leave("alice")
    admission.enter("alice")
    for user in ("alice", "alice", "bob"):
        admission.leave(user)
    assert admission.is_idle


def test_all_together_may_not_connect_faster_than_their_rate() -> None:
    admission = Admission(10, handshakes=rate("1/s burst 2"))
    assert [refused(admission, each, 0.0) for each in "abc"] == [None, None, "too many handshakes"]


def test_one_address_that_is_over_its_rate_takes_nothing_from_others() -> None:
    admission = Admission(10, handshakes=rate("1/s burst 3"), per_address=rate("1/s burst 2"))
    for _ in range(10):
        refused(admission, "a", 0.0)
    assert refused(admission, "b", 0.0) is None


def test_one_address_has_only_so_many_connections() -> None:
    admission = Admission(10, max_per_address=2)
    with admission.connection("a"), admission.connection("a"):
        with pytest.raises(ConnectionLimitReached, match="a has reached"), admission.connection("a"):
            pass
        with admission.connection("b"):
            pass
    assert admission.is_idle
    assert len(admission) == 0


def test_the_smallest_process_has_a_place_for_a_connection_without_a_token() -> None:
    waiting = Waiting(Admission(1))
    waiting.arrive("first", "a")
    assert not waiting.turned_out


@pytest.mark.parametrize(
    ("client", "address"),
    [
        (None, ""),
        ([], ""),
        (["10.0.0.1", 4711], "10.0.0.1"),
        (("10.0.0.1", 0), "10.0.0.1"),
        (("testclient", 1), "testclient"),
        (("1.2.3.4\x85INFO: \x9b31m", 1), r"'1.2.3.4\x85INFO: \x9b31m'"),
        (("x" * 64, 1), "x" * 64),
        (("x" * 15_000, 1), TOO_LONG),
        (("y" * 65, 1), TOO_LONG),
        ((f"fe80::1%{'x' * 15_000}", 1), TOO_LONG),
        ((None, 1), ""),
        (("2001:db8:1:2:3:4:5:6", 1), "2001:db8:1:2::/64"),
        (("2001:db8:1:2::", 1), "2001:db8:1:2::/64"),
        (("::ffff:10.0.0.1", 1), "10.0.0.1"),
        (("::1", 1), "::/64"),
    ],
)
def test_the_address_of_a_connection(client: Any, address: str) -> None:
    assert address_of(client) == address

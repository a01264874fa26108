from __future__ import annotations

import contextlib
from typing import Any

import pytest

from nuropb_gateway_asgi.exceptions import ConnectionLimitReached
from nuropb_gateway_asgi.limits import admission as admission_module
from nuropb_gateway_asgi.limits.admission import TOO_LONG, Admission, address_of
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


def test_connections_without_a_token_take_at_most_half_of_the_places() -> None:
    admission = Admission(4)
    with admission.waiting("a"), admission.waiting("b"):
        with pytest.raises(ConnectionLimitReached) as caught, admission.waiting("c"):
            pass
        assert not caught.value.per_user
    with admission.waiting("c"):
        pass


def test_one_address_does_not_take_all_places_of_connections_without_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission_module, "MAX_WAITING_PER_ADDRESS", 3)
    admission = Admission(1000)
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(admission.waiting("a"))
        with pytest.raises(ConnectionLimitReached), admission.waiting("a"):
            pass
        with admission.waiting("b"):
            pass
    with admission.waiting("a"):
        pass
    assert admission.is_idle


def rate(text: str) -> Rate | None:
    return parse_limit(text)


def refused(admission: Admission, address: str, now: float) -> str | None:
    try:
        admission.on_handshake(address, now)
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
    admission.on_failure("", 0.0)
    with admission.connection(""), admission.connection(""):
        assert refused(admission, "", 0.0) is None


def test_many_without_an_address_may_be_without_a_token() -> None:
    admission = Admission(10_000)
    with contextlib.ExitStack() as stack:
        for _ in range(admission_module.MAX_WAITING_PER_ADDRESS + 1):
            stack.enter_context(admission.waiting(""))


def test_a_token_that_is_refused_counts_ten_times() -> None:
    admission = Admission(10, per_address=rate("1/s burst 30"))
    for _ in range(3):
        assert refused(admission, "a", 0.0) is None
        admission.on_failure("a", 0.0)
    assert refused(admission, "a", 0.5) is not None
    # After any number of refused tokens the address waits no longer than its bucket takes to fill.
    for _ in range(100):
        admission.on_failure("a", 0.5)
    assert refused(admission, "a", 31.0) is None


def test_a_call_counts_only_if_its_token_is_refused() -> None:
    admission = Admission(10, handshakes=rate("1/s"), per_address=rate("1/s burst 10"))
    for _ in range(100):
        admission.on_call("a", 0.0)
    admission.on_failure("a", 0.0)
    admission.on_call("a", 0.0)
    admission.on_failure("a", 0.0)
    with pytest.raises(ConnectionLimitReached, match="from a"):
        admission.on_call("a", 0.0)
    admission.on_call("b", 0.0)
    admission.on_call("", 0.0)
    admission.on_call("a", 9.0)


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
    with Admission(1).waiting("a"):
        pass


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

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from nuropb_gateway_asgi import _admission
from nuropb_gateway_asgi._admission import Admission, address_of
from nuropb_gateway_asgi.exceptions import ConnectionLimitReached


def test_a_process_has_only_so_many_connections() -> None:
    admission = Admission(1, 1)
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


def test_who_has_no_token_yet_takes_at_most_half_of_the_places() -> None:
    admission = Admission(4, 4)
    with admission.waiting("a"), admission.waiting("b"):
        with pytest.raises(ConnectionLimitReached) as caught, admission.waiting("c"):
            pass
        assert not caught.value.per_user
    with admission.waiting("c"):
        pass


def test_one_address_takes_not_all_places_of_those_without_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_admission, "MAX_WAITING_PER_ADDRESS", 3)
    admission = Admission(1000, 100)
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(admission.waiting("a"))
        with pytest.raises(ConnectionLimitReached), admission.waiting("a"):
            pass
        with admission.waiting("b"):
            pass
    with admission.waiting("a"):
        pass
    assert not admission._waiting


def test_the_smallest_process_has_a_place_for_a_connection_without_a_token() -> None:
    with Admission(1, 1).waiting("a"):
        pass


@pytest.mark.parametrize(
    ("client", "address"),
    [
        (None, ""),
        ([], ""),
        (["10.0.0.1", 4711], "10.0.0.1"),
        (("10.0.0.1", 0), "10.0.0.1"),
        (("testclient", 1), "testclient"),
        ((None, 1), ""),
        (("2001:db8:1:2:3:4:5:6", 1), "2001:db8:1:2::/64"),
        (("2001:db8:1:2::", 1), "2001:db8:1:2::/64"),
        (("::ffff:10.0.0.1", 1), "10.0.0.1"),
        (("::1", 1), "::/64"),
    ],
)
def test_whom_a_connection_counts_for(client: Any, address: str) -> None:
    assert address_of(client) == address

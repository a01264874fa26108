"""The guard of the admin API: wrong tokens, and requests that a browser was tricked into."""

from __future__ import annotations

import pytest

from nuropb_gateway_asgi.admin.guard import ATTEMPTS, LOCKED_SECONDS, MAX_ADDRESSES, Guard

TOKEN = "0123456789abcdef0123456789abcdef"
RIGHT = f"Bearer {TOKEN}"


@pytest.mark.parametrize(
    "host", ["127.0.0.1:9100", "127.0.0.1", "[::1]:9100", "localhost:9100", "LOCALHOST", "ops.example"]
)
def test_an_address_localhost_and_the_configured_name_may_be_the_host(host: str) -> None:
    assert Guard(TOKEN, "ops.example").check_page(host, None) is None


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "evil.example:9100", "localhost.evil.example", "127.0.0.1.evil.example", "a b", "127.1"],
)
def test_a_name_that_a_stranger_can_point_at_the_operators_machine_may_not(host: str) -> None:
    guard = Guard(TOKEN, "127.0.0.1")
    assert guard.check_page(host, None) == "host"
    assert +guard.refused == {"host": 1}


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://127.0.0.1:9100", "http://127.0.0.1:9101", ""]
)
def test_a_page_of_another_origin_may_not_send_requests(origin: str) -> None:
    assert Guard("", "").check_page("127.0.0.1:9100", origin) == "origin"


def test_the_apis_own_page_may_send_requests() -> None:
    assert Guard(TOKEN, "").check_page("localhost:9100", "http://localhost:9100") is None


@pytest.mark.parametrize(
    "header", ["", "Bearer", f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer é"]
)
def test_another_token_is_refused(header: str) -> None:
    assert Guard(TOKEN, "").check_token(header, "127.0.0.1", 0.0) == "token"


def test_the_token_is_accepted_in_any_spelling_of_its_scheme() -> None:
    guard = Guard(TOKEN, "")
    assert guard.check_token(RIGHT, "127.0.0.1", 0.0) is None
    assert guard.check_token(f"bearer {TOKEN} ", "127.0.0.1", 0.0) is None
    assert guard.refused.total() == 0


def test_a_unix_socket_without_a_token_needs_none() -> None:
    assert Guard("", "").check_token("", "unix", 0.0) is None


def test_an_address_with_many_wrong_tokens_is_locked_out_for_a_minute_and_no_other_address_is() -> None:
    guard = Guard(TOKEN, "")
    for _ in range(ATTEMPTS):
        assert guard.check_token("Bearer no", "10.0.0.1", 5.0) == "token"
    assert guard.check_token(RIGHT, "10.0.0.1", 6.0) == "locked"
    assert guard.locked_for("10.0.0.1", 6.0) == LOCKED_SECONDS
    assert guard.check_token(RIGHT, "10.0.0.2", 6.0) is None
    assert guard.check_token(RIGHT, "10.0.0.1", 5.0 + LOCKED_SECONDS) is None
    assert +guard.refused == {"token": ATTEMPTS, "locked": 1}


def test_the_right_token_ends_the_count_of_wrong_ones() -> None:
    guard = Guard(TOKEN, "")
    for _ in range(3 * ATTEMPTS):
        guard.check_token("Bearer no", "10.0.0.1", 0.0)
        if guard.refused["token"] % (ATTEMPTS - 1) == 0:
            assert guard.check_token(RIGHT, "10.0.0.1", 0.0) is None
    assert guard.refused["locked"] == 0


def test_addresses_are_remembered_up_to_a_bound() -> None:
    guard = Guard(TOKEN, "")
    for number in range(MAX_ADDRESSES + 1):
        for _ in range(ATTEMPTS):
            guard.check_token("Bearer no", f"address {number}", 0.0)
    assert guard.check_token(RIGHT, "address 0", 1.0) is None
    assert guard.check_token(RIGHT, f"address {MAX_ADDRESSES}", 1.0) == "locked"

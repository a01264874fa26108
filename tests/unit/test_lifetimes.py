from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nuropb_gateway_asgi.limits.lifetimes import JITTER, Lifetimes

LONGEST = 1000.0
GRACE = 10.0
#: A time of the clock, which has nothing to do with the age of a connection.
NOW = 50_000.0
SESSIONS = [f"session-{number}" for number in range(1000)]


def made() -> Lifetimes:
    return Lifetimes(LONGEST, GRACE)


def age_at_announcement(session_id: str) -> float:
    """The age, in whole seconds, at which the end of a connection is announced."""
    lifetimes = made()
    for age in range(int(LONGEST) + 2):
        if lifetimes.check(session_id, float(age), NOW) is not None:
            return float(age)
    raise AssertionError("the end of the connection was not announced")


@given(st.text(), st.floats(0.0, 1.0 - JITTER))
def test_no_connection_ends_before_the_jitter(session_id: str, share: float) -> None:
    lifetimes = made()
    assert lifetimes.check(session_id, LONGEST * share, NOW) is None
    assert len(lifetimes) == 0


@given(st.text())
def test_every_connection_ends_after_the_longest_lifetime(session_id: str) -> None:
    assert made().check(session_id, LONGEST * 1.001, NOW) == "announce"


def test_the_end_is_announced_once_and_the_connection_closed_after_the_grace() -> None:
    lifetimes, age = made(), LONGEST + 1.0
    assert lifetimes.check("s", age, NOW) == "announce"
    assert len(lifetimes) == 1
    assert lifetimes.check("s", age, NOW) is None
    assert lifetimes.check("s", age + GRACE - 0.1, NOW + GRACE - 0.1) is None
    assert lifetimes.check("s", age + GRACE, NOW + GRACE) == "close"


def test_a_connection_that_is_still_there_is_closed_again() -> None:
    lifetimes = made()
    lifetimes.check("s", LONGEST + 1.0, NOW)
    assert [lifetimes.check("s", LONGEST + GRACE + 1.0, NOW + GRACE) for _ in range(2)] == ["close"] * 2


def test_without_a_grace_the_next_check_closes() -> None:
    lifetimes = Lifetimes(LONGEST, 0.0)
    assert [lifetimes.check("s", LONGEST + 1.0, NOW) for _ in range(2)] == ["announce", "close"]


def test_each_connection_has_an_announcement_and_a_grace_of_its_own() -> None:
    lifetimes = made()
    assert lifetimes.check("one", LONGEST + 1.0, NOW) == "announce"
    assert lifetimes.check("other", LONGEST + 1.0, NOW + 5.0) == "announce"
    assert lifetimes.check("one", LONGEST + GRACE + 1.0, NOW + GRACE) == "close"
    assert lifetimes.check("other", LONGEST + GRACE - 4.0, NOW + GRACE) is None
    assert lifetimes.check("other", LONGEST + GRACE + 1.0, NOW + GRACE + 5.0) == "close"


def test_connections_of_one_age_end_over_a_tenth_of_the_lifetime() -> None:
    lifetimes = made()
    announced = dict.fromkeys(SESSIONS, 0.0)
    for age in range(int(LONGEST * (1.0 - JITTER)), int(LONGEST) + 2):
        for session_id, found in announced.items():
            if not found and lifetimes.check(session_id, float(age), NOW) == "announce":
                announced[session_id] = float(age)
    ages = announced.values()
    assert LONGEST * (1.0 - JITTER) <= min(ages) < LONGEST * (1.0 - 0.8 * JITTER)
    assert LONGEST * (1.0 - 0.2 * JITTER) < max(ages) <= LONGEST + 1.0
    # Over each fifth of the spread about a fifth of the connections end.
    fifth = LONGEST * JITTER / 5
    counts = [sum(1 for age in ages if LONGEST - (n + 1) * fifth < age <= LONGEST - n * fifth) for n in range(5)]
    assert all(100 < count < 300 for count in counts)


def test_the_jitter_of_a_connection_stays_the_same() -> None:
    for session_id in SESSIONS[:5]:
        assert age_at_announcement(session_id) == age_at_announcement(session_id)


def test_a_connection_that_ended_is_forgotten_and_no_other() -> None:
    lifetimes = made()
    for session_id in ("one", "other"):
        lifetimes.check(session_id, LONGEST + 1.0, NOW)
    lifetimes.forget("one")
    lifetimes.forget("unknown")
    assert len(lifetimes) == 1
    assert lifetimes.check("one", LONGEST + 1.0, NOW + GRACE) == "announce"
    assert lifetimes.check("other", LONGEST + GRACE + 1.0, NOW + GRACE) == "close"

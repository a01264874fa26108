from __future__ import annotations

import pytest

from nuropb_gateway_asgi.protocol import ErrorCode, Failure
from nuropb_gateway_asgi.routing.calls import SLOT_SECONDS, Call, CallTable
from nuropb_gateway_asgi.wire.interface import CallMessage


def call(correlation_id: str, deadline: float = 1030.0) -> Call:
    return Call(CallMessage("request", correlation_id, "t", "orders", "get", b"{}", b"{}", deadline, 30.0))


def test_a_call_has_to_say_how_it_ends() -> None:
    with pytest.raises(NotImplementedError):
        call("a").succeed(b"null")
    with pytest.raises(NotImplementedError):
        call("a").fail(Failure(ErrorCode.INTERNAL, ""))


def test_a_call_is_taken_out_once() -> None:
    table = CallTable()
    table.add(a := call("a"))
    assert (len(table), list(table), "a" in table, table.get("a")) == (1, ["a"], True, a)
    assert table.take("a") is a
    assert table.take("a") is None
    assert (len(table), list(table), "a" in table, table.get("a")) == (0, [], False, None)


def test_calls_may_be_taken_out_while_they_are_gone_through() -> None:
    table = CallTable()
    for name in "abc":
        table.add(call(name))
    for correlation_id in table:
        table.take(correlation_id)
    assert len(table) == 0


def test_the_service_of_an_ended_call_is_remembered() -> None:
    table = CallTable()
    assert table.waited_for("a") is None
    table.add(call("a"))
    assert table.waited_for("a") is None
    table.take("a")
    assert table.waited_for("a") == "orders"


def test_a_call_that_its_service_has_answered_owes_no_answer() -> None:
    table = CallTable()
    for name in ("a", "b"):
        table.add(call(name))
    table.take("a", answered=True)
    assert table.waited_for("a") == ""
    given_up = table.take("b")
    assert given_up is not None
    table.orphan(given_up)
    assert table.waited_for("b") == "orders"
    table.take_orphan("b", answered=True)
    assert table.waited_for("b") == ""


@pytest.mark.parametrize("late", [0.0, 1.0, 3600.0])
def test_a_call_is_due_once_its_deadline_is_over(late: float) -> None:
    table = CallTable()
    table.add(call("a", 1030.0))
    assert table.due(1000.0) == []
    assert table.due(1029.9) == []
    assert table.due(1030.0 + 2 * SLOT_SECONDS + late) == ["a"]
    assert table.due(1030.0 + 2 * SLOT_SECONDS + late) == []
    assert table.deadlines == 0


def test_calls_are_due_in_the_order_of_their_deadlines() -> None:
    table = CallTable()
    for name, deadline in (("c", 1003.0), ("a", 1001.0), ("b", 1002.0), ("later", 2000.0)):
        table.add(call(name, deadline))
    assert table.due(1004.0) == ["a", "b", "c"]


def test_a_call_that_ended_is_not_due() -> None:
    table = CallTable()
    table.add(call("a"))
    table.take("a")
    assert table.due(2000.0) == []


@pytest.mark.parametrize("deadline", [1000.0, 999.9, 1.0, 0.0, -5.0])
def test_a_call_whose_deadline_is_over_from_the_start_is_due_next(deadline: float) -> None:
    table = CallTable()
    table.due(1000.0)
    table.add(call("a", deadline))
    assert table.due(1000.0 + 2 * SLOT_SECONDS) == ["a"]

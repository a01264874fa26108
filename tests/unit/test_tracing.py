"""Spans of calls, connections, checks of tokens and events, and the trace context that goes with them."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from opentelemetry.trace import StatusCode

from nuropb_gateway_asgi.exceptions import AuthenticationFailed, SettingsError
from nuropb_gateway_asgi.protocol import TraceContext
from nuropb_gateway_asgi.tracing import ServiceTracing, Tracing, carrier_of
from tests.kit.traces import CLIENT_SPAN, TRACE_ID, UNSAMPLED, Spans, parent_of, recorded, traceparent_of

from .fakes import FakeGateway, FakeHandler, end_call, running

CLIENT_ID = CLIENT_SPAN.split("-")[2]


@pytest.fixture
def spans() -> Iterator[Spans]:
    with recorded() as found:
        yield found


@pytest.fixture
async def traced() -> AsyncIterator[FakeGateway]:
    async with running(tracing="on") as gateway:
        gateway.know()
        yield gateway


def context_of_last(gateway: FakeGateway) -> dict[str, Any]:
    context: dict[str, Any] = json.loads(gateway.mesh.sent[-1].context)
    return context


# --- trace context ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("traceparent", [CLIENT_SPAN, UNSAMPLED, CLIENT_SPAN.replace("00-", "cc-", 1) + "-more"])
def test_a_valid_traceparent_is_a_carrier(traceparent: str) -> None:
    assert carrier_of({"traceparent": traceparent}) == {"traceparent": traceparent}


@pytest.mark.parametrize(
    "traceparent",
    [
        None,
        7,
        "",
        "00",
        CLIENT_SPAN.upper(),
        CLIENT_SPAN.replace(TRACE_ID, "0" * 32),
        CLIENT_SPAN.replace(CLIENT_ID, "0" * 16),
        CLIENT_SPAN.replace("00-", "ff-", 1),
        CLIENT_SPAN + "\n",
    ],
)
def test_an_invalid_traceparent_is_none(traceparent: object) -> None:
    assert carrier_of({"traceparent": traceparent, "baggage": "a=b"}) is None


def test_members_that_are_too_long_are_left_out() -> None:
    source = {"traceparent": CLIENT_SPAN, "tracestate": "a=b", "baggage": "a=" + "b" * 8192}
    assert carrier_of(source) == {"traceparent": CLIENT_SPAN, "tracestate": "a=b"}


# --- calls ------------------------------------------------------------------------------------------------------


async def test_a_call_is_a_child_of_its_clients_span_and_the_parent_of_its_services(
    traced: FakeGateway, spans: Spans
) -> None:
    alice = await traced.connect()
    given = {"traceparent": CLIENT_SPAN, "tracestate": "vendor=1", "baggage": "tenant=7"}
    traced.request(alice, id="1", trace=given)
    context = context_of_last(traced)
    traced.mesh.reply(traced.mesh.sent[-1], 1)
    span = spans.one("orders/get")
    assert parent_of(span) == CLIENT_ID
    assert context["traceparent"] == traceparent_of(span)
    assert (context["tracestate"], context["baggage"]) == ("vendor=1", "tenant=7")
    assert span.attributes is not None
    assert dict(span.attributes) | {"nuropb.gateway_seconds": 0, "nuropb.service_seconds": 0} == {
        "rpc.system": "nuropb",
        "rpc.service": "orders",
        "rpc.method": "get",
        "rpc.response.status_code": "ok",
        "nuropb.kind": "request",
        "nuropb.gateway_seconds": 0,
        "nuropb.service_seconds": 0,
        "session.id": alice.session_id,
    }
    assert [event.name for event in span.events] == ["sent"]


async def test_the_trace_id_of_logs_and_answers_is_that_of_the_trace(traced: FakeGateway, spans: Spans) -> None:
    alice = await traced.connect()
    traced.request(alice, id="1", trace={"traceparent": CLIENT_SPAN})
    traced.request(alice, id="2")
    traced.request(alice, id="3", trace={"traceparent": CLIENT_SPAN}, trace_id="my own")
    first, second, third = traced.mesh.sent[-3:]
    assert first.trace_id == TRACE_ID
    assert second.trace_id == json.loads(second.context)["traceparent"].split("-")[1]
    assert second.trace_id != TRACE_ID
    assert third.trace_id == "my own"


async def test_a_call_whose_client_is_not_recorded_is_not_recorded(traced: FakeGateway, spans: Spans) -> None:
    alice = await traced.connect()
    traced.request(alice, id="1", trace={"traceparent": UNSAMPLED})
    context = context_of_last(traced)
    traced.mesh.reply(traced.mesh.sent[-1], 1)
    assert spans.named("orders/get") == []
    assert (context["traceparent"][3:35], context["traceparent"][-2:]) == (TRACE_ID, "00")


@pytest.mark.parametrize("trace", [{}, {"traceparent": "nonsense", "baggage": "a=b"}, {"tracestate": "a=b"}])
async def test_a_call_with_an_invalid_trace_context_belongs_to_its_connection(
    traced: FakeGateway, spans: Spans, trace: dict[str, str]
) -> None:
    alice = await traced.connect()
    traced.request(alice, id="1", trace=trace)
    traced.mesh.reply(traced.mesh.sent[-1], 1)
    assert spans.one("orders/get").parent is not None
    assert TRACE_ID not in context_of_last(traced)["traceparent"]
    assert "baggage" not in context_of_last(traced)


async def test_a_trace_of_the_wrong_type_is_a_bad_request(traced: FakeGateway) -> None:
    (answer,) = traced.request(await traced.connect(), id="1", trace={"traceparent": 7})
    assert answer["payload"]["error"]["code"] == "bad_request"


@pytest.mark.parametrize(
    ("how", "code", "is_fault"),
    [
        ("reply", "ok", False),
        ("error", "invalid_params", False),
        ("bug", "service_error", True),
        ("returned", "service_unavailable", True),
        ("cancel", "cancelled", False),
        ("timeout", "timeout", True),
        ("leave", "abandoned", False),
    ],
)
async def test_the_span_of_a_call_ends_with_the_call(
    traced: FakeGateway, spans: Spans, how: str, code: str, is_fault: bool
) -> None:
    alice = await traced.connect()
    traced.request(alice, id="1")
    await end_call(traced, alice, traced.mesh.sent[-1], how)
    span = spans.one("orders/get")
    assert span.attributes is not None
    assert span.attributes["rpc.response.status_code"] == code
    assert span.attributes.get("error.type") == (None if code == "ok" else code)
    assert (span.status.status_code is StatusCode.ERROR) == is_fault


async def test_commands_and_describes_have_spans(traced: FakeGateway, spans: Spans) -> None:
    alice = await traced.connect()
    traced.receive(alice, "command", service="orders", method="put", id="1")
    traced.mesh.told.on_confirmed(traced.mesh.sent[-1].correlation_id)
    traced.receive(alice, "describe", service="orders", id="2", trace={"traceparent": CLIENT_SPAN})
    kinds = {
        span.name: span.attributes["nuropb.kind"] for span in spans.ended if span.attributes and span.name[0] in "od"
    }
    assert kinds == {"orders/put": "command", "describe": "describe"}
    assert parent_of(spans.one("describe")) == CLIENT_ID


# --- connections and tokens -------------------------------------------------------------------------------------


async def test_a_call_without_trace_context_is_a_child_of_its_connection(traced: FakeGateway, spans: Spans) -> None:
    alice = await traced.connect()
    each: list[dict[str, Any]] = [{}, {"trace": {"traceparent": CLIENT_SPAN}}]
    for more in each:
        traced.request(alice, id="1", **more)
        traced.mesh.reply(traced.mesh.sent[-1], 1)
    assert spans.named("connection") == []
    traced.handlers.unregister(alice)
    without, with_context = spans.named("orders/get")
    connection = traceparent_of(spans.one("connection"))
    assert parent_of(without) == connection.split("-")[2]
    assert parent_of(with_context) == CLIENT_ID
    (link,) = with_context.links
    assert f"{link.context.span_id:016x}" == connection.split("-")[2]
    assert traced.handlers.tracing is not None
    assert len(traced.handlers.tracing) == 0


async def test_the_calls_of_a_connection_that_is_not_recorded_are_not_recorded(
    traced: FakeGateway, spans: Spans
) -> None:
    alice = FakeHandler()
    await traced.handlers.register(alice, "alice", handshake=TraceContext(traceparent=UNSAMPLED))
    traced.handlers.rename(alice, "another")
    traced.request(alice, id="1")
    message = traced.mesh.sent[-1]
    traced.mesh.reply(message, 1)
    traced.handlers.unregister(alice)
    assert spans.ended == ()
    assert json.loads(message.context)["traceparent"].startswith(f"00-{TRACE_ID}")
    assert message.trace_id != TRACE_ID  # it would be that of all calls of the connection
    assert traced.handlers.tracing is not None
    assert len(traced.handlers.tracing) == 0


async def test_a_parked_session_has_no_connection(traced: FakeGateway, spans: Spans) -> None:
    alice = await traced.connect()
    traced.handlers.park(alice)
    assert len(spans.named("connection")) == 1
    traced.handlers.unpark(alice, await traced.connect())
    traced.handlers.rename(alice, "another")
    traced.handlers.unregister(alice)
    assert len(spans.named("connection")) == 3


async def test_a_refused_token_is_a_span_without_the_token(traced: FakeGateway, spans: Spans) -> None:
    with pytest.raises(AuthenticationFailed):
        await traced.handlers.register(FakeHandler(), "bad")
    span = spans.one("token check")
    assert span.attributes is not None
    assert dict(span.attributes) == {"error.type": "AuthenticationFailed"}
    assert span.events == ()
    assert span.status.description is None


# --- events -----------------------------------------------------------------------------------------------------


async def test_the_fan_out_of_an_event_is_a_child_of_its_publishers_span(traced: FakeGateway, spans: Spans) -> None:
    alice = await traced.connect()
    traced.receive(alice, "subscribe", topics=["news"], id="1")
    traced.mesh.event("news", 1, context=json.dumps({"traceparent": CLIENT_SPAN}).encode())
    assert alice.frames[-1]["payload"]["topic"] == "news"
    span = spans.one("event fan-out")
    assert parent_of(span) == CLIENT_ID
    assert span.attributes is not None
    assert span.attributes["messaging.destination.name"] == "news"


@pytest.mark.parametrize(
    "context",
    [b"{}", b'["traceparent"]', b'{"traceparent": nonsense', json.dumps({"traceparent": UNSAMPLED}).encode()],
)
async def test_an_event_without_a_recorded_publisher_has_no_span(
    traced: FakeGateway, spans: Spans, context: bytes
) -> None:
    alice = await traced.connect()
    traced.receive(alice, "subscribe", topics=["news"], id="1")
    traced.mesh.event("news", 1, context=context)
    assert alice.frames[-1]["payload"]["topic"] == "news"
    assert spans.named("event fan-out") == []


# --- hosted services --------------------------------------------------------------------------------------------


def test_the_spans_of_a_method_are_children_of_its_call(spans: Spans) -> None:
    tracing = ServiceTracing()
    with tracing.calling("orders", "get", {"traceparent": CLIENT_SPAN}), tracing.calling("users", "me", {}):
        pass
    with tracing.calling("orders", "put", {}) as span:
        tracing.fail(span, "KeyError")
    assert parent_of(spans.one("orders/get")) == CLIENT_ID
    assert spans.one("orders/put").status.status_code is StatusCode.ERROR


# --- off --------------------------------------------------------------------------------------------------------


async def test_without_the_setting_nothing_is_traced(gateway: FakeGateway, spans: Spans) -> None:
    gateway.know()
    alice = await gateway.connect()
    gateway.request(alice, id="1", trace={"traceparent": CLIENT_SPAN})
    context = context_of_last(gateway)
    gateway.mesh.reply(gateway.mesh.sent[-1], 1)
    assert "traceparent" not in context
    assert spans.ended == ()


def test_without_the_package_the_setting_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    assert Tracing.of("off") is None
    with pytest.raises(SettingsError, match=r'OpenTelemetry is not installed; expected pip install ".*\[otel\]"'):
        Tracing.of("on")

"""Traces from clients of every kind, through the gateway, to services."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from opentelemetry import trace

from nuropb_gateway_asgi.mesh import hosting, with_context
from nuropb_gateway_asgi.mesh.rabbitmq import RabbitMQMesh
from tests.integration.scene import delete_queues
from tests.kit.agents import agent
from tests.kit.clients import connect
from tests.kit.gateways import RunningGateway, eventually, run_gateway
from tests.kit.traces import CLIENT_SPAN, TRACE_ID, Spans, parent_of, recorded, traceparent_of
from tests.kit.transports import http_client


@pytest.fixture
def spans() -> Iterator[Spans]:
    with recorded() as found:
        yield found


@pytest.fixture(scope="module")
async def running() -> AsyncIterator[RunningGateway]:
    async with run_gateway(tracing="on", http="on", mcp="on", expose=["demo.*"], expose_tools=["demo.*"]) as gateway:
        yield gateway


class Orders:
    """A service with spans of its own."""

    @with_context
    def get(self, ctx: dict[str, Any]) -> str:
        with trace.get_tracer("orders").start_as_current_span("read the database"):
            return str(ctx["trace_id"])

    def fail(self) -> None:
        raise KeyError("orders")


async def test_a_frame_leads_through_the_gateway_to_the_spans_of_the_service(amqp_url: str, spans: Spans) -> None:
    name = f"orders-{secrets.token_hex(4)}"
    settings: dict[str, Any] = {
        "mesh_url": amqp_url,
        "service_name": f"gateway-{secrets.token_hex(4)}",
        "expose": [f"{name}.*"],
    }
    async with (
        run_gateway(tracing="on", **settings) as gateway,
        hosting(Orders(), amqp_url, service_name=name, tracing=True) as service,
        connect(gateway.url, "alice", headers=[("traceparent", CLIENT_SPAN)]) as client,
    ):
        await eventually(lambda: service.connected and not gateway.gateway.not_ready())
        assert await client.result(f"{name}.get", trace={"traceparent": CLIENT_SPAN}) == TRACE_ID
        assert await client.error_code(f"{name}.fail") == "service_error"
        await eventually(lambda: len(spans.named(f"{name}/fail")) == 2)
    for manager in (service, gateway.gateway.service_mesh_manager):
        assert isinstance(manager.mesh, RabbitMQMesh)
        await delete_queues(amqp_url, manager.mesh)
    handled, called = spans.named(f"{name}/get")  # the service is done before its caller has the answer
    assert parent_of(called) == CLIENT_SPAN.split("-")[2]
    assert parent_of(handled) == traceparent_of(called).split("-")[2]
    assert parent_of(spans.one("read the database")) == traceparent_of(handled).split("-")[2]
    failed, _ = spans.named(f"{name}/fail")
    assert failed.attributes is not None
    assert failed.attributes["error.type"] == "NuropbException"
    assert parent_of(spans.one("connection")) == parent_of(spans.one("token check")) == CLIENT_SPAN.split("-")[2]


async def test_the_headers_of_a_call_over_http_are_its_trace_context(running: RunningGateway, spans: Spans) -> None:
    async with http_client(running, "alice") as client:
        answer = await client.call("demo.whoami", traceparent=CLIENT_SPAN, baggage="tenant=7")
    assert answer.headers["X-Trace-Id"] == answer.json()["trace_id"] == TRACE_ID
    assert answer.json()["traceparent"] == traceparent_of(spans.one("demo/whoami"))
    assert answer.json()["baggage"] == "tenant=7"
    assert parent_of(spans.one("demo/whoami")) == CLIENT_SPAN.split("-")[2]


async def test_a_tool_call_of_an_agent_belongs_to_the_agents_trace(running: RunningGateway, spans: Spans) -> None:
    async with agent(running.site, "alice") as client:
        answer = await client.call_tool("demo__whoami", {}, meta={"traceparent": CLIENT_SPAN})
    context = json.loads(answer.content[0].text)
    assert context["trace_id"] == context["traceparent"].split("-")[1]
    assert context["traceparent"] == traceparent_of(spans.one("demo/whoami"))
    assert parent_of(spans.one("demo/whoami")) is not None

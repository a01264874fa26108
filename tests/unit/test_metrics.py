"""The metrics: which figures are carried over, and when."""

from __future__ import annotations

import json

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nuropb_gateway_asgi import Settings
from nuropb_gateway_asgi.observability.metrics import Metrics
from tests.kit.gateways import make_gateway

from .fakes import FakeHandler, request_frame, until


def request(method: str) -> str:
    return json.dumps(request_frame(service="demo", method=method, params={"a": 1, "b": 2}))


async def test_the_calls_that_ended_are_counted_once_also_those_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Metrics] = []
    create = Metrics.create

    def keep(*args: object, **more: object) -> Metrics | None:
        metrics = create(*args, **more)  # type: ignore[arg-type]
        if metrics is not None:
            made.append(metrics)
        return metrics

    monkeypatch.setattr(Metrics, "create", keep)
    gateway = make_gateway(Settings(server_protocols="off", expose=["demo.*"]))
    (metrics,) = made

    def calls() -> dict[str, float]:
        families = text_string_to_metric_families(metrics.render()[0].decode())
        samples = [sample for family in families for sample in family.samples]
        return {each.labels["code"]: each.value for each in samples if each.name == "nuropb_gateway_requests_total"}

    async with gateway.lifespan():
        handler = FakeHandler()
        await gateway.handler_manager.register(handler, "alice")
        for method, code in (("add", None), ("add", None), ("nothing", "method_not_found")):
            handler.take()
            gateway.handler_manager.on_handler_message(handler, request(method))
            await until(lambda: handler.frames)
            assert handler.codes == [code]
        metrics.collect()
        assert calls() == {"ok": 2, "method_not_found": 1}
        metrics.collect()
        assert calls() == {"ok": 2, "method_not_found": 1}
        gateway.handler_manager.on_handler_message(handler, request("add"))
        await until(lambda: len(handler.frames) == 2)
    assert calls() == {"ok": 3, "method_not_found": 1}

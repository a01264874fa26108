"""The rules of ``wire/services.py`` beside nuropb's own, on the same service objects in this process."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nuropb", reason="nuropb is not installed: it needs Python 3.11")

from cryptography.hazmat.primitives.asymmetric import rsa
from nuropb.contexts import describe, service_handlers
from nuropb.contexts.context_manager_decorator import nuropb_context
from nuropb.contexts.describe import publish_to_mesh
from nuropb.encodings.json_serialisation import to_json as nuropb_to_json
from nuropb.interface import (
    NuropbAuthenticationError,
    NuropbCallAgain,
    NuropbDeprecatedError,
    NuropbException,
    NuropbSuccess,
    NuropbValidationError,
)
from nuropb.testing.stubs import ServiceExample

from nuropb_gateway_asgi.wire import services as ours
from tests.servers.nuropb_service import EchoService
from tests.unit.fakes import until
from tests.unit.test_service_description import SPELLINGS

CONTEXT = {"user_id": "alice", "Authorization": "Bearer t"}


class Everything:
    """A service with annotations that nuropb can describe."""

    _service_name = "everything"
    _version = "0.0.1"

    def __init__(self) -> None:
        self.call = lambda a: a
        self._private_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def raises(self, error, **kwargs):  # type: ignore[no-untyped-def]
        raise error

    async def raises_later(self, error, **kwargs):  # type: ignore[no-untyped-def]
        await asyncio.sleep(0)
        raise error

    def returns(self, value):  # type: ignore[no-untyped-def]
        """Return the value."""
        return value

    async def returns_later(self, value):  # type: ignore[no-untyped-def]
        await asyncio.sleep(0)
        return value

    def typed(self, value, values):  # type: ignore[no-untyped-def]
        return value

    @nuropb_context
    def context(self, ctx, a=1):  # type: ignore[no-untyped-def]
        return [ctx.context, a]

    @nuropb_context(context_parameter="who")
    @publish_to_mesh(requires_encryption=True, description="Not what the doc says")
    def secret(self, who, ctx=None):  # type: ignore[no-untyped-def]
        """A doc."""
        return [who.context, ctx]

    @publish_to_mesh(hide_method=True)
    def hidden(self):  # type: ignore[no-untyped-def]
        return "found"

    @publish_to_mesh
    def shown(self, a, *args, b=None, **kwargs):  # type: ignore[no-untyped-def]
        return a

    @staticmethod
    def static(a):  # type: ignore[no-untyped-def]
        return a

    @property
    def size(self):  # type: ignore[no-untyped-def]
        return 7


# The annotations of this module are strings, which nuropb cannot describe.
Everything.typed.__annotations__ = {"value": int, "values": list[int], "return": int}
Everything.static.__annotations__ = {"a": dict[str, int]}

SERVICES = {
    "stub": ServiceExample("stub", "i1"),
    "echo": EchoService("echo", "i1"),
    "everything": Everything(),
}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_described_as_nuropb_describes_it(name: str) -> None:
    theirs = json.loads(nuropb_to_json(describe.describe_service(SERVICES[name])))
    assert json.loads(ours.to_json(ours.describe_service(SERVICES[name]))) == theirs


async def by_nuropb(instance: object, method: str, params: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """Return how nuropb acknowledges a request, and the messages that it sends."""
    completed: list[tuple[list[dict[str, Any]], str]] = []
    payload = {"service": "svc", "method": method, "params": params, "context": dict(CONTEXT)}
    message = {"nuropb_type": "request", "nuropb_payload": payload, "correlation_id": "c", "trace_id": "t"}
    service_handlers.execute_request(instance, message, lambda *completion: completed.append(completion))
    await until(lambda: completed)
    responses, action = completed[0]
    return action, [json.loads(nuropb_to_json(response["nuropb_payload"])) for response in responses]


async def by_us(instance: object, method: str, params: dict[str, Any]) -> ours.Outcome:
    return await ours.call_service(instance, service="svc", method=method, params=params, context=CONTEXT)


async def compare(instance: object, method: str, **params: Any) -> None:
    """Check that acknowledgement, first response and events are the same."""
    action, sent = await by_nuropb(instance, method, params)
    outcome = await by_us(instance, method, params)
    assert outcome.action == {"nack": "requeue"}.get(action, action)
    if action != "nack":
        first = sent[0]
        assert (json.loads(outcome.result), outcome.error) == (first["result"], first["error"])
    events = [(event["topic"], event["event"], event["target"]) for event in sent if event["tag"] == "event"]
    assert json.loads(ours.to_json(outcome.events)) == json.loads(json.dumps(events))


METHODS: list[tuple[str, str, dict[str, Any]]] = [
    ("echo", "echo", {"a": [1]}),
    ("echo", "add", {"a": 1, "b": 2}),
    ("echo", "slow", {"seconds": 0}),
    ("echo", "whoami", {}),
    ("echo", "secret", {"value": "x"}),
    ("echo", "hidden", {}),
    ("echo", "fail_value", {}),
    ("echo", "fail_async", {}),
    ("echo", "fail_validation", {}),
    ("echo", "fail_authorization", {}),
    ("echo", "fail_authentication", {}),
    ("echo", "fail_deprecated", {}),
    ("echo", "success", {}),
    ("echo", "call_again_forever", {}),
    ("echo", "nuropb_describe", {}),
    ("echo", "_handle_event_", {}),
    ("echo", "__init__", {}),
    ("echo", "", {}),
    ("echo", "nothing", {}),
    ("stub", "test_method", {"a": 1}),
    ("stub", "test_async_method", {}),
    ("stub", "test_success_error", {}),
    ("stub", "test_requires_user_claims", {}),
    ("stub", "test_requires_encryption", {}),
    ("stub", "test_call_again_loop", {}),
    ("stub", "service_name", {}),
    ("everything", "call", {"a": 1}),
    ("everything", "context", {}),
    ("everything", "secret", {"ctx": 1}),
    ("everything", "hidden", {}),
    ("everything", "static", {"a": {"b": 1}}),
    ("everything", "size", {}),
]


@pytest.mark.parametrize(("service", "method", "params"), METHODS)
async def test_a_call_ends_as_with_nuropb(service: str, method: str, params: dict[str, Any]) -> None:
    await compare(SERVICES[service], method, **params)


@pytest.mark.parametrize("params", [{"value": 1}, {"value": 1, "values": [], "more": 2}])
async def test_arguments_that_do_not_fit_have_an_error_that_nuropb_lacks(params: dict[str, Any]) -> None:
    action, sent = await by_nuropb(SERVICES["everything"], "typed", params)
    outcome = await by_us(SERVICES["everything"], "typed", params)
    assert outcome.action == action == "reject"
    assert outcome.error is not None
    assert (sent[0]["error"]["error"], outcome.error["error"]) == ("NuropbException", "NuropbValidationError")


EXCEPTIONS = [
    ValueError("db.internal"),
    KeyError("a"),
    Exception(),
    NuropbException(),
    NuropbException("why"),
    NuropbException(exception=ValueError("because")),
    NuropbException("", exception=ValueError("because")),
    NuropbValidationError("no"),
    NuropbAuthenticationError(),
    NuropbDeprecatedError("use add"),
    NuropbCallAgain("later"),
    NuropbSuccess({"a": 1}),
    NuropbSuccess(
        None,
        events=[
            {"topic": "a.b", "payload": {"a": 1}, "target": None},
            {"topic": "a.c", "payload": [2], "target": ["alice"]},
        ],
    ),
]


@pytest.mark.parametrize("error", EXCEPTIONS, ids=repr)
@pytest.mark.parametrize("method", ["raises", "raises_later"])
async def test_an_exception_is_reported_as_by_nuropb(method: str, error: Exception) -> None:
    await compare(SERVICES["everything"], method, error=error)


@pytest.mark.parametrize("error", EXCEPTIONS, ids=repr)
@pytest.mark.parametrize("method", ["returns", "returns_later"])
async def test_an_exception_that_is_returned_is_one_as_with_nuropb(method: str, error: Exception) -> None:
    await compare(SERVICES["everything"], method, value=error)


# nuropb cannot encode a dataclass itself, only its instances, and puts a Z behind dates and offsets.
@pytest.mark.parametrize("value", [value for value, _ in SPELLINGS if not isinstance(value, type | dt.date)], ids=repr)
@pytest.mark.parametrize("method", ["returns", "returns_later"])
async def test_a_result_is_spelled_as_by_nuropb(method: str, value: Any) -> None:
    await compare(SERVICES["everything"], method, value=value)
    assert ours.to_json(value).decode() == nuropb_to_json(value)


# --- trace ids ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["raises", "raises_later"])
async def test_the_lines_in_the_documentation_log_trace_id_and_traceback_in_one_record_of_a_nuropb_service(
    method: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "mesh.md").read_text()
    (code,) = re.findall(r"^### The trace id in the log of a nuropb service\n.*?```python\n(.*?)```", text, re.S | re.M)
    name = "create_transport_responses_from_exceptions"
    monkeypatch.setattr(service_handlers, name, getattr(service_handlers, name))  # restored at the end
    exec(code, {})
    await compare(SERVICES["everything"], method, error=ValueError("a bad day"))
    (record,) = (each for each in caplog.records if each.message == "trace t")
    assert f"in {method}\n" in (record.exc_text or "")
    assert "ValueError: a bad day" in (record.exc_text or "")

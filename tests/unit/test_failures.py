"""Failures of calls: a service's error as the client sees it."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from .fakes import FakeGateway, answers, running

TRANSLATIONS = [
    # class of the error, code of the answer
    ("NuropbMessageError", "bad_request"),
    ("NuropbValidationError", "invalid_params"),
    ("NuropbAuthenticationError", "unauthenticated"),
    ("NuropbAuthorizationError", "permission_denied"),
    ("NuropbNotDeliveredError", "service_unavailable"),
    ("NuropbTransportError", "mesh_unavailable"),
    ("NuropbTimeoutError", "timeout"),
    ("NuropbDeprecatedError", "deprecated"),
    ("NuropbHandlingError", "service_error"),
    ("NuropbException", "service_error"),
    ("NuropbCallAgainReject", "service_error"),
    ("ValueError", "service_error"),
    ("", "service_error"),
]
NAMED = {name for name, _ in TRANSLATIONS[:9]}


@pytest.mark.parametrize("details", ["nuropb", "all", "none"])
@pytest.mark.parametrize(("name", "code"), TRANSLATIONS)
async def test_errors_are_translated(details: str, name: str, code: str) -> None:
    async with running(error_details=details) as gateway:
        gateway.know()
        handler = await gateway.connect()
        gateway.request(handler, trace_id="t")
        gateway.mesh.reply(gateway.mesh.calls[0], error={"error": name, "description": "db.internal:5432"})
        error = handler.frames[0]["payload"]["error"]
        assert error["code"] == code
        shown = details == "all" or (details == "nuropb" and name in NAMED)
        neutral = "orders.get failed; look for trace_id t"
        assert error["description"] == ("db.internal:5432" if shown else neutral)
        fallback = "NuropbHandlingError"
        assert error["error"] == (name or fallback if shown or name.startswith("Nuropb") else fallback)


ODD_ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"error": "NuropbHandlingError", "description": "Unknown method get"}, "method_not_found"),
    ({"error": "NuropbException", "description": "Unknown method get"}, "service_error"),
    ({}, "service_error"),
    ({"error": None, "description": None}, "service_error"),
    ({"error": {"a": 1}, "description": ["b"]}, "service_error"),
    ({"error": "NuropbValidationError"}, "invalid_params"),
]


@pytest.mark.parametrize(("error", "code"), ODD_ERRORS)
@pytest.mark.parametrize("details", ["nuropb", "all", "none"])
async def test_an_error_may_look_odd(error: dict[str, Any], code: str, details: str) -> None:
    async with running(error_details=details) as gateway:
        gateway.know()
        handler = await gateway.connect()
        gateway.request(handler)
        gateway.mesh.reply(gateway.mesh.calls[0], error=error)
        assert handler.codes == [code]


async def test_an_error_may_say_no_more_than_the_outbox_holds() -> None:
    async with running(outbox_size=1024, max_message_size=512, error_details="all") as gateway:
        gateway.know()
        handler = await gateway.connect()
        for size in (1024, 1025):
            gateway.request(handler)
            error = {"error": "NuropbValidationError", "description": "x" * size}
            gateway.mesh.reply(gateway.mesh.calls[-1], error=error)
        assert handler.codes == ["invalid_params"] * 2
        shown = [frame["payload"]["error"]["description"][:3] for frame in handler.frames]
        assert shown == ["xxx", "ord"]


async def test_an_error_is_an_error_whatever_the_result_says(gateway: FakeGateway) -> None:
    gateway.know()
    handler = await gateway.connect()
    gateway.request(handler)
    gateway.mesh.reply(gateway.mesh.calls[0], "looks fine", error={"error": "NuropbValidationError"})
    assert [(answer[1], answer[2]) for answer in answers(handler)] == [(None, "invalid_params")]


async def test_what_a_client_is_not_told_is_in_the_log_under_the_trace_id(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with running(error_details="nuropb") as gateway:
        gateway.know()
        handler = await gateway.connect("alice/c0ffee")
        gateway.request(handler, trace_id="trace7", params={"card": "4111"})
        gateway.mesh.reply(gateway.mesh.calls[0], error={"error": "KeyError", "description": "4111"})
    (record,) = [record for record in caplog.records if "trace7" in record.message]
    assert "orders.get failed with KeyError" in record.message
    assert "c0ffee" not in caplog.text
    assert "4111" not in caplog.text


NUROPB = "Runtime exception calling orders.get:"
ARGUMENTS = [
    ("NuropbException", f"{NUROPB}TypeError: Orders.get() missing 1 required positional argument", "invalid_params"),
    ("TypeError", "can only concatenate str", "invalid_params"),
    ("NuropbException", f"{NUROPB}TimeoutError: ", "service_error"),
    ("NuropbException", "out of tea", "service_error"),
    ("NuropbHandlingError", "out of tea", "service_error"),
]


@pytest.mark.parametrize("details", ["nuropb", "all", "none"])
@pytest.mark.parametrize(("name", "text", "code"), ARGUMENTS)
async def test_a_description_explains_an_error_of_nuropb_by_the_arguments(
    name: str, text: str, code: str, details: str
) -> None:
    parameters = {"properties": [["number", {"type": "int"}]], "required": ["number"]}
    async with running(error_details=details) as gateway:
        gateway.know(methods={"get": {"parameters": parameters}})
        handler = await gateway.connect()
        gateway.request(handler, params={"num": 1})
        gateway.mesh.reply(gateway.mesh.calls[0], error={"error": name, "description": text})
        assert handler.codes == [code]
        description = handler.frames[0]["payload"]["error"]["description"]
        if code == "invalid_params":
            assert ("missing: number; unknown: num" in description) == (details != "none")


async def test_arguments_that_fit_explain_nothing() -> None:
    parameters = {"properties": [["number", {"type": "int"}]], "required": ["number"]}
    async with running() as gateway:
        gateway.know(methods={"get": {"parameters": parameters}})
        handler = await gateway.connect()
        gateway.request(handler, params={"number": 1})
        gateway.mesh.reply(gateway.mesh.calls[0], error={"error": "TypeError", "description": "a bug"})
        assert handler.codes == ["service_error"]

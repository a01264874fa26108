from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nuropb_gateway_asgi import SettingsError
from nuropb_gateway_asgi.cli import main
from nuropb_gateway_asgi.contracts.compare import ContractFile, breaks, contract_of, read_contract
from nuropb_gateway_asgi.testing import TestGateway


def contract(parameters: dict[str, tuple[str, ...]], **more: Any) -> ContractFile:
    """A contract of orders.create: parameters as (type,) or (type, default)."""
    properties = {
        name: {"type": type_, **({"default": default[0]} if default else {})}
        for name, (type_, *default) in parameters.items()
    }
    required = [name for name, (_, *default) in parameters.items() if not default]
    method = {"parameters": {"type": "object", "properties": properties, "required": required}}
    described = {"services": {"orders": {"version": "1", "methods": {"create": method}}}}
    return contract_of(described, client="page", **more)


BEFORE = {"item": ("str",), "quantity": ("int", "1")}


@pytest.mark.parametrize(
    ("now", "fact"),
    [
        ({"item": ("str",)}, "the parameter quantity is gone: calls that pass it fail"),
        ({**BEFORE, "quantity": ("int",)}, "the parameter quantity is required: calls without it fail"),
        ({**BEFORE, "colour": ("str",)}, "the new parameter colour is required: all calls fail"),
        ({**BEFORE, "item": ("int",)}, "the parameter item is int, and was str"),
    ],
)
def test_a_change_that_breaks_a_client_is_found(now: dict[str, tuple[str, ...]], fact: str) -> None:
    [found] = breaks(contract(BEFORE), contract(now))
    assert (found.client, found.name, found.fact, found.is_warning) == ("page", "orders.create", fact, False)


@pytest.mark.parametrize(
    "now",
    [
        BEFORE,
        {**BEFORE, "colour": ("str", "red")},
        {**BEFORE, "item": ("any",)},
        {**BEFORE, "item": ("str", "tea")},
        {**BEFORE, "quantity": ("float", "1")},
        {"item": ("str",), "kwargs": ("any", "")},
    ],
)
def test_a_change_that_takes_the_same_calls_breaks_nobody(now: dict[str, tuple[str, ...]]) -> None:
    assert breaks(contract(BEFORE), contract(now)) == []


def test_another_default_is_a_warning() -> None:
    [found] = breaks(contract(BEFORE), contract({**BEFORE, "quantity": ("int", "2")}))
    assert found.is_warning


def test_a_method_service_or_topic_that_is_gone_breaks_its_clients() -> None:
    before = contract(BEFORE, topics=["orders.created"])
    assert [each.name for each in breaks(before, ContractFile())] == ["orders", "orders.created"]
    now = contract(BEFORE, topics=["orders.#"])
    assert breaks(before, now) == []
    now.services["orders"].methods.clear()
    assert [each.fact for each in breaks(before, now)] == ["the method is gone, or may not be called any more"]


@pytest.mark.parametrize("data", [b"", b"[]", b'{"services": {"a": 1}}', b'{"format": "other"}', b'{"a":' * 5000])
def test_another_file_is_refused(data: bytes) -> None:
    with pytest.raises(SettingsError, match=r"page.json: .*; expected"):
        read_contract(data, "page.json")


MOCKS = "services: {orders: {methods: {create: {parameters: {item: string, quantity: {type: integer, default: 1}}}}}}"


def test_a_contract_is_exported_from_a_gateway_and_checked_against_it_and_against_mocks(
    nuropb_gateway: TestGateway, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def create(item: str, quantity: int = 1) -> None:
        """Create an order."""

    def create_now(item: str, colour: str) -> None:
        """Create an order."""

    monkeypatch.setenv("NUROPB_GATEWAY_URL", nuropb_gateway.url)
    monkeypatch.setenv("NUROPB_GATEWAY_TOKEN", nuropb_gateway.token())
    nuropb_gateway.mesh.mock("orders", create=create, list=[])
    file = tmp_path / "page.json"
    only = ("--only", "orders.create", "--topic", "orders.*", "--client", "page")
    assert main(["contract", "export", *only, "-o", str(file)]) == 0
    written = json.loads(file.read_text())
    assert (written["format"], written["client"]) == ("nuropb-contract/1", "page")
    assert list(written["services"]["orders"]["methods"]) == ["create"]
    assert main(["contract", "check", "--against", str(file)]) == 0
    mocks = tmp_path / "services.yaml"
    mocks.write_text(MOCKS)
    assert main(["contract", "check", "--against", str(file), "--mock", str(mocks)]) == 0
    mocks.write_text(MOCKS.replace("item", "name"))
    assert main(["contract", "check", "--against", str(file), "--mock", str(mocks)]) == 1
    out = capsys.readouterr().out
    assert "breaks page: orders.create: the parameter item is gone" in out
    assert "breaks page: orders.create: the new parameter name is required" in out
    assert main(["contract", "export", "--only", "orders.destroy"]) == 1
    assert main(["contract", "check", "--against", str(mocks)]) == 2


def test_a_service_that_is_gone_from_the_gateway_breaks(
    nuropb_gateway: TestGateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "page.json"
    file.write_text(
        '{"format": "nuropb-contract/1", "services": {"orders": {"methods": {"create": {}}}}, "topics": ["a.#"]}'
    )
    access = ("--url", nuropb_gateway.url, "--token", nuropb_gateway.token())
    assert main(["contract", "check", *access, "--against", str(file)]) == 1
    assert f"breaks {file}: orders: the service is gone, does not answer" in capsys.readouterr().out

"""Rules about tools: what an agent may do is a part of what its user may do."""

from __future__ import annotations

import sys

import pytest

from nuropb_gateway_asgi import Gateway, Identity, Settings, SettingsError
from nuropb_gateway_asgi.authorization import AuthorizedPolicy, Decision, ExposePolicy, RulePolicy
from nuropb_gateway_asgi.authorization.rules import ToolOptions
from nuropb_gateway_asgi.authorization.syntax import parse_policy
from nuropb_gateway_asgi.authorization.tool_policy import ToolPolicy

ALICE = Identity(user_id="alice", token="t", username="Alice")
CALLS = '[[rule]]\nallow = "call"\nmethods = ["orders.*", "users.me"]\nrate = "10/s"\n'


def tools(text: str) -> ToolPolicy:
    return ToolPolicy(RulePolicy(parse_policy((CALLS + text).encode(), "policy.toml")))


def rule(effect: str, *methods: str, more: str = "") -> str:
    named = ", ".join(f'"{method}"' for method in methods)
    return f'[[rule]]\n{effect} = "tool"\nmethods = [{named}]\n{more}'


def test_without_a_rule_about_tools_nothing_is_a_tool() -> None:
    policy = tools("")
    assert not policy.may_call(ALICE, "orders", "get")
    assert not policy.judge_call(ALICE, "orders", "get").allowed
    assert policy.services(ALICE) == ()
    assert not policy.exposes_anything


@pytest.mark.parametrize(("service", "method"), [("payroll", "get"), ("orders", "_private"), ("users", "all")])
def test_a_rule_about_tools_does_not_allow_what_the_user_may_not_call(service: str, method: str) -> None:
    policy = tools(rule("allow", "orders.*", "users.*", "payroll.*"))
    assert not policy.may_call(ALICE, service, method)
    assert not policy.judge_call(ALICE, service, method).allowed


def test_a_rule_about_tools_allows_no_call() -> None:
    rules = parse_policy(rule("allow", "payroll.*").encode(), "policy.toml")
    policy = RulePolicy(rules)
    assert not policy.may_call(ALICE, "payroll", "get")
    assert policy.services(ALICE) == ()
    assert not policy.exposes_anything


def test_a_denied_tool_may_still_be_called_by_its_user() -> None:
    users = RulePolicy(
        parse_policy((CALLS + rule("allow", "orders.*") + rule("deny", "orders.delete")).encode(), "policy.toml")
    )
    assert users.may_call(ALICE, "orders", "delete")
    assert not ToolPolicy(users).may_call(ALICE, "orders", "delete")
    assert ToolPolicy(users).may_call(ALICE, "orders", "get")


def test_the_rate_is_that_of_the_tool_or_else_that_of_the_call() -> None:
    policy = tools(rule("allow", "orders.*", more='rate = "1/min"\n') + rule("allow", "users.me"))
    rates = [policy.judge_call(ALICE, *named).rate for named in (("orders", "get"), ("users", "me"))]
    assert [str(rate.rate) for rate in rates if rate is not None] == ["1/min burst 1", "10/s burst 10"]
    assert rates == [policy.rate(ALICE, "orders", "get"), policy.rate(ALICE, "users", "me")]


def test_the_options_are_those_of_the_rule_that_decides() -> None:
    policy = tools(
        rule("allow", "orders.*", more="hints = { destructive = true }\n")
        + rule("allow", "orders.ship", more="command = true\nhints = { idempotent = true }\n")
    )
    assert policy.options(ALICE, "orders", "get") == ToolOptions(destructive=True)
    assert policy.options(ALICE, "orders", "ship") == ToolOptions(idempotent=True, is_command=True)


def test_a_reload_replaces_the_rules_about_tools() -> None:
    users = RulePolicy(parse_policy(CALLS.encode(), "policy.toml"))
    policy = ToolPolicy(users)
    users.replace(parse_policy((CALLS + rule("allow", "orders.get")).encode(), "policy.toml"))
    assert policy.may_call(ALICE, "orders", "get")
    assert policy.services(ALICE) == ("orders",)


def test_an_authorizer_can_take_tools_away_but_not_give_them() -> None:
    def authorizer(identity: Identity, action: str, name: str, default: Decision) -> bool:
        return name != "orders.get"

    users = RulePolicy(parse_policy((CALLS + rule("allow", "orders.get", "orders.list")).encode(), "policy.toml"))
    policy = ToolPolicy(AuthorizedPolicy(users, authorizer))
    assert not policy.may_call(ALICE, "orders", "get")
    assert policy.may_call(ALICE, "orders", "list")
    assert not policy.may_call(ALICE, "payroll", "get")


def test_the_setting_names_tools_among_the_exposed_methods() -> None:
    policy = ToolPolicy(ExposePolicy(["orders.*"], [], ["orders.get", "users.me"]))
    assert policy.may_call(ALICE, "orders", "get")
    assert not policy.may_call(ALICE, "orders", "list")
    assert not policy.may_call(ALICE, "users", "me")


@pytest.mark.parametrize(
    ("service", "method", "reason"),
    [
        ("orders", "get", "policy.toml:5 allows orders.*"),
        ("orders", "delete", "policy.toml:8 denies orders.delete"),
        ("users", "me", "no rule allows it as a tool"),
        ("orders", "_x", "clients can never call a method of this name"),
    ],
)
def test_a_decision_has_its_reason(service: str, method: str, reason: str) -> None:
    decision = tools(rule("allow", "orders.*") + rule("deny", "orders.delete")).decide_call(ALICE, service, method)
    assert reason in (decision.reason, "clients can never call a method of this name")


def test_a_decision_names_the_users_own_obstacle() -> None:
    decision = tools(rule("allow", "payroll.*")).decide_call(ALICE, "payroll", "get")
    assert (decision.allowed, decision.reason) == (False, "its user may not call it: no rule allows it")


# --- the extra ----------------------------------------------------------------------------------------------------


def test_a_missing_package_is_named_with_the_extra_if_tools_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(SettingsError, match=r"MCP: on, but .*; expected pip install 'nuropb-gateway-asgi\[mcp\]'"):
        Gateway(Settings(mcp="on"))


def test_without_the_package_the_embedded_mesh_has_no_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    assert "mcp" not in Gateway(Settings()).connection_kinds

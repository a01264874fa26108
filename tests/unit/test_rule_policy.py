"""Decisions by rules: compared with a plain implementation of docs/policy.md, and by example."""

from __future__ import annotations

import functools
import itertools
import logging
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nuropb_gateway_asgi.authentication import Identity
from nuropb_gateway_asgi.authorization import (
    AuthorizedPolicy,
    CallVerdict,
    Decision,
    ExposePolicy,
    Policy,
    RulePolicy,
    completed,
)
from nuropb_gateway_asgi.authorization.claims import Condition
from nuropb_gateway_asgi.authorization.patterns import CallPattern, TopicPattern
from nuropb_gateway_asgi.authorization.rule_policy import MAX_REMEMBERED_CALLS
from nuropb_gateway_asgi.authorization.rules import Rule
from nuropb_gateway_asgi.authorization.syntax import parse_policy
from nuropb_gateway_asgi.rates import CallRate, Rate
from nuropb_gateway_asgi.topics import covers, matches


def identity(user_id: str = "u1", **claims: Any) -> Identity:
    return Identity(user_id=user_id, username="someone", token="t", claims=claims, expires_at=None)


def policy(text: str, **options: Any) -> RulePolicy:
    """Return a policy of rules, one in each line: ``allow call orders.* users.me [when claim=value ...]``."""
    return RulePolicy(map(rule, filter(None, map(str.strip, text.splitlines())), itertools.count(1)), **options)


def rule(text: str, line: int = 0) -> Rule:
    what, _, conditions = text.partition(" when ")
    effect, action, *patterns = what.split()
    pairs = (condition.split("=") for condition in conditions.split())
    return Rule(
        effect == "allow",
        methods=tuple(map(CallPattern.parse, patterns)) if action == "call" else (),
        topics=tuple(map(TopicPattern.parse, patterns)) if action == "subscribe" else (),
        conditions=tuple(Condition(claim, "equals", (value,)) for claim, value in pairs),
        source="policy.toml",
        line=line,
    )


# --- decisions by example ---------------------------------------------------------------------------

CALLS = [
    # rules, claims, call, line of the rule that decides (None: none does)
    ("allow call orders.*", {}, "orders.get", 1),
    ("allow call orders.*", {}, "users.get", None),
    ("allow call orders.*\ndeny call orders.drop", {}, "orders.drop", 2),
    ("deny call orders.drop\nallow call orders.*", {}, "orders.drop", 1),
    ("deny call orders.*\nallow call orders.get", {}, "orders.get", 2),
    ("allow call orders.get\ndeny call orders.get", {}, "orders.get", 2),
    ("deny call *.get\nallow call orders.*", {}, "orders.get", 2),
    ("allow call *.get\ndeny call orders.*", {}, "orders.get", 2),
    ("allow call or*.get\ndeny call orders*.*", {}, "orders.get", 2),
    ("allow call *.get_*\ndeny call *.*", {}, "orders.get_all", 1),
    ("allow call *s*.get\ndeny call o*.get", {}, "orders.get", 2),
    ("allow call orders.get\nallow call orders.get", {}, "orders.get", 1),
    ("allow call orders.get orders.*", {}, "orders.list", 1),
    # conditions
    ("deny call orders.get\nallow call orders.get when role=admin", {"role": "admin"}, "orders.get", 2),
    ("deny call orders.get\nallow call orders.get when role=admin", {"role": "clerk"}, "orders.get", 1),
    ("deny call orders.get\nallow call orders.get when role=admin", {}, "orders.get", 1),
    ("allow call orders.* when role=admin\ndeny call orders.get", {"role": "admin"}, "orders.get", 2),
    (
        "allow call orders.get when a=1 b=2\ndeny call orders.get when c=3",
        {"a": "1", "b": "2", "c": "3"},
        "orders.get",
        2,
    ),
    ("allow call orders.get when a=1 b=2\ndeny call orders.get when c=3", {"a": "1", "b": "2"}, "orders.get", 1),
    ("allow call orders.get when a=1 b=2", {"a": "1"}, "orders.get", None),
    # placeholders
    ("allow call {claim:team}-orders.*", {"team": "eu"}, "eu-orders.get", 1),
    ("allow call {claim:team}-orders.*", {"team": "eu"}, "us-orders.get", None),
    ("allow call {claim:team}-orders.*", {"team": "*"}, "us-orders.get", None),
    ("allow call {claim:team}-orders.*", {"team": ["eu"]}, "eu-orders.get", None),
    ("allow call {claim:team}*.get", {"team": ""}, "orders.get", None),
    ("allow call {claim:team}*.get", {}, "orders.get", None),
    ("allow call orders.get_{user_id}", {}, "orders.get_u1", 1),
    ("allow call {user_id}.get\ndeny call u1.get", {}, "u1.get", 2),
    ("allow call {user_id}.get\ndeny call u*.get", {}, "u1.get", 1),
    ("allow call {user_id}.get\ndeny call {claim:a}.get", {"a": "u1"}, "u1.get", 2),
    ("deny call {claim:a}.get\nallow call *.get", {"a": "orders"}, "orders.get", 1),
    ("deny call {claim:a}.get\nallow call *.get", {}, "orders.get", 2),
]


@pytest.mark.parametrize(("rules", "claims", "call", "line"), CALLS)
def test_the_most_specific_rule_decides(rules: str, claims: dict[str, Any], call: str, line: int | None) -> None:
    service, _, method = call.rpartition(".")
    decision = policy(rules).decide_call(identity(**claims), service, method)
    assert (decision.rule.line if decision.rule else None) == line
    assert decision.allowed is (line is not None and rules.splitlines()[line - 1].startswith("allow"))
    assert bool(decision) is decision.allowed


@pytest.mark.parametrize("method", ["_", "_x", "__init__", "nuropb_describe", "", "a.b"])
def test_what_is_private_is_not_callable_whatever_the_rules_say(method: str) -> None:
    rules = policy("allow call *.*\nallow call orders._x\nallow call orders.nuropb_describe\nallow call *._*")
    assert not rules.may_call(identity(), "orders", method)
    assert rules.consider_call(identity(), "orders", method) == []


OWN_SERVICE = [
    # rules, whether the method may be called, whether the service may be described
    ("allow call *.*", False, False),
    ("allow call gate*.*", False, False),
    ("allow call {claim:service}.*", False, False),
    ("allow call gateway.*", True, True),
    ("allow call gateway.*\ndeny call *.*", True, True),
    ("allow call gateway.*\ndeny call gatewa{claim:y}.send", True, True),
    ("allow call gateway.*\ndeny call gateway.s*", False, True),
    ("allow call gateway.*\ndeny call gateway.send", False, True),
    ("allow call gateway.*\ndeny call gateway.{claim:method}", False, True),
    ("allow call gateway.* when no=1", False, False),
]


@pytest.mark.parametrize(("rules", "callable_", "described"), OWN_SERVICE)
def test_the_gateways_own_service_is_allowed_only_by_its_name(rules: str, callable_: bool, described: bool) -> None:
    caller = identity(service="gateway", method="send")
    mine = policy(rules, own_service="gateway")
    assert mine.may_call(caller, "gateway", "send") is callable_
    assert mine.may_describe(caller, "gateway") is described
    assert list(mine.services(caller)) == (["gateway"] if described else [])


# --- what decides, by a plain reading of the document -------------------------------------------------------

names = st.text("ab*", min_size=1, max_size=3)
words = st.sampled_from(["a", "b", "*", "#"])
placeholders = st.sampled_from(["{user_id}", "{claim:x}", "{claim:y}"])
call_patterns = st.tuples(names | placeholders | st.tuples(placeholders, names).map("".join), names).map(".".join)
topic_patterns = (
    st.lists(words | placeholders, min_size=1, max_size=4).map(".".join).filter(lambda t: t.count("#") <= 2)
)
conditions = st.sampled_from(["", " when c=1", " when d=1", " when c=1 d=1"])
effects = st.sampled_from(["allow", "deny"])
call_rules = st.lists(st.builds("{} call {}{}".format, effects, call_patterns, conditions), max_size=6)
topic_rules = st.lists(st.builds("{} subscribe {}{}".format, effects, topic_patterns, conditions), max_size=6)
callers = st.builds(
    identity,
    st.sampled_from(["a", "b", "ab"]),
    x=st.sampled_from(["a", "b", "ab", "*", "", 1]),
    c=st.sampled_from(["1", "2"]),
    d=st.sampled_from(["1", "2"]),
)


def applies(text: str, caller: Identity) -> bool:
    _, _, conditions = text.partition(" when ")
    return all(caller.claims.get(condition[0]) == condition[2:] for condition in conditions.split())


def filled_in(pattern: str, caller: Identity) -> str | None:
    for placeholder, value in (
        ("{user_id}", caller.user_id),
        ("{claim:x}", caller.claims.get("x")),
        ("{claim:y}", caller.claims.get("y")),
    ):
        if placeholder in pattern:
            if not isinstance(value, str) or not value:
                return None
            pattern = pattern.replace(placeholder, value.replace("*", "%2A"))
    return pattern


def rank_of_name(name: str) -> tuple[int, ...]:
    stars = len(re.findall(r"\*+", name))
    spelled_out = len(re.sub(r"\{.*?\}|\*", "", name))
    return (stars == 0, spelled_out, -stars)


def rank_of_topic(pattern: str) -> tuple[int, ...]:
    words = ["" if word.startswith("{") else word for word in pattern.split(".")]
    gaps = [list(gap) for key, gap in itertools.groupby(words, lambda word: word in ("*", "#")) if key]
    wildcards = words.count("*") + words.count("#")
    spelled_out = sum(len(word) for word in words if word not in ("*", "#"))
    return (
        "#" not in words,
        len(words) - wildcards,
        words.count("*"),
        -sum("#" in gap for gap in gaps),
        spelled_out,
    )


def strongest_first(rules: Sequence[str]) -> list[tuple[str, str]]:
    """Return rules and their patterns in the order of docs/policy.md."""

    def strength(numbered: tuple[int, str]) -> tuple[Any, ...]:
        number, text = numbered
        pattern = text.split()[2]
        service, _, method = pattern.rpartition(".")
        is_call = text.split()[1] == "call"
        rank = (*rank_of_name(service), *rank_of_name(method)) if is_call else rank_of_topic(pattern)
        return (*rank, " when " in text, text.startswith("deny"), -number)

    ordered = sorted(enumerate(rules), key=strength, reverse=True)
    return [(text, text.split()[2]) for _, text in ordered]


def reference_call(rules: Sequence[str], caller: Identity, service: str, method: str) -> str | None:
    """Return the rule that decides."""
    for text, pattern in strongest_first(rules):
        own = filled_in(pattern, caller)
        if own is None or not applies(text, caller):
            continue
        for name, expected in zip((service, method), own.rpartition(".")[::2], strict=True):
            if re.fullmatch(".*".join(map(re.escape, expected.split("*"))), name) is None:
                break
        else:
            return text
    return None


@given(call_rules, callers, st.text("ab", min_size=1, max_size=4), st.text("ab", min_size=1, max_size=3))
def test_calls_are_decided_as_the_document_says(rules: list[str], caller: Identity, service: str, method: str) -> None:
    decided = reference_call(rules, caller, service, method)
    mine = policy("\n".join(rules))
    decision = mine.decide_call(caller, service, method)
    assert (None if decision.rule is None else rules[decision.rule.line - 1]) == decided
    assert mine.may_call(caller, service, method) is (decided is not None and decided.startswith("allow"))
    assert mine.may_describe(caller, service) or not decision.allowed
    # Again, from remembered candidates, and with another user in between.
    mine.decide_call(identity("b", x="b", c="2"), service, method)
    assert mine.decide_call(caller, service, method) == decision
    considered = mine.consider_call(caller, service, method)
    assert [each.rule for each in considered if each.decides] == ([] if decision.rule is None else [decision.rule])


def reference_topic(rules: Sequence[str], caller: Identity, topic: str) -> bool:
    """Return whether the strongest rule about this topic allows it."""
    for text, pattern in strongest_first(rules):
        own = filled_in(pattern, caller)
        if own is not None and applies(text, caller) and matches(own, topic):
            return text.startswith("allow")
    return False


UNIVERSE = ["", *(".".join(topic) for n in range(1, 5) for topic in itertools.product("abz", repeat=n))]
asked_patterns = st.lists(words, min_size=1, max_size=4).map(".".join).filter(lambda text: text.count("#") <= 2)


@given(topic_rules, callers, asked_patterns)
def test_no_subscription_lets_through_what_the_rules_deny(rules: list[str], caller: Identity, asked: str) -> None:
    mine = policy("\n".join(rules))
    if mine.may_subscribe(caller, asked):
        assert all(reference_topic(rules, caller, topic) for topic in UNIVERSE if matches(asked, topic))


@given(topic_rules, callers, st.sampled_from(UNIVERSE[1:]))
def test_a_subscription_to_one_topic_is_decided_as_the_topic_is(rules: list[str], caller: Identity, topic: str) -> None:
    assert policy("\n".join(rules)).may_subscribe(caller, topic) is reference_topic(rules, caller, topic)


@given(topic_rules, callers, asked_patterns)
def test_what_a_rule_allows_and_none_denies_may_be_subscribed_to(
    rules: list[str], caller: Identity, asked: str
) -> None:
    allows = [text for text in rules if text.startswith("allow")]
    owns = [filled_in(text.split()[2], caller) for text in allows if applies(text, caller)]
    expected = any(own is not None and covers(own, asked) for own in owns)
    assert policy("\n".join(allows)).may_subscribe(caller, asked) is expected


@given(topic_rules, callers, asked_patterns)
def test_what_is_considered_is_what_decides(rules: list[str], caller: Identity, asked: str) -> None:
    mine = policy("\n".join(rules))
    decision = mine.decide_subscribe(caller, asked)
    considered = mine.consider_subscribe(caller, asked)
    assert [each.rule for each in considered if each.decides] == ([] if decision.rule is None else [decision.rule])


SUBSCRIPTIONS = [
    # rules, claims, pattern, line of the rule that decides (None: none does)
    ("allow subscribe orders.#", {}, "orders.#", 1),
    ("allow subscribe orders.#", {}, "#", None),
    ("allow subscribe orders.#\ndeny subscribe orders.secret.#", {}, "orders.new", 1),
    ("allow subscribe orders.#\ndeny subscribe orders.secret.#", {}, "orders.secret.x", 2),
    # a part of the pattern is denied
    ("allow subscribe orders.#\ndeny subscribe orders.secret.#", {}, "orders.#", 2),
    ("allow subscribe orders.#\ndeny subscribe orders.secret.#", {}, "orders.*", 2),
    ("allow subscribe orders.#\ndeny subscribe *.secret", {}, "orders.*", 2),
    ("allow subscribe orders.#\ndeny subscribe *.secret", {}, "orders.*.new", 1),
    # a weaker denial has no effect
    ("deny subscribe #\nallow subscribe orders.#", {}, "orders.#", 2),
    ("deny subscribe orders.#\nallow subscribe orders.*", {}, "orders.*", 2),
    ("deny subscribe orders.#\nallow subscribe orders.*", {}, "orders.#", None),
    # a denial that a stronger rule overrules in full
    (
        "allow subscribe orders.#\ndeny subscribe orders.secret.#\nallow subscribe orders.secret.# when role=admin",
        {"role": "admin"},
        "orders.#",
        1,
    ),
    (
        "allow subscribe orders.#\ndeny subscribe orders.secret.#\nallow subscribe orders.secret.# when role=admin",
        {"role": "clerk"},
        "orders.#",
        2,
    ),
    (
        "allow subscribe orders.#\ndeny subscribe orders.secret.#\nallow subscribe orders.secret.a",
        {},
        "orders.#",
        2,
    ),
    (
        "allow subscribe #\ndeny subscribe a.#\nallow subscribe a.b.#\ndeny subscribe a.b.c",
        {},
        "a.b.#",
        4,
    ),
    ("allow subscribe a.*\ndeny subscribe a.*", {}, "a.b", 2),
    ("allow subscribe a.{user_id}\ndeny subscribe a.u1", {}, "a.u1", 2),
    ("allow subscribe users.{user_id}.#\ndeny subscribe users.*.secret", {}, "users.u1.#", 2),
    ("allow subscribe users.{user_id}.#\ndeny subscribe users.*.secret", {}, "users.u1.mail", 1),
    ("allow subscribe {claim:tenant}.#", {"tenant": "acme"}, "acme.x", 1),
    ("allow subscribe {claim:tenant}.#", {"tenant": "acme"}, "other.x", None),
    ("allow subscribe {claim:tenant}.#", {"tenant": "#"}, "x", None),
    ("allow subscribe {claim:tenant}.#", {"tenant": "*"}, "x.y", None),
    ("allow subscribe {claim:tenant}.#", {"tenant": "a.b"}, "a.b.c", None),
    ("allow subscribe {claim:tenant}.#", {"tenant": "a.b"}, "a%2Eb.c", 1),
    ("allow subscribe {claim:tenant}.#", {}, ".x", None),
]


@pytest.mark.parametrize(("rules", "claims", "pattern", "line"), SUBSCRIPTIONS)
def test_what_may_be_subscribed_to(rules: str, claims: dict[str, Any], pattern: str, line: int | None) -> None:
    decision = policy(rules).decide_subscribe(identity(**claims), pattern)
    assert (decision.rule.line if decision.rule else None) == line
    assert decision.allowed is (line is not None and rules.splitlines()[line - 1].startswith("allow"))


DOCUMENTED = [
    # pattern, whether an admin may subscribe, whether any other user may: the table in docs/policy.md
    ("orders.new", True, True),
    ("orders.secret.price", True, False),
    ("orders.#", True, False),
    ("orders.*", True, False),
    ("orders.*.new", True, False),
    ("orders.new.*", True, True),
    ("#", False, False),
]


@pytest.mark.parametrize(("pattern", "admin", "anybody"), DOCUMENTED)
def test_subscriptions_are_as_the_document_shows_them(pattern: str, admin: bool, anybody: bool) -> None:
    mine = policy("""
        allow subscribe orders.#
        deny subscribe orders.secret.#
        allow subscribe orders.secret.# when role=admin
    """)
    assert mine.may_subscribe(identity(role="admin"), pattern) is admin
    assert mine.may_subscribe(identity(), pattern) is anybody


def test_calls_are_in_the_order_that_the_document_shows() -> None:
    mine = policy("""
        allow call *.*
        allow call *.create
        allow call ord*.create
        allow call orders.*
        allow call orders.create
        deny call orders.create
        allow call orders.create when role=admin
        deny call orders.create when role=admin
        deny call orders.create_*
    """)
    lines = [each.rule.line for each in mine.consider_call(identity(role="admin"), "orders", "create")]
    assert lines == [8, 7, 6, 5, 4, 3, 2, 1]
    lines = [each.rule.line for each in mine.consider_call(identity(), "orders", "create_all")]
    assert lines == [9, 4, 1]


@pytest.mark.parametrize("pattern", ["", "a*", "#.#.#", "a\n"])
def test_what_is_no_pattern_is_not_subscribed_to(pattern: str) -> None:
    rules = policy("allow subscribe #")
    assert not rules.may_subscribe(identity(), pattern)
    assert rules.consider_subscribe(identity(), pattern) == []
    assert rules.delivery(identity(), pattern) == "close"


# --- describing -----------------------------------------------------------------------------------------

DESCRIBED = [
    # rules, claims, service, whether it may be described
    ("allow call orders.*", {}, "orders", True),
    ("allow call orders.*", {}, "users", False),
    ("allow call *.*\ndeny call secret.*", {}, "secret", False),
    ("allow call *.*\ndeny call secret.*", {}, "orders", True),
    ("allow call *.get\ndeny call secret.get", {}, "secret", False),
    ("allow call *.get *.list\ndeny call secret.get", {}, "secret", True),
    ("allow call *.get\ndeny call secret.g*", {}, "secret", False),
    ("allow call secret.get\ndeny call secret.*", {}, "secret", True),
    ("allow call orders.* when role=admin", {"role": "admin"}, "orders", True),
    ("allow call orders.* when role=admin", {"role": "clerk"}, "orders", False),
    ("allow call *.*\ndeny call orders.* when role=clerk", {"role": "clerk"}, "orders", False),
    ("allow call *.*\ndeny call orders.* when role=clerk", {"role": "admin"}, "orders", True),
    ("allow call {claim:team}.*", {"team": "orders"}, "orders", True),
    ("allow call {claim:team}.*", {"team": "users"}, "orders", False),
    ("allow call {claim:team}.*", {}, "orders", False),
    ("allow call *.*", {}, "", False),
    ("allow call *.*", {}, "s" * 256, False),
]


@pytest.mark.parametrize(("rules", "claims", "service", "described"), DESCRIBED)
def test_a_service_may_be_described_where_something_may_be_called(
    rules: str, claims: dict[str, Any], service: str, described: bool
) -> None:
    assert policy(rules).may_describe(identity(**claims), service) is described


def test_services_are_those_whose_names_are_known_in_the_order_of_the_rules() -> None:
    rules = policy("""
        allow call users.me orders.* users.get
        allow call *.ping a*.x
        allow call {claim:team}-orders.* {claim:none}.x {claim:team}*.y
        allow call admin.* when role=admin
        allow call secret.get
        deny call secret.*
        deny call hidden.*
        allow call hidden.*
        deny call other.x
    """)
    assert rules.services(identity(team="eu")) == ("users", "orders", "eu-orders", "secret")
    assert rules.services(identity(role="admin")) == ("users", "orders", "admin", "secret")


def test_a_policy_exposes_something_if_a_rule_allows_something() -> None:
    assert policy("deny call a.b\nallow subscribe a").exposes_anything
    assert not policy("deny call a.b\ndeny subscribe a").exposes_anything
    assert not policy("").exposes_anything


# --- what a rule says beside yes or no ------------------------------------------------------------------


def test_the_rate_is_the_one_of_the_rule_that_decides() -> None:
    slow, fast = CallRate(Rate(1, "s", 1)), CallRate(Rate(9, "s", 9))
    mine = RulePolicy(
        [
            Rule(True, methods=(CallPattern.parse("orders.*"),), rate=fast),
            Rule(True, methods=(CallPattern.parse("orders.create"),), rate=slow),
            Rule(True, methods=(CallPattern.parse("orders.get"),)),
        ]
    )
    assert mine.rate(identity(), "orders", "create") is slow
    assert mine.rate(identity(), "orders", "list") is fast
    assert mine.rate(identity(), "orders", "get") is None
    assert mine.rate(identity(), "users", "get") is None


def test_the_delivery_is_the_one_of_the_rule_that_decides() -> None:
    mine = RulePolicy(
        [
            Rule(True, topics=(TopicPattern.parse("#"),)),
            Rule(True, topics=(TopicPattern.parse("prices.#"),), delivery="latest"),
            Rule(True, topics=(TopicPattern.parse("news.#"),), delivery="drop_oldest"),
            Rule(False, topics=(TopicPattern.parse("news.secret"),)),
        ]
    )
    found = {topic: mine.delivery(identity(), topic) for topic in ("prices.*", "news.x", "news.secret", "x", "#")}
    assert found == {"prices.*": "latest", "news.x": "drop_oldest", "news.secret": "close", "x": "close", "#": "close"}


NAMES = [
    ("allow call orders.get", True),
    ("allow call orders.*", False),
    ("allow call *.get", False),
    ("allow call {claim:team}.get", False),
    ("allow call orders.{claim:method}", False),
    ("allow call orders.*\nallow call orders.get", True),
    ("deny call orders.*", True),  # an authorizer that allows the call nevertheless knows its full name
    ("", True),
]


@pytest.mark.parametrize(("rules", "named"), NAMES)
def test_whether_a_call_is_allowed_by_its_name(rules: str, named: bool) -> None:
    assert policy(rules).names(identity(team="orders", method="get"), "orders", "get") is named


def test_what_became_of_each_rule_is_said_strongest_first() -> None:
    mine = policy("""
        allow call orders.*
        allow call orders.create when role=admin
        deny call orders.create
        deny call {claim:team}.create
        deny call *.create
        allow call users.*
    """)
    found = [(each.rule.line, each.decides, each.why) for each in mine.consider_call(identity(), "orders", "create")]
    assert found == [
        (2, False, "does not apply: role equals 'admin' does not hold"),
        (3, True, "decides"),
        (1, False, "is weaker than policy.toml:3, which names the method without *"),
        (4, False, "does not apply: a placeholder has another value, or none"),
        (5, False, "is weaker than policy.toml:3, which names the service without *"),
    ]


def test_what_became_of_each_rule_about_topics_is_said_strongest_first() -> None:
    mine = policy("""
        allow subscribe orders.#
        deny subscribe orders.secret
        allow subscribe orders.secret when role=admin
        deny subscribe orders.{claim:none}
        deny subscribe #
        allow subscribe orders.*
        deny subscribe users.#
    """)
    found = [(each.rule.line, each.decides, each.why) for each in mine.consider_subscribe(identity(), "orders.#")]
    assert found == [
        (3, False, "does not apply: role equals 'admin' does not hold"),
        (2, True, "decides"),
        (4, False, "does not apply: a placeholder has no value"),
        (6, False, "allows only a part of the pattern"),
        (1, False, "is weaker than policy.toml:2, which has no #"),
        (5, False, "is weaker than policy.toml:2, which has no #"),
    ]
    admin = identity(role="admin")
    found = [(each.rule.line, each.decides, each.why) for each in mine.consider_subscribe(admin, "orders.#")]
    assert found[:2] == [
        (3, False, "allows only a part of the pattern"),
        (2, False, "denies a part of the pattern, but a stronger rule allows this part"),
    ]
    assert (1, True, "decides") in found
    assert [each.why for each in mine.consider_subscribe(identity(), "#")][-1] == "denies a part of the pattern"


REASONS = [
    ("orders.x", "*.x", "names the service without *"),
    ("order*.x", "o*.x", "spells out more of the service"),
    ("o*.x", "*o*.x", "has fewer * for the service"),
    ("orders.x", "orders.*", "names the method without *"),
    ("orders.{user_id}", "orders.u*", "names the method without *"),
    ("orders.u1*", "orders.u*", "spells out more of the method"),
    ("orders.u*", "orders.*u*", "has fewer * for the method"),
    ("orders.x when c=1", "orders.x", "has conditions"),
]


@pytest.mark.parametrize(("stronger", "weaker", "reason"), REASONS)
def test_why_one_rule_is_weaker_than_another(stronger: str, weaker: str, reason: str) -> None:
    service, method = ("orders", "u1") if ".u" in weaker or "u*" in weaker else ("orders", "x")
    if "{user_id}" in stronger:
        method = "u1"
    for effects in itertools.product(("allow", "deny"), repeat=2):
        mine = policy(f"{effects[0]} call {weaker}\n{effects[1]} call {stronger}")
        considered = mine.consider_call(identity(c="1"), service, method)
        assert [each.why for each in considered] == ["decides", f"is weaker than policy.toml:2, which {reason}"]


def test_among_equals_a_denial_decides_and_then_the_first() -> None:
    mine = policy("allow call a.b\nallow call a.b\ndeny call a.b")
    whys = [(each.rule.line, each.why) for each in mine.consider_call(identity(), "a", "b")]
    assert whys == [
        (3, "decides"),
        (1, "is weaker than policy.toml:3, which denies"),
        (2, "is weaker than policy.toml:3, which denies"),
    ]
    mine = policy("allow call a.b\nallow call a.b")
    whys = [(each.rule.line, each.why) for each in mine.consider_call(identity(), "a", "b")]
    assert whys[1] == (2, "is weaker than policy.toml:1, which comes first")


# --- new rules ------------------------------------------------------------------------------------------


def test_new_rules_decide_at_once_and_nothing_of_the_old_ones_is_left() -> None:
    mine = policy("allow call orders.get\nallow subscribe a.#")
    assert mine.may_call(identity(), "orders", "get")
    assert mine.may_subscribe(identity(), "a.b")
    mine.replace(policy("deny call orders.get\nallow call users.me").rules)
    assert not mine.may_call(identity(), "orders", "get")
    assert mine.may_call(identity(), "users", "me")
    assert not mine.may_subscribe(identity(), "a.b")
    assert mine.services(identity()) == ("users",)


def test_what_is_remembered_of_names_that_clients_make_up_has_an_end() -> None:
    mine = policy("allow call *.*")
    for number in range(3 * MAX_REMEMBERED_CALLS):
        assert mine.may_call(identity(), "orders", f"m{number}")
        assert not mine.may_call(identity(), "orders", f"_{number}")
        assert mine.remembered <= 2 * MAX_REMEMBERED_CALLS


def calls_within(function: Callable[[], object]) -> int:
    """Count the calls of Python functions within a call of ``function``."""
    count = 0

    def on_event(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(on_event)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def test_made_up_names_push_no_method_out_that_is_called_meanwhile_or_named_by_a_rule() -> None:
    mine = policy("allow call orders.get *.*")
    at_first = calls_within(lambda: mine.may_call(identity(), "users", "list"))
    assert mine.may_call(identity(), "orders", "get")
    for number in range(3 * MAX_REMEMBERED_CALLS):
        mine.may_call(identity(), "orders", f"m{number}")
        if number % (MAX_REMEMBERED_CALLS // 2) == 0:
            assert calls_within(lambda: mine.may_call(identity(), "users", "list")) < at_first
    assert calls_within(lambda: mine.may_call(identity(), "orders", "get")) < at_first


@pytest.mark.parametrize("count", [65, 300])
def test_a_decision_about_a_subscription_costs_the_same_whatever_the_number_of_other_patterns(count: int) -> None:
    kinds = ("app.area{}.#", "app.*.kind{}.#", "app.{{user_id}}.own{}.*", "app.#.last{}")
    patterns = " ".join(kinds[number % 4].format(number) for number in range(count))
    mine = policy(f"allow subscribe {patterns} app.mine.#\ndeny subscribe {patterns.replace('app', 'secret')}")
    for asked in ("app.mine.x", "app.x.y.last7", "app.x.nobody.here", "app.u1.own6.z"):
        assert calls_within(functools.partial(mine.may_subscribe, identity(), asked)) < 120, asked


@pytest.mark.parametrize("pattern", ["service{}.*", "*.method{}*", "orders.method{}", "orders.method{}*", "s{}*.m{}"])
@pytest.mark.parametrize("count", [65, 300])
def test_a_decision_about_a_new_method_looks_only_at_patterns_that_begin_like_it(count: int, pattern: str) -> None:
    patterns = " ".join(pattern.format(number, number) for number in range(count))
    mine = policy(f"allow call {patterns} *.*")
    for service, method in (("orders", "made_up"), ("service7", "made_up"), ("orders", "method7")):
        assert calls_within(functools.partial(mine.may_call, identity(), service, method)) < 120


def test_a_file_decides_as_its_rules_do() -> None:
    text = b"""
[[rule]]
allow = "call"
methods = ["orders.*"]
when = { "realm_access.roles" = { contains = "clerk" }, scope = { contains = "orders" } }

[[rule]]
deny = "call"
methods = ["orders.drop"]
"""
    mine = RulePolicy(parse_policy(text, "policy.toml"))
    clerk = identity(realm_access={"roles": ["clerk"]}, scope="openid orders")
    assert mine.may_call(clerk, "orders", "get")
    assert not mine.may_call(clerk, "orders", "drop")
    assert not mine.may_call(identity(realm_access={"roles": ["clerk"]}), "orders", "get")
    assert mine.decide_call(clerk, "orders", "get").reason == "policy.toml:2 allows orders.*"


def test_settings_are_rules_too() -> None:
    mine = ExposePolicy(["orders.*"], ["a.#"])
    assert mine.decide_call(identity(), "orders", "get").reason == "EXPOSE allows orders.*"
    assert mine.decide_subscribe(identity(), "a.b").reason == "EXPOSE_TOPICS allows a.#"
    assert ExposePolicy(["a{b}.c"], []).may_call(identity(), "a{b}", "c")


# --- an authorizer --------------------------------------------------------------------------------------


class Authorizer:
    """An authorizer that records the questions and gives a fixed answer."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer
        self.asked: list[tuple[str, str, str, bool]] = []

    def __call__(self, caller: Identity, action: str, name: str, default: Decision) -> Any:
        self.asked.append((caller.user_id, action, name, default.allowed))
        if isinstance(self.answer, Exception):
            raise self.answer
        return default if self.answer is None else self.answer


BASE = policy("allow call orders.*\nallow subscribe a.#")


def test_an_authorizer_is_asked_with_the_decision_of_the_policy() -> None:
    authorizer = Authorizer()
    mine = AuthorizedPolicy(BASE, authorizer)
    assert mine.policy is BASE
    assert mine.may_call(identity(), "orders", "get")
    assert not mine.may_call(identity(), "users", "get")
    assert mine.may_subscribe(identity(), "a.b")
    assert not mine.may_subscribe(identity(), "b")
    assert mine.may_describe(identity(), "orders")
    assert not mine.may_describe(identity(), "users")
    assert authorizer.asked == [
        ("u1", "call", "orders.get", True),
        ("u1", "call", "users.get", False),
        ("u1", "subscribe", "a.b", True),
        ("u1", "subscribe", "b", False),
        ("u1", "describe", "orders", True),
        ("u1", "describe", "users", False),
    ]


def test_what_an_authorizer_passes_on_keeps_its_rule() -> None:
    mine = AuthorizedPolicy(BASE, Authorizer())
    assert mine.decide_call(identity(), "orders", "get") == BASE.decide_call(identity(), "orders", "get")
    assert mine.decide_subscribe(identity(), "a.b") == BASE.decide_subscribe(identity(), "a.b")
    assert AuthorizedPolicy(BASE, Authorizer(True)).decide_call(identity(), "orders", "get").rule is BASE.rules[0]


@pytest.mark.parametrize("answer", [True, False])
@pytest.mark.parametrize("as_decision", [True, False])
def test_an_authorizer_has_the_last_word(answer: bool, as_decision: bool) -> None:
    mine = AuthorizedPolicy(BASE, Authorizer(Decision(answer, "the moon is full") if as_decision else answer))
    for service in ("orders", "users"):
        assert mine.may_call(identity(), service, "get") is answer
        assert mine.may_describe(identity(), service) is answer
    for topic in ("a.b", "b"):
        assert mine.may_subscribe(identity(), topic) is answer
    if as_decision:
        assert mine.decide_call(identity(), "orders", "get").reason == "the moon is full"
    assert list(mine.services(identity())) == (["orders"] if answer else [])


@pytest.mark.parametrize("method", ["_x", "nuropb_describe", "a.b", ""])
def test_an_authorizer_is_not_asked_about_what_is_never_allowed(method: str) -> None:
    authorizer = Authorizer(True)
    mine = AuthorizedPolicy(BASE, authorizer)
    assert not mine.may_call(identity(), "orders", method)
    assert not mine.may_subscribe(identity(), "a*")
    assert not mine.may_describe(identity(), "")
    assert authorizer.asked == []


def test_the_exception_of_an_authorizer_is_a_no_and_its_text_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    mine = AuthorizedPolicy(BASE, Authorizer(RuntimeError("the secret")))
    with caplog.at_level(logging.DEBUG):
        assert not mine.may_call(identity(), "orders", "get")
        assert not mine.may_subscribe(identity(), "a.b")
    assert "the authorizer raised RuntimeError for a call; denied" in caplog.text
    assert "the authorizer raised RuntimeError for a subscribe; denied" in caplog.text
    assert "It was raised here" in caplog.text
    assert "the secret" not in caplog.text


@pytest.mark.parametrize("answer", [1, 0, "yes", "", object()])
def test_an_answer_that_is_none_is_a_no(answer: object, caplog: pytest.LogCaptureFixture) -> None:
    mine = AuthorizedPolicy(BASE, Authorizer(answer))
    assert not mine.may_call(identity(), "orders", "get")
    assert f"the authorizer returned an unusable {type(answer).__name__} for a call; denied" in caplog.text


def test_an_authorizer_that_forgets_to_answer_allows_nothing() -> None:
    def forgetful(caller: Identity, action: str, name: str, default: Decision) -> Any:
        """Return nothing."""

    assert not AuthorizedPolicy(BASE, forgetful).may_call(identity(), "orders", "get")


async def test_a_coroutine_cannot_be_an_authorizer() -> None:
    async def slow(*_: Any) -> bool:
        return True

    class Slow:
        async def __call__(self, *_: Any) -> bool:
            return True

    for authorizer in (slow, Slow()):
        with pytest.raises(TypeError, match="must not wait"):
            AuthorizedPolicy(BASE, authorizer)  # type: ignore[arg-type]
    # A coroutine function in disguise denies, and its coroutine is closed.
    sneaky: Any = lambda *arguments: slow(*arguments)  # noqa: E731
    assert not AuthorizedPolicy(BASE, sneaky).may_call(identity(), "orders", "get")


def test_what_an_authorizer_allows_against_the_rules_it_names() -> None:
    mine = AuthorizedPolicy(policy("allow call orders.*"), Authorizer(True))
    assert not mine.names(identity(), "orders", "get")
    assert mine.names(identity(), "users", "get")


def test_rates_and_deliveries_are_those_of_the_policy_behind_an_authorizer() -> None:
    rate = CallRate(Rate(1, "s", 1))
    base = RulePolicy(
        [
            Rule(True, methods=(CallPattern.parse("a.b"),), rate=rate),
            Rule(True, topics=(TopicPattern.parse("a"),), delivery="latest"),
        ]
    )
    mine: Policy = AuthorizedPolicy(base, Authorizer())
    assert mine.exposes_anything
    assert mine.rate(identity(), "a", "b") is rate
    assert mine.delivery(identity(), "a") == "latest"


def test_a_subclass_that_decides_otherwise_is_what_the_authorizer_hears() -> None:
    class NoRefunds(ExposePolicy):
        def may_call(self, identity: Identity, service: str, method: str) -> bool:
            return method != "refund" and super().may_call(identity, service, method)

    authorizer = Authorizer()
    mine = AuthorizedPolicy(NoRefunds(["orders.*"], []), authorizer)
    assert mine.may_call(identity(), "orders", "get")
    assert not mine.may_call(identity(), "orders", "refund")
    assert [default for *_, default in authorizer.asked] == [True, False]


# --- other policies -------------------------------------------------------------------------------------


class Plain:
    """A policy with the required methods alone."""

    exposes_anything = True

    def may_call(self, identity: Identity, service: str, method: str) -> bool:
        return (service, method) == ("orders", "get")

    def may_subscribe(self, identity: Identity, pattern: str) -> bool:
        return pattern == "a"

    def may_describe(self, identity: Identity, service: str) -> bool:
        return service == "orders"

    def services(self, identity: Identity) -> list[str]:
        return ["orders"]


def test_a_policy_that_says_no_more_than_it_must_is_completed() -> None:
    mine = completed(Plain())
    caller = identity()
    assert [mine.may_call(caller, "orders", method) for method in ("get", "put")] == [True, False]
    assert [mine.may_subscribe(caller, topic) for topic in "ab"] == [True, False]
    assert [mine.may_describe(caller, service) for service in ("orders", "users")] == [True, False]
    assert mine.services(caller) == ["orders"]
    assert mine.exposes_anything
    assert mine.names(caller, "orders", "get")
    assert mine.rate(caller, "orders", "get") is None
    assert mine.delivery(caller, "a") == "close"
    assert AuthorizedPolicy(mine, Authorizer()).decide_call(caller, "orders", "get") == Decision(True, "the policy")


class Selective(Plain):
    """A policy with an own delivery."""

    def delivery(self, identity: Identity, pattern: str) -> str:
        return "latest"


def test_what_a_policy_says_itself_is_kept_when_it_is_completed() -> None:
    mine = completed(Selective())
    assert mine.delivery(identity(), "a") == "latest"
    assert mine.rate(identity(), "orders", "get") is None


def test_a_policy_that_says_everything_stays_itself() -> None:
    for complete in (BASE, ExposePolicy([], []), AuthorizedPolicy(BASE, Authorizer())):
        assert completed(complete) is complete


# --- one decision for each call -------------------------------------------------------------------------

RATE = CallRate(Rate(1, "s", 1))
OTHER_RATE = CallRate(Rate(2, "s", 2))
LIMITED = [
    Rule(True, methods=(CallPattern.parse("orders.create"),), rate=RATE),
    Rule(True, methods=(CallPattern.parse("orders.*"),)),
    Rule(False, methods=(CallPattern.parse("orders.drop"),)),
]
DENIED = CallVerdict(False, None)


class Counting(RulePolicy):
    """A policy that counts its decisions."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        super().__init__(rules)
        self.decisions = 0

    def decide_call(self, identity: Identity, service: str, method: str) -> Decision:
        self.decisions += 1
        return super().decide_call(identity, service, method)


@pytest.mark.parametrize(
    ("method", "verdict"),
    [("create", CallVerdict(True, RATE)), ("list", CallVerdict(True, None)), ("drop", DENIED), ("_x", DENIED)],
)
@pytest.mark.parametrize("authorized", [False, True])
def test_one_decision_judges_a_call(method: str, verdict: CallVerdict, authorized: bool) -> None:
    rules, authorizer = Counting(LIMITED), Authorizer()
    mine: Policy = AuthorizedPolicy(rules, authorizer) if authorized else rules
    assert mine.judge_call(identity(), "orders", method) == verdict
    assert rules.decisions == (0 if authorized and method == "_x" else 1)
    assert len(authorizer.asked) == (authorized and method != "_x")


@given(st.sampled_from(["create", "list", "drop", "_x", "nuropb_describe", "", "a.b"]), st.sampled_from("ab"))
def test_a_verdict_is_what_may_call_and_rate_answer(method: str, service: str) -> None:
    rules = [*LIMITED, Rule(True, methods=(CallPattern.parse("a.{user_id}"), CallPattern.parse("a.*st")), rate=RATE)]
    policies: list[Policy] = [RulePolicy(rules), ExposePolicy(["a.*", "orders.list"], [])]
    policies += [AuthorizedPolicy(each, Authorizer(answer)) for each in policies for answer in (None, True, False)]
    policies.append(completed(Plain()))
    for mine in policies:
        for caller in (identity("create"), identity("u1")):
            allowed = mine.may_call(caller, service, method)
            rate = mine.rate(caller, service, method) if allowed else None
            assert mine.judge_call(caller, service, method) == (allowed, rate)


def test_an_authorizer_that_allows_against_the_rules_leaves_no_rate_and_one_that_denies_asks_for_none() -> None:
    rules = RulePolicy(LIMITED)
    assert AuthorizedPolicy(rules, Authorizer(True)).judge_call(identity(), "orders", "drop") == (True, None)
    assert AuthorizedPolicy(rules, Authorizer(True)).judge_call(identity(), "orders", "create") == (True, RATE)
    assert AuthorizedPolicy(rules, Authorizer(False)).judge_call(identity(), "orders", "create") == DENIED


class NoCreate(RulePolicy):
    """A subclass with its own ``may_call``."""

    def may_call(self, identity: Identity, service: str, method: str) -> bool:
        return method != "create" and super().may_call(identity, service, method)


class OtherRate(RulePolicy):
    """A subclass with its own ``rate``."""

    def rate(self, identity: Identity, service: str, method: str) -> CallRate | None:
        return OTHER_RATE


class CreateOnly:
    """A mixin with its own ``may_call``."""

    def may_call(self, identity: Identity, service: str, method: str) -> bool:
        return method == "create"


class Mixed(CreateOnly, RulePolicy):
    """A subclass that inherits its ``may_call`` from elsewhere."""


class Inherited(NoCreate):
    """A subclass of a subclass."""


@pytest.mark.parametrize(
    ("policy_class", "create", "list_"),
    [
        (RulePolicy, (True, RATE), (True, None)),
        (NoCreate, DENIED, (True, None)),
        (Inherited, DENIED, (True, None)),
        (OtherRate, (True, OTHER_RATE), (True, OTHER_RATE)),
        (Mixed, (True, RATE), DENIED),
    ],
)
@pytest.mark.parametrize("authorized", [False, True])
def test_what_a_subclass_of_the_rules_answers_counts_for_a_verdict(
    policy_class: type[RulePolicy], create: object, list_: object, authorized: bool
) -> None:
    mine: Policy = policy_class(LIMITED)
    if authorized:
        mine = AuthorizedPolicy(mine, Authorizer())
    assert [mine.judge_call(identity(), "orders", method) for method in ("create", "list")] == [create, list_]


def test_a_subclass_that_decides_otherwise_counts_for_a_verdict() -> None:
    class Never(RulePolicy):
        def decide_call(self, identity: Identity, service: str, method: str) -> Decision:
            return Decision(False, "never")

    for mine in (Never(LIMITED), AuthorizedPolicy(Never(LIMITED), Authorizer())):
        assert mine.judge_call(identity(), "orders", "list") == DENIED


def test_what_a_subclass_of_the_authorized_policy_answers_counts_for_a_verdict() -> None:
    class MayNot(AuthorizedPolicy):
        def may_call(self, identity: Identity, service: str, method: str) -> bool:
            return False

    class DecidesNo(AuthorizedPolicy):
        def decide_call(self, identity: Identity, service: str, method: str) -> Decision:
            return Decision(False, "no")

    class Rated(AuthorizedPolicy):
        def rate(self, identity: Identity, service: str, method: str) -> CallRate | None:
            return OTHER_RATE

    rules = RulePolicy(LIMITED)
    verdicts = [
        each(rules, Authorizer()).judge_call(identity(), "orders", "list") for each in (MayNot, DecidesNo, Rated)
    ]
    assert verdicts == [DENIED, DENIED, (True, OTHER_RATE)]


class Rated(Plain):
    """A policy with a rate that records the methods of all questions for it."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def rate(self, identity: Identity, service: str, method: str) -> CallRate:
        self.asked.append(method)
        return RATE


def test_a_completed_policy_is_asked_for_the_rate_of_allowed_calls_alone() -> None:
    own = Rated()
    mine = completed(own)
    assert mine.judge_call(identity(), "orders", "get") == (True, RATE)
    assert mine.judge_call(identity(), "orders", "put") == DENIED
    assert own.asked == ["get"]
    assert completed(Plain()).judge_call(identity(), "orders", "get") == (True, None)


class Judging(Plain):
    """A policy with a verdict of its own."""

    def judge_call(self, identity: Identity, service: str, method: str) -> CallVerdict:
        return CallVerdict(method == "put", OTHER_RATE)


def test_a_policy_may_judge_calls_itself() -> None:
    assert completed(Judging()).judge_call(identity(), "orders", "put") == (True, OTHER_RATE)


class Wrapper:
    """A policy that delegates missing methods to another policy."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def may_call(self, identity: Identity, service: str, method: str) -> bool:
        return method != "create" and self.policy.may_call(identity, service, method)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)


def test_a_policy_that_passes_on_to_another_is_not_bypassed() -> None:
    mine = completed(Wrapper(RulePolicy(LIMITED)))
    assert mine.judge_call(identity(), "orders", "create") == DENIED
    assert mine.judge_call(identity(), "orders", "list") == (True, None)
    assert mine.topics(identity()) == ()


class Explicit(Policy):
    """A policy that names the protocol as its base."""

    exposes_anything = True

    def may_call(self, identity: Identity, service: str, method: str) -> bool:
        return method == "get"

    def rate(self, identity: Identity, service: str, method: str) -> CallRate | None:
        return RATE

    def may_subscribe(self, identity: Identity, pattern: str) -> bool:
        return False

    def may_describe(self, identity: Identity, service: str) -> bool:
        return False

    def services(self, identity: Identity) -> list[str]:
        return []


def test_a_policy_with_the_protocol_as_its_base_judges_by_its_own_answers() -> None:
    mine = Explicit()
    assert completed(mine) is mine
    assert mine.judge_call(identity(), "orders", "get") == (True, RATE)
    assert mine.judge_call(identity(), "orders", "put") == DENIED


class Reasoned(Plain):
    """A policy that gives reasons."""

    def decide_call(self, identity: Identity, service: str, method: str) -> Decision:
        return Decision(self.may_call(identity, service, method), "it is Tuesday")


def test_a_completed_policy_keeps_its_reasons() -> None:
    mine = AuthorizedPolicy(completed(Reasoned()), Authorizer())
    assert mine.decide_call(identity(), "orders", "get") == Decision(True, "it is Tuesday")

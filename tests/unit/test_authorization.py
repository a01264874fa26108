from __future__ import annotations

import re
import string
from fnmatch import fnmatchcase
from urllib.parse import unquote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nuropb_gateway_asgi.authentication import Identity
from nuropb_gateway_asgi.authorization import ExposePolicy, Policy, escape_word
from nuropb_gateway_asgi.exceptions import SettingsError
from nuropb_gateway_asgi.topics import check_topic, matches

user_ids = st.text(st.characters(codec=None) | st.sampled_from(".*#%{}"), min_size=1)


def identity(user_id: str = "u1") -> Identity:
    return Identity(user_id=user_id, username="someone", token="t", claims={}, expires_at=None)


# --- calls ----------------------------------------------------------------------------------------------

CALLS = [
    # pattern, callable, not callable
    (
        "orders.create",
        [("orders", "create")],
        [
            ("orders", "Create"),
            ("Orders", "create"),
            ("orders", "created"),
            ("xorders", "create"),
            ("", "create"),
        ],
    ),
    (
        "orders.*",
        [
            ("orders", "create"),
            ("orders", "a_"),
            ("orders", "*"),
            ("orders", "nuropb_describes"),
            ("orders", "é"),
        ],
        [
            ("orders", ""),
            ("orders.eu", "create"),
            ("orders", "eu.create"),
            ("borders", "create"),
            ("orders ", "x"),
        ],
    ),
    (
        "*.*",
        [("a", "b"), ("a.b", "c"), (".", "x"), ("a\nb", "c\n")],
        [("", "b"), ("a", ""), ("a", "b.c"), ("", "")],
    ),
    (
        "*.me",
        [("users", "me"), ("a.b", "me")],
        [("users", "meh"), ("users", "x.me"), ("users", "me\n"), ("", "me")],
    ),
    (
        "orders*.get",
        [("orders", "get"), ("orders.eu", "get"), ("orders-2", "get")],
        [("order", "get"), ("x", "get")],
    ),
    (
        "orders.get_*",
        [("orders", "get_"), ("orders", "get_all")],
        [("orders", "get"), ("orders", "set_get_x")],
    ),
    (
        "orders.*_all",
        [("orders", "get_all"), ("orders", "x_all_all")],
        [("orders", "_all"), ("orders", "get_alls")],
    ),
    ("a*b*c.x*y*z", [("abc", "xyz"), ("abbcc", "xyyzz"), ("a.b.c", "xyz")], [("acb", "xyz"), ("abc", "xzy")]),
    ("a**b.***", [("ab", "x"), ("a--b", "x")], [("a", "x"), ("ab", "_x")]),
    ("eu.orders.get", [("eu.orders", "get")], [("eu", "orders.get"), ("eu-orders", "get")]),
    (
        "eu.*.get",
        [("eu.orders", "get"), ("eu.", "get"), ("eu.a.b", "get")],
        [("eu", "get"), ("eu.orders", "x.get")],
    ),
    ("a+(b)[c].d?e", [("a+(b)[c]", "d?e")], [("aab", "de"), ("a+(b)c", "dxe"), ("a+(b)[c]", "dxe")]),
    ("a|b.c", [("a|b", "c")], [("a", "c"), ("b", "c"), ("a", "x")]),
    ("my service.do it", [("my service", "do it")], [("myservice", "doit")]),
    ("orders._secret", [], [("orders", "_secret"), ("orders", "secret")]),
    ("orders._*", [], [("orders", "_secret"), ("orders", "x")]),
    ("*.nuropb_describe", [], [("orders", "nuropb_describe")]),
    ("*.nuropb_*", [("orders", "nuropb_mesh")], [("orders", "nuropb_describe")]),
]


@pytest.mark.parametrize(("pattern", "callable_", "others"), CALLS)
def test_what_may_be_called(pattern: str, callable_: list[tuple[str, str]], others: list[tuple[str, str]]) -> None:
    policy = ExposePolicy([pattern], [])
    assert [call for call in callable_ + others if policy.may_call(identity(), *call)] == callable_


@pytest.mark.parametrize("method", ["_", "_x", "__init__", "__class__", "nuropb_describe"])
def test_private_methods_are_never_callable(method: str) -> None:
    policy = ExposePolicy(["*.*", f"orders.{method}", "orders._*", "*.nuropb_describe"], [])
    assert not policy.may_call(identity(), "orders", method)


def test_names_that_are_no_routing_key_are_not_callable() -> None:
    policy = ExposePolicy(["*.*"], [])
    assert policy.may_call(identity(), "s" * 255, "m" * 255)
    assert not policy.may_call(identity(), "s" * 256, "m")
    assert not policy.may_call(identity(), "s", "m" * 256)


def test_patterns_add_up() -> None:
    policy = ExposePolicy(["orders.get", "users.*", "*.ping"], [])
    allowed = [("orders", "get"), ("users", "me"), ("orders", "ping")]
    refused = [("orders", "me"), ("orders.get|users", "me"), ("ping", "get")]
    assert [call for call in allowed + refused if policy.may_call(identity(), *call)] == allowed


calls = st.tuples(st.text("ab.*", min_size=1), st.text("ab_*", min_size=1))


@given(
    st.lists(calls, max_size=3),
    st.text("ab.", max_size=10),
    st.text("ab._", max_size=10),
)
def test_deciding_agrees_with_matching_both_sides_alone(
    expose: list[tuple[str, str]], service: str, method: str
) -> None:
    policy = ExposePolicy([".".join(call) for call in expose], [])
    possible = service != "" and method != "" and "." not in method and not method.startswith("_")
    exposed = any(fnmatchcase(service, left) and fnmatchcase(method, right) for left, right in expose)
    assert policy.may_call(identity(), service, method) == (possible and exposed)
    assert policy.may_describe(identity(), service) or not (possible and exposed)


@pytest.mark.parametrize(
    "pattern",
    [
        "*a" * 60 + "b.x",
        "x." + "*a" * 60 + "b",
        "*a" * 60 + "b." + "*a" * 60 + "b",
        "*" * 5000 + "b.x",
        "*.*.*.*.*.b",
    ],
)
@pytest.mark.parametrize("name", ["a" * 255, "a." * 127, "." * 255])
def test_hostile_names_are_decided(pattern: str, name: str) -> None:
    # With backtracking over 60 wildcards this would take longer than the age of the universe.
    policy = ExposePolicy([pattern], [])
    assert not policy.may_call(identity(), name, "x" * 255)
    assert not policy.may_call(identity(), "x", name.replace(".", "-"))


@pytest.mark.parametrize(
    "pattern",
    ["", "*", "orders", ".", ".get", "orders.", "*.", ".*", "orders.gét", "orders.get\n", "a\t.b", "a.\x7f"],
)
def test_what_is_no_pattern_of_calls_stops_the_start(pattern: str) -> None:
    with pytest.raises(SettingsError) as caught:
        ExposePolicy(["orders.get", pattern], [])
    message = str(caught.value)
    assert message.startswith(f"EXPOSE: {pattern!r} ")
    assert "service.method" in message
    assert "\n" not in message


# --- services -------------------------------------------------------------------------------------------

SERVICES = [
    # expose, services
    ([], []),
    (["users.me", "orders.*", "users.get"], ["users", "orders"]),
    (["*.*", "orders*.get", "eu.orders.get"], ["eu.orders"]),
    (["orders._x", "users._*", "carts.nuropb_describe"], []),
]


@pytest.mark.parametrize(("expose", "services"), SERVICES)
def test_services_are_those_known_by_name(expose: list[str], services: list[str]) -> None:
    assert list(ExposePolicy(expose, []).services(identity())) == services


DESCRIBED = [
    # expose, services that may be described, others
    ([], [], ["", "orders"]),
    (["orders.get", "users.*"], ["orders", "users"], ["order", "orders.get", "orders.", "Users", "", "users\n"]),
    (["eu.*.get"], ["eu.", "eu.orders", "eu.a.b"], ["eu", "us.eu.x"]),
    (["*.get"], ["orders", "a.b", "s" * 255], ["", "s" * 256]),
    (["orders._x", "*.nuropb_describe"], [], ["orders", "users"]),
]


@pytest.mark.parametrize(("expose", "described", "others"), DESCRIBED)
def test_a_service_may_be_described_if_something_of_it_is_exposed(
    expose: list[str], described: list[str], others: list[str]
) -> None:
    policy = ExposePolicy(expose, [])
    assert [name for name in described + others if policy.may_describe(identity(), name)] == described


EXPOSED = [
    # expose, expose_topics, whether the policy exposes anything
    ([], [], False),
    (["orders._x", "*.nuropb_describe"], [], False),
    (["*.get"], [], True),
    ([], ["orders.#"], True),
]


@pytest.mark.parametrize(("expose", "expose_topics", "anything"), EXPOSED)
def test_a_policy_knows_whether_it_exposes_anything(
    expose: list[str], expose_topics: list[str], anything: bool
) -> None:
    policy: Policy = ExposePolicy(expose, expose_topics)
    assert policy.exposes_anything is anything


def test_nothing_is_exposed_by_default() -> None:
    policy = ExposePolicy([], [])
    assert not policy.may_call(identity(), "orders", "get")
    assert not policy.may_call(identity(), "", "")
    assert not policy.may_describe(identity(), "orders")
    assert not policy.may_subscribe(identity(), "orders")


# --- topics ---------------------------------------------------------------------------------------------

SUBSCRIPTIONS = [
    # exposed, user id, allowed, refused
    (["demo.#"], "u1", ["demo", "demo.*", "demo.#", "demo.a.b"], ["#", "*", "demos", "a.demo", ""]),
    (["#"], "u1", ["#", "a", "*.b.#"], ["", "a*", "#.#.#", "a\n", "a" * 256]),
    (["orders.*", "carts.#"], "u1", ["orders.a", "orders.*", "carts"], ["orders.#", "*.a", "orders.a.b"]),
    (
        ["users.{user_id}.#"],
        "u1",
        ["users.u1", "users.u1.#", "users.u1.mail"],
        ["users.u2", "users.*", "users.#"],
    ),
    (["user-{user_id}"], "u1", ["user-u1"], ["user-u2", "user-", "user-u1.x", "*", "user-{user_id}"]),
    (["{user_id}.{user_id}-x"], "u1", ["u1.u1-x"], ["u1.u2-x", "{user_id}.{user_id}-x"]),
    (["users.{user_id}"], "*", ["users.%2A"], ["users.*", "users.u1"]),
    (["users.{user_id}"], "#", ["users.%23"], ["users.#", "users", "users.u1"]),
    (["users.{user_id}"], "u1.mail", ["users.u1%2Email"], ["users.u1.mail", "users.u1"]),
    (["users.{user_id}"], "%2A", ["users.%252A"], ["users.%2A", "users.*"]),
    (["users.{user_id}"], "{user_id}", ["users.%7Buser_id%7D"], ["users.{user_id}"]),
    (["users.{user_id}"], "José", ["users.Jos%C3%A9"], ["users.José", "users.Jose"]),
    (["users.{user_id}"], "", [], ["users.", "users", "users.*", "users.#"]),
    (["users.{user_id}.*"], "u" * 300, [], ["users.u.x", "users.*.*", f"users.{'u' * 300}.x"]),
]


@pytest.mark.parametrize(("exposed", "user_id", "allowed", "refused"), SUBSCRIPTIONS)
def test_what_may_be_subscribed_to(exposed: list[str], user_id: str, allowed: list[str], refused: list[str]) -> None:
    policy = ExposePolicy([], exposed)
    caller = identity(user_id)
    assert [pattern for pattern in allowed + refused if policy.may_subscribe(caller, pattern)] == allowed


@given(user_ids, user_ids)
def test_users_get_their_own_topics_and_nobody_elses(one: str, other: str) -> None:
    assume(max(len(escape_word(one)), len(escape_word(other))) < 200)
    policy = ExposePolicy([], ["users.{user_id}.#", "mail-{user_id}"])
    for topic in ["users.{}.x", "mail-{}"]:
        assert policy.may_subscribe(identity(one), topic.format(escape_word(one)))
        assert policy.may_subscribe(identity(one), topic.format(escape_word(other))) == (one == other)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("", "empty"),
        ("a*", "a word that mixes * or # with other characters"),
        ("*{user_id}", "a word that mixes * or # with other characters"),
        ("#.#.#", "more than 2 # words"),
        ("a\n", "characters that are not printable"),
        ("a" * 256, "longer than 255 bytes"),
        ("users.{username}", "braces that are not {user_id}"),
        ("users.{user_id", "braces that are not {user_id}"),
        ("users.}", "braces that are not {user_id}"),
        ("users.{}", "braces that are not {user_id}"),
        ("users.{{user_id}}", "braces that are not {user_id}"),
        ("users.{user_{user_id}id}", "braces that are not {user_id}"),
    ],
)
def test_what_is_no_topic_pattern_stops_the_start(pattern: str, reason: str) -> None:
    with pytest.raises(SettingsError) as caught:
        ExposePolicy([], ["orders.#", pattern])
    message = str(caught.value)
    assert message.startswith(f"EXPOSE_TOPICS: {pattern!r} is not a topic pattern: {reason}; expected ")
    assert "\n" not in message


# --- escape_word ----------------------------------------------------------------------------------------

WORDS = [
    (string.ascii_letters + string.digits + "-_@~+=:,", string.ascii_letters + string.digits + "-_@~+=:,"),
    ("auth0|6a.b", "auth0%7C6a%2Eb"),
    ("me@example.com", "me@example%2Ecom"),
    (" !\"#$%&'()*./;<>?", "%20%21%22%23%24%25%26%27%28%29%2A%2E%2F%3B%3C%3E%3F"),
    ("[\\]^`{|}\x00\x7f", "%5B%5C%5D%5E%60%7B%7C%7D%00%7F"),
    ("é注😀", "%C3%A9%E6%B3%A8%F0%9F%98%80"),
    ("\ud83d", "%ED%A0%BD"),
    ("", ""),
]


@pytest.mark.parametrize(("text", "word"), WORDS)
def test_a_word_is_escaped(text: str, word: str) -> None:
    assert escape_word(text) == word


@given(user_ids)
def test_an_escaped_word_is_one_literal_word_and_can_be_read_back(text: str) -> None:
    word = escape_word(text)
    assert unquote(word, errors="surrogatepass") == text
    assert re.fullmatch(r"([A-Za-z0-9_@~+=:,-]|%[0-9A-F]{2})*", word)
    assert check_topic(word) in (None, "empty", "longer than 255 bytes")
    assert matches(f"users.{word}", f"users.{word}")

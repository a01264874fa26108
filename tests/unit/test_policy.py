from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nuropb_gateway_asgi.authorization.claims import Condition
from nuropb_gateway_asgi.authorization.rules import Rule
from nuropb_gateway_asgi.authorization.syntax import parse_document, parse_policy
from nuropb_gateway_asgi.exceptions import GatewayError, PolicyError, SettingsError
from nuropb_gateway_asgi.rates import Rate
from nuropb_gateway_asgi.wire.history import BYTES_SYNTAX, DEFAULT_BYTES, LAST_BYTES, TIME_SYNTAX

RULE = '[[rule]]\nallow = "call"\nmethods = ["orders.*"]\n'


def parse(text: str | bytes) -> tuple[Rule, ...]:
    return parse_policy(text.encode() if isinstance(text, str) else text, "policy.toml")


def mistake(text: str | bytes) -> str:
    with pytest.raises(PolicyError) as caught:
        parse(text)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("policy.toml:")
    assert "; expected " in message
    return message


# --- valid files ---------------------------------------------------------------------------------------


def test_a_file_with_everything_in_it() -> None:
    rules = parse("""\
# Who may do what.

[[rule]]
allow = "call"
methods = ["orders.*", "users.me"]

[[rule]]   # with conditions
allow = "call"
methods = [
  "orders.create",   # one
  "{claim:team}-orders.create",
]
when = { scope = { contains = "orders:write" }, role = { in = ["clerk", "admin"] }, vip = { equals = true } }
rate = "5/min"
burst = 10
per = "process"

[[rule]]
deny = "call"
methods = ["*.admin_*", "*.nuropb_describe"]

[[rule]]
allow = "subscribe"
topics = ["prices.#", "users.{user_id}.*"]
delivery = "latest"

[[rule]]
deny = "subscribe"
topics = ["prices.secret.#"]
""")
    assert [(rule.allows, [str(pattern) for pattern in rule.patterns], rule.line) for rule in rules] == [
        (True, ["orders.*", "users.me"], 3),
        (True, ["orders.create", "{claim:team}-orders.create"], 7),
        (False, ["*.admin_*", "*.nuropb_describe"], 18),
        (True, ["prices.#", "users.{user_id}.*"], 22),
        (False, ["prices.secret.#"], 27),
    ]
    assert [bool(rule.methods) for rule in rules] == [True, True, True, False, False]
    assert [bool(rule.topics) for rule in rules] == [False, False, False, True, True]
    assert rules[1].conditions == (
        Condition("scope", "contains", ("orders:write",)),
        Condition("role", "in", ("clerk", "admin")),
        Condition("vip", "equals", (True,)),
    )
    assert rules[1].rate is not None
    assert (rules[1].rate.rate, rules[1].rate.per) == (Rate(5, "min", 10), "process")
    assert [rule.rate for rule in rules if rule is not rules[1]] == [None] * 4
    assert [rule.delivery for rule in rules] == ["close", "close", "close", "latest", "close"]
    assert rules[3].where == "policy.toml:22"


def test_a_rate_is_each_users_and_its_burst_is_its_count_unless_said() -> None:
    (rule,) = parse(RULE + 'rate = "20/s"\n')
    assert rule.rate is not None
    assert (rule.rate.rate, rule.rate.per) == (Rate(20, "s", 20), "user")


@pytest.mark.parametrize("delivery", ["close", "drop_oldest", "latest"])
def test_the_ways_of_delivery(delivery: str) -> None:
    (rule,) = parse(f'[[rule]]\nallow = "subscribe"\ntopics = ["a"]\ndelivery = "{delivery}"\n')
    assert rule.delivery == delivery


WHENS = [
    # text, conditions
    ('when = { scope = { contains = "a" } }', [("scope", "contains", ("a",))]),
    ('when = { scope = { contains = ["a", "b"] } }', [("scope", "contains", ("a", "b"))]),
    ("when = { level = { equals = 3 } }", [("level", "equals", (3,))]),
    ("when = { level = { in = [1, 2.5, false] } }", [("level", "in", (1, 2.5, False))]),
    ('when = { a = { in = ["x"], contains = "y" } }', [("a", "in", ("x",)), ("a", "contains", ("y",))]),
    ('when.role.equals = "admin"', [("role", "equals", ("admin",))]),
    ('when = { role.equals = "admin" }', [("role", "equals", ("admin",))]),
    ('when = { realm_access.roles = { contains = "x" } }', [("realm_access.roles", "contains", ("x",))]),
    ('when = { "realm_access.roles" = { contains = "x" } }', [("realm_access.roles", "contains", ("x",))]),
    ('when = { "https://a.b/c" = { contains = "x" } }', [("https://a.b/c", "contains", ("x",))]),
    ('[rule.when]\nscope.contains = "a"\nrole.in = ["b"]', [("scope", "contains", ("a",)), ("role", "in", ("b",))]),
    ('[rule.when.scope]\ncontains = "a"', [("scope", "contains", ("a",))]),
    ('when = { in = { in = ["x"] } }', [("in", "in", ("x",))]),
]


@pytest.mark.parametrize(("when", "conditions"), WHENS)
def test_conditions_may_be_written_as_toml_writes_tables(when: str, conditions: list[Any]) -> None:
    (rule,) = parse(RULE + when + "\n")
    assert [(each.claim, each.operator, each.values) for each in rule.conditions] == conditions


def test_values_keep_their_type() -> None:
    (rule,) = parse(RULE + "when = { a = { equals = true }, b = { equals = 1 }, c = { equals = 1.0 } }\n")
    assert [type(each.values[0]) for each in rule.conditions] == [bool, int, float]


# --- lines ----------------------------------------------------------------------------------------------

#: Texts, and the lines of their rules.
LINES = [
    (RULE, [1]),
    ("\n\n# a\n" + RULE, [4]),
    (RULE + RULE + "\n" + RULE, [1, 4, 8]),
    ("\r\n".join(["# a", *RULE.splitlines(), "", *RULE.splitlines()]), [2, 6]),
    ("\ufeff" + RULE, [1]),
    (RULE.replace("[[rule]]", '  [[ "rule" ]]  # [[rule]]'), [1]),
    (RULE.replace("[[rule]]", "[['rule']]"), [1]),
    ('[[rule]]\nallow = "call"\nmethods = [\n"a.b", # ]\n\n"c.d",\n]\n' + RULE, [1, 8]),
    ('[[rule]]\nallow = "call"\nmethods = ["""\\\n[[rule]]\\\n.x""", "a.b"]\n' + RULE, [1, 6]),
    (
        "[[rule]]\nmethods = ['''a.b''']\nallow = \"call\"\nwhen.x.equals = '''\n[[rule]]\n\n[[rule]]\n'''\n" + RULE,
        [1, 9],
    ),
    ('[[rule]]\nmethods = ["a.b"]\nallow = "call"\nwhen.x.equals = """\n[[rule]]\n\\"""\n[[rule]]"""\n' + RULE, [1, 8]),
    (RULE + '[rule.when]\na.equals = """\n[[rule]]\n"""\n[rule.when.b]\nequals = 1\n' + RULE, [1, 10]),
]


@pytest.mark.parametrize(("text", "lines"), LINES)
def test_rules_know_their_lines(text: str, lines: list[int]) -> None:
    assert [rule.line for rule in parse(text)] == lines


filler = st.sampled_from(["", "# [[rule]]", "  ", "\t# x"])
pieces = st.sampled_from(
    [
        'methods = ["a.b"]',
        'methods = [\n\n"a.b",\n # [[rule]]\n"c.d"]',
        'methods = ["a.b",\n"""c.d""",\n]',
        "methods = ['''a.b''']",
    ]
)
whens = st.sampled_from(
    [
        "",
        'when = { a = { equals = "[[rule]]" } }',
        'when.a.equals = """\n[[rule]]\n[[rule]]"""',
        "[rule.when]\na.equals = '''\n\n[[rule]]'''\nb.in = [\n[1][0]\n]".replace("[1][0]", "1"),
    ]
)
headers = st.sampled_from(["[[rule]]", "[[ rule ]] # x", '[["rule"]]'])


@given(st.lists(st.tuples(st.lists(filler, max_size=3), headers, pieces, whens), min_size=1, max_size=6))
def test_every_rule_begins_in_the_line_of_its_header(rules: list[tuple[list[str], str, str, str]]) -> None:
    lines: list[str] = []
    expected = []
    for before, header, methods, when in rules:
        lines += before
        expected.append(sum(line.count("\n") + 1 for line in lines) + 1)
        lines += [header, 'allow = "call"', methods, when]
    text = "\n".join(lines)
    tomllib.loads(text)
    assert [rule.line for rule in parse(text)] == expected


# --- mistakes -------------------------------------------------------------------------------------------

CALL = '[[rule]]\nallow = "call"\n'
SUBSCRIBE = '[[rule]]\nallow = "subscribe"\n'
TOOL = '[[rule]]\nallow = "tool"\n'
RULE_KEYS = "allow, deny, methods, topics, when, rate, burst, per, delivery, hints, command"
CONDITION = 'a condition on a claim, with contains, in or equals, such as { role = { equals = "admin" } }'
METHODS = (
    "service.method, with * for any run of characters and {user_id} or {claim:name} for the caller's, "
    "such as orders.* or users.me"
)
TOPICS = (
    "words separated by dots, * for one word, # for any number of words, {user_id} or {claim:name} in a word, "
    "such as orders.# or users.{user_id}.*"
)
RATE = "a whole number up to 1000000 and a unit, as in 20/s, 100/min or 1000/h"
ACTIONS = '"call" or "subscribe" or "tool"'
HINTS = "a table of read_only, destructive, idempotent, open_world, such as { read_only = true }"

HISTORY = 'a table such as { topics = ["orders.#"], for = "1h", bytes = "64MiB" }'
MISTAKES = [
    # text, line, mistake, remedy
    ("", 1, "the file has no rule", "at least one [[rule]]"),
    ("# nothing\n\n", 1, "the file has no rule", "at least one [[rule]]"),
    ("rule = [{}]\n", 1, "'rule' is not a list of tables", "[[rule]]"),
    ("rule = []\n", 1, "'rule' is not a list of tables", "[[rule]]"),
    ('\nrule = [{ allow = "call", methods = ["a.b"] }]\n', 2, "'rule' is not a list of tables", "[[rule]]"),
    ('# x\n[rule]\nallow = "call"\n', 2, "'rule' is not a list of tables", "[[rule]]"),
    ("rule = 5", 1, "'rule' is not a list of tables", "[[rule]]"),
    (RULE + '\n[[rules]]\nallow = "call"\n', 5, "unknown key 'rules'", "[[rule]] or history"),
    ("version = 1\n" + RULE, 1, "unknown key 'version'", "[[rule]] or history"),
    (RULE + "[other]\nallow = 1\n", 4, "unknown key 'other'", "[[rule]] or history"),
    # history
    ("history = 5\n" + RULE, 1, "history is 5", HISTORY),
    ("\nhistory = {}\n" + RULE, 2, "history is empty", HISTORY),
    ('history = { topics = ["a"], keep = 1 }\n' + RULE, 1, "history has 'keep'", HISTORY),
    ('history = { for = "1h" }\n' + RULE, 1, "history: topics is missing", HISTORY),
    ("history = { topics = [1] }\n" + RULE, 1, "history: topics is a list", HISTORY),
    ('history = { topics = ["a"], for = 5 }\n' + RULE, 1, "history: for is 5", TIME_SYNTAX),
    ('history = { topics = ["a"], for = "1y" }\n' + RULE, 1, "history: for is '1y'", TIME_SYNTAX),
    ('history = { topics = ["a"], bytes = "5" }\n' + RULE, 1, "history: bytes is '5'", BYTES_SYNTAX),
    (
        RULE + '[history]\ntopics = ["a*"]\n',
        4,
        "history: 'a*' is not a topic pattern: a word that mixes * or # with other characters",
        "words separated by dots, * for one word, # for any number of words",
    ),
    (
        'history = { topics = ["a.#", "*.b"] }\n' + RULE,
        1,
        "history: '*.b' and 'a.#' overlap",
        "patterns of which each event matches one at most",
    ),
    (RULE + RULE + 'method = ["a.b"]\n', 7, "unknown key 'method' in a rule", RULE_KEYS),
    (RULE + "Rate = 5\n", 4, "unknown key 'Rate' in a rule", RULE_KEYS),
    (RULE + "[rule.where]\nx = 1\n", 4, "unknown key 'where' in a rule", RULE_KEYS),
    (
        RULE + "\n[[rule]]\n",
        5,
        "the rule has neither allow nor deny",
        'one of them, as in allow = "call" or deny = "subscribe"',
    ),
    (
        RULE + 'deny = "call"\n',
        1,
        "the rule has both allow and deny",
        'one of them, as in allow = "call" or deny = "subscribe"',
    ),
    ('[[rule]]\nallow = "read"\nmethods = ["a.b"]\n', 2, "allow is 'read'", ACTIONS),
    ('[[rule]]\nmethods = ["a.b"]\nallow = "Call"\n', 3, "allow is 'Call'", ACTIONS),
    ("[[rule]]\nallow = true\n", 2, "allow is true", ACTIONS),
    ('[[rule]]\ndeny = ["call", "subscribe"]\n', 2, "deny is a list", ACTIONS),
    ("[[rule]]\ndeny = 2024-01-01\n", 2, "deny is a date or a time", ACTIONS),
    (f'[[rule]]\ndeny = "{"x" * 61}"\n', 2, "deny is a long string", ACTIONS),
    # methods and topics
    (CALL, 1, "a rule about calls has no methods", "a list of patterns in methods"),
    (SUBSCRIBE, 1, "a rule about subscriptions has no topics", "a list of patterns in topics"),
    (CALL + 'topics = ["a"]\n', 3, "a rule about calls has topics", "methods in its place"),
    (RULE + 'topics = ["a"]\n', 4, "a rule about calls has topics", "methods in its place"),
    (SUBSCRIBE + 'methods = ["a.b"]\n', 3, "a rule about subscriptions has methods", "topics in its place"),
    (CALL + 'methods = "orders.*"\n', 3, "methods is 'orders.*'", f"a list of {METHODS}"),
    (CALL + "methods = []\n", 3, "methods is empty", f"a list of {METHODS}"),
    (CALL + "methods = { a = 1 }\n", 3, "methods is a table", f"a list of {METHODS}"),
    (CALL + 'methods = ["a.b", 5]\n', 3, "methods contains 5", f"a list of strings: {METHODS}"),
    (CALL + 'methods = ["a.b", ["c.d"]]\n', 3, "methods contains a list", f"a list of strings: {METHODS}"),
    (
        CALL + 'methods = ["orders"]\n',
        3,
        "'orders' is not a pattern for methods: no service and method with a dot between them",
        METHODS,
    ),
    (
        CALL + 'methods = ["", "a.b"]\n',
        3,
        "'' is not a pattern for methods: no service and method with a dot between them",
        METHODS,
    ),
    (
        CALL + 'methods = ["a.{x}"]\n',
        3,
        "'a.{x}' is not a pattern for methods: braces that are not {user_id} or {claim:name}",
        METHODS,
    ),
    (
        CALL + 'methods = ["a.é"]\n',
        3,
        "'a.é' is not a pattern for methods: characters that are not printable ASCII",
        METHODS,
    ),
    (
        CALL + 'methods = ["a.b\\n"]\n',
        3,
        "'a.b\\n' is not a pattern for methods: characters that are not printable ASCII",
        METHODS,
    ),
    (
        CALL + 'methods = ["a b.c"]\n',
        3,
        "'a b.c' is not a pattern for methods: characters that names cannot contain",
        METHODS,
    ),
    (
        CALL + 'methods = ["a.b c"]\n',
        3,
        "'a.b c' is not a pattern for methods: characters that names cannot contain",
        METHODS,
    ),
    (
        CALL + 'methods = ["a.get-all"]\n',
        3,
        "'a.get-all' is not a pattern for methods: characters that names cannot contain",
        METHODS,
    ),
    (
        CALL + 'methods = ["a.b#"]\n',
        3,
        "'a.b#' is not a pattern for methods: characters that names cannot contain",
        METHODS,
    ),
    (CALL + 'methods = ["a._x"]\n', 3, "'a._x' is not a pattern for methods: clients can never call it", METHODS),
    (
        CALL + 'methods = ["*.nuropb_describe"]\n',
        3,
        "'*.nuropb_describe' is not a pattern for methods: clients can never call it",
        METHODS,
    ),
    (
        SUBSCRIBE + 'topics = ["a*"]\n',
        3,
        "'a*' is not a pattern for topics: a word that mixes * or # with other characters",
        TOPICS,
    ),
    (
        SUBSCRIBE + 'topics = ["x",\n"a.{user_id}{claim:team}.#"]\n',
        3,
        "'a.{user_id}{claim:team}.#' is not a pattern for topics: two placeholders in one word; separate them by a dot",
        TOPICS,
    ),
    (
        SUBSCRIBE + 'topics = ["{user_id}-{claim:team}"]\n',
        3,
        "'{user_id}-{claim:team}' is not a pattern for topics: two placeholders in one word; separate them by a dot",
        TOPICS,
    ),
    (
        CALL + 'methods = ["{claim:t}*{user_id}.get"]\n',
        3,
        "'{claim:t}*{user_id}.get' is not a pattern for methods: two placeholders in one word; separate them by a dot",
        METHODS,
    ),
    (SUBSCRIBE + 'topics = [""]\n', 3, "'' is not a pattern for topics: empty", TOPICS),
    (SUBSCRIBE + 'topics = [\n"a",\n"#.#.#"]\n', 3, "'#.#.#' is not a pattern for topics: more than 2 # words", TOPICS),
    # conditions
    (RULE + "when = {}\n", 4, "when is empty", CONDITION),
    (RULE + 'when = "admin"\n', 4, "when is 'admin'", CONDITION),
    (RULE + 'when = { role = "admin" }\n', 4, "when: role is 'admin'", CONDITION),
    (RULE + "when = { role = {} }\n", 4, "when: role is empty", CONDITION),
    (RULE + 'when = { equals = "admin" }\n', 4, "when: equals is 'admin'", CONDITION),
    (RULE + 'when = { role = { is = "admin" } }\n', 4, "when: role.is is 'admin'", CONDITION),
    (RULE + 'when = { role = { equals = "a", not = "b" } }\n', 4, "when: role has 'not'", "contains, in, equals"),
    (
        RULE + 'when = { role = { equals = ["a"] } }\n',
        4,
        "when: role.equals is a list",
        "a string, a number or a boolean",
    ),
    (RULE + 'when = { role = { in = "a" } }\n', 4, "when: role.in is 'a'", "a list of strings, numbers or booleans"),
    (RULE + "when = { role = { in = [] } }\n", 4, "when: role.in is empty", "a list of strings, numbers or booleans"),
    (
        RULE + "when = { role = { in = [[1]] } }\n",
        4,
        "when: role.in is a list",
        "a list of strings, numbers or booleans",
    ),
    (RULE + "when = { a = { equals = nan } }\n", 4, "when: a.equals is a number", "a string, a number or a boolean"),
    (
        RULE + "when = { a = { equals = 2024-01-01 } }\n",
        4,
        "when: a.equals is a date or a time",
        "a string, a number or a boolean",
    ),
    (
        RULE + "when = { a = { contains = [] } }\n",
        4,
        "when: a.contains is empty",
        "a string, a number or a boolean or a list of strings, numbers or booleans",
    ),
    (RULE + "\n[rule.when]\na.b.c = 1\n", 5, "when: a.b.c is 1", CONDITION),
    # rates and delivery
    (RULE + "rate = 20\n", 4, "rate is 20", RATE),
    (RULE + 'rate = "20"\n', 4, "rate is '20'", RATE),
    (RULE + 'rate = "20/s burst 40"\n', 4, "rate is '20/s burst 40'", RATE),
    (RULE + 'rate = "off"\n', 4, "rate is 'off'", RATE),
    (RULE + 'burst = 5\nrate = "20/s"\nper = "app"\n', 6, "per is 'app'", '"user" or "process"'),
    (RULE + 'rate = "20/s"\nburst = 0\n', 5, "burst is 0", "a whole number from 1 to 1000000"),
    (RULE + 'rate = "20/s"\nburst = true\n', 5, "burst is true", "a whole number from 1 to 1000000"),
    (RULE + 'rate = "20/s"\nburst = 1.5\n', 5, "burst is 1.5", "a whole number from 1 to 1000000"),
    (RULE + 'rate = "20/s"\nburst = 1000001\n', 5, "burst is 1000001", "a whole number from 1 to 1000000"),
    (RULE + "burst = 5\n", 4, "burst without a rate", "burst together with rate"),
    (RULE + 'per = "user"\n', 4, "per without a rate", "per together with rate"),
    (
        '[[rule]]\ndeny = "call"\nmethods = ["a.b"]\nrate = "5/s"\n',
        4,
        "rate has no effect in this rule",
        'rate only in rules with allow = "call" or allow = "tool"',
    ),
    (
        SUBSCRIBE + 'topics = ["a"]\nrate = "5/s"\n',
        4,
        "rate has no effect in this rule",
        'rate only in rules with allow = "call" or allow = "tool"',
    ),
    (
        '[[rule]]\ndeny = "tool"\nmethods = ["a.b"]\nhints = { read_only = true }\n',
        4,
        "hints has no effect in this rule",
        'hints only in rules with allow = "tool"',
    ),
    (
        RULE + "command = true\n",
        4,
        "command has no effect in this rule",
        'command only in rules with allow = "tool"',
    ),
    (TOOL + 'topics = ["a"]\n', 3, "a rule about tools has topics", "methods in its place"),
    (TOOL + 'methods = ["a.b"]\nhints = true\n', 4, "hints is true", HINTS),
    (TOOL + 'methods = ["a.b"]\nhints = {}\n', 4, "hints is empty", HINTS),
    (TOOL + 'methods = ["a.b"]\nhints = { safe = true }\n', 4, "hints has 'safe'", HINTS),
    (TOOL + 'methods = ["a.b"]\nhints = { read_only = 1 }\n', 4, "hints: read_only is 1", "true or false"),
    (
        TOOL + 'methods = ["a.b"]\nhints = { read_only = true, destructive = true }\n',
        4,
        "a tool that is read_only cannot be destructive",
        "one of the two",
    ),
    (TOOL + 'methods = ["a.b"]\ncommand = "yes"\n', 4, "command is 'yes'", "true or false"),
    (
        RULE + 'delivery = "latest"\n',
        4,
        "delivery has no effect in this rule",
        'delivery only in rules with allow = "subscribe"',
    ),
    (
        '[[rule]]\ndeny = "subscribe"\ntopics = ["a"]\ndelivery = "close"\n',
        4,
        "delivery has no effect in this rule",
        'delivery only in rules with allow = "subscribe"',
    ),
    (
        SUBSCRIBE + 'topics = ["a"]\ndelivery = "newest"\n',
        4,
        "delivery is 'newest'",
        '"close" or "drop_oldest" or "latest"',
    ),
    # not TOML
    (RULE + "allow\n", 4, "", "TOML"),
    (RULE + 'rate = "5/s\n', 4, "", "TOML"),
    (RULE + "rate = 5/s\n", 4, "", "TOML"),
    (RULE + "when = { a = 1 \n", 4, "", "TOML"),
    (RULE + 'allow = "call"\n', 4, "", "TOML"),
    ("[[rule]]\nmethods = [\n", 2, "", "TOML"),
    ('[[rule]]\nx = """\n\n', 2, "", "TOML"),
    ("a = " + "[" * 100_000, 1, "", "TOML"),
    ("a = " + "1" * 5000, 1, "", "TOML"),
]


@pytest.mark.parametrize(("text", "line", "wrong", "expected"), MISTAKES, ids=range(len(MISTAKES)))
def test_a_mistake_is_one_line_with_its_place_and_what_is_allowed(
    text: str, line: int, wrong: str, expected: str
) -> None:
    message = mistake(text)
    if expected == "TOML":  # the mistake is in the words of Python's TOML reader, which may change
        assert message.startswith(f"policy.toml:{line}: ")
        assert message.endswith("; expected TOML")
    else:
        assert message == f"policy.toml:{line}: {wrong}; expected {expected}"


def test_what_is_not_utf_8_is_a_mistake_in_its_line() -> None:
    assert mistake(b"# a\n# \xff\n") == "policy.toml:2: not UTF-8; expected a TOML file in UTF-8"


def test_the_first_mistake_is_told() -> None:
    assert mistake(RULE + "\n" + CALL + "\n[[rule]]\n").startswith("policy.toml:5: ")


@pytest.mark.parametrize(
    ("table", "topics"),
    [
        ('{ topics = ["orders.#", "prices"] }', [("orders.#", 3600, DEFAULT_BYTES), ("prices", 3600, DEFAULT_BYTES)]),
        ('{ topics = ["a"], for = "30s", bytes = "2MiB" }', [("a", 30, 2**21)]),
        ('{ topics = ["a"], for = "last" }', [("a", None, LAST_BYTES)]),
        ('{ topics = ["a"], for = "7d", bytes = "1GB" }', [("a", 7 * 86400, 10**9)]),
    ],
)
def test_a_file_names_topics_whose_events_are_kept(table: str, topics: list[tuple[str, int | None, int]]) -> None:
    assert list(parse_document(f"history = {table}\n{RULE}".encode(), "policy.toml").history) == topics


def test_a_policy_error_is_a_settings_error() -> None:
    assert issubclass(PolicyError, SettingsError)
    assert issubclass(PolicyError, GatewayError)


def outcome(text: str | bytes) -> tuple[Rule, ...] | str:
    """Return the rules, or the mistake."""
    try:
        return parse(text)
    except PolicyError as error:
        return str(error)


def is_a_line(message: str) -> bool:
    return re.fullmatch(r"policy\.toml:[0-9]+: .+; expected .+", message) is not None


@given(st.text(st.sampled_from("[]{}=\"'#.,\n rule*allowcmethdsx5/"), max_size=60))
def test_whatever_stands_in_the_file_it_is_rules_or_one_line(text: str) -> None:
    for candidate in (text, RULE + text):
        found = outcome(candidate)
        assert not isinstance(found, str) or is_a_line(found)


@given(st.binary(max_size=40))
def test_whatever_bytes_the_file_has(data: bytes) -> None:
    for candidate in (data, RULE.encode() + data):
        found = outcome(candidate)
        assert not isinstance(found, str) or is_a_line(found)


VALUES = [
    *('"call"', '"subscribe"', '["a.b"]', '["a*"]', "5", "true", '"5/s"', "{}", '{ a = { in = ["b"] } }', '"user"'),
    *("1.5", '"latest"'),
]
KEYS = [*RULE_KEYS.split(", "), "x"]


@given(st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES)))
def test_whatever_a_rule_holds(keys: dict[str, str]) -> None:
    text = RULE + "[[rule]]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items())
    tomllib.loads(text)
    found = outcome(text)
    if isinstance(found, str):
        assert is_a_line(found)
        assert 4 <= int(found.split(":")[1]) <= 4 + len(keys)
    else:
        assert [rule.line for rule in found] == [1, 4]


# --- the document ---------------------------------------------------------------------------------------

DOCUMENTS = Path(__file__).resolve().parents[2]
EXAMPLES = [
    block
    for document in ("docs/policy.md", "README.md")
    for block in re.findall(r"```toml\n(.*?)```", (DOCUMENTS / document).read_text(encoding="utf-8"), re.DOTALL)
]


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_the_examples_for_operators_are_policies(example: str) -> None:
    if "[[rule]]" in example:
        assert parse(example)
    else:  # alternative lines of a rule
        for line in example.splitlines() if "when" in example else [example]:
            assert parse(RULE + line)


def test_there_are_examples_for_operators() -> None:
    assert len(EXAMPLES) >= 9

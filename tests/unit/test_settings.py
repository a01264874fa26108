from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nuropb_gateway_asgi.exceptions import GatewayError, SettingsError
from nuropb_gateway_asgi.settings import ENV_PREFIX, Settings, hide_password, host_urls

SECRET = "canary-canary-canary-canary-canary"


def from_env(**variables: str) -> Settings:
    return Settings.from_env({ENV_PREFIX + name: text for name, text in variables.items()})


def refusal(**variables: str) -> str:
    with pytest.raises(SettingsError) as caught:
        from_env(**variables)
    return str(caught.value)


def changed(given: Settings) -> dict[str, Any]:
    """The settings that differ from their defaults; the generated instance id does not count."""
    default = dataclasses.asdict(Settings(instance_id=given.instance_id))
    return {name: value for name, value in dataclasses.asdict(given).items() if value != default[name]}


# --- every setting from the environment -------------------------------------------------------------------------

FIELDS = [
    # variable, its text, default, value
    ("MESH_URL", "amqps://me:pw@mq.example:5671/vh?cafile=/ca.pem", "embedded://demo", None),
    ("MESH_LANE", "PLAIN", "fast", "plain"),
    ("SERVICE_NAME", "web.gateway-1_x", "nuropb-gateway", None),
    ("INSTANCE_ID", "one", ..., None),
    ("PATH", "/gateway/ws", "/ws", None),
    ("PUBLIC_URL", "https://example.com:8443/gateway", "", None),
    ("HTTP", "On", None, "on"),
    ("MCP", "ON", None, "on"),
    ("TCP", "127.0.0.1:8001", "", None),
    ("TCP_CERTIFICATE", "/etc/cert.pem", "", None),
    ("TCP_CERTIFICATE_KEY", "/etc/key.pem", "", None),
    ("JWT_KEY", SECRET, "", None),
    ("JWT_KEY_FILE", os.devnull, "", ""),
    ("JWT_ALGORITHMS", "RS256, RS384", (), ("RS256", "RS384")),
    ("JWT_JWKS_URL", "https://id.example/keys", "", None),
    ("JWT_OIDC_ISSUER", "https://id.example", "", None),
    ("JWT_ALLOW_HTTP", "ON", "off", "on"),
    ("JWT_ISSUER", "https://id.example", "", None),
    ("JWT_AUDIENCE", "web, urn:other", (), ("web", "urn:other")),
    ("JWT_CLIENT_ID", "spa,app", (), ("spa", "app")),
    ("JWT_LEEWAY", "0", 10.0, 0.0),
    ("JWT_USER_CLAIM", "uid", "sub", None),
    ("JWT_USERNAME_CLAIM", "name", "preferred_username", None),
    ("DEVELOPMENT_KEY_FILE", ".nuropb-gateway/development.key", "", None),
    ("JWT_ISSUERS", "/etc/issuers.toml", "", None),
    ("EXPOSE", "orders.*,users.me", None, ("orders.*", "users.me")),
    ("EXPOSE_TOPICS", "orders.#, users.{user_id}.*", None, ("orders.#", "users.{user_id}.*")),
    ("EXPOSE_TOOLS", "orders.get", None, ("orders.get",)),
    ("TARGETED_TOPICS", "users.#, news", ("#",), ("users.#", "news")),
    ("POLICY", "/etc/policy.toml", "", None),
    (
        "ALLOWED_ORIGINS",
        "https://app.example,https://.example.com",
        None,
        ("https://app.example", "https://.example.com"),
    ),
    ("AUTH_COOKIE", "Authorization", "", None),
    ("CORS_HEADERS", "X-Request-Id, X-App", (), ("X-Request-Id", "X-App")),
    ("REQUEST_TIMEOUT", "0.5", 30.0, 0.5),
    ("REQUEST_TIMEOUT_MAX", "86400", 60.0, 86400.0),
    ("MAX_MESSAGE_SIZE", "256", 65536, 256),
    ("MAX_JSON_DEPTH", "256", 32, 256),
    ("MAX_IN_FLIGHT", "1", 64, 1),
    ("MAX_IN_FLIGHT_PER_SERVICE", "1", 16, 1),
    ("RATE_LIMIT", "5/min", "2000/s burst 10000", None),
    ("RATE_LIMIT_USER", "off", "5000/s burst 25000", None),
    ("MAX_CONNECTIONS", "1000000", 10000, 1000000),
    ("MAX_CONNECTIONS_PER_USER", "1", 100, 1),
    ("MAX_CONNECTIONS_PER_ADDRESS", "50", 0, 50),
    ("OVERLOAD_DELAY", "0", 0.05, 0.0),
    ("HANDSHAKE_RATE", "100/s", "500/s burst 5000", None),
    ("HANDSHAKE_RATE_PER_ADDRESS", "off", "50/s burst 1000", None),
    ("OUTBOX_SIZE", "65536", 1048576, 65536),
    ("RESUME_WINDOW", "5", 60.0, 5.0),
    ("RESUME_BUFFER", "1024", 262144, 1024),
    ("RESUME_MEMORY", "4096", 67108864, 4096),
    ("HISTORY", "orders.#:1h, prices.*:last", (), ("orders.#:1h", "prices.*:last")),
    ("HISTORY_MAX", "100000", 1000, 100000),
    ("WRITE_TIMEOUT", "1e-3", 10.0, 0.001),
    ("MAX_CONNECTION_LIFETIME", "2592000", 86400.0, 2592000.0),
    ("AUTH_TIMEOUT", "5", 10.0, 5.0),
    ("PING_INTERVAL", " 20 ", 25.0, 20.0),
    ("PING_TIMEOUT", "5.5", 10.0, 5.5),
    ("DRAIN_TIMEOUT", "0", 10.0, 0.0),
    ("SHUTDOWN_DELAY", "5", 0.0, 5.0),
    ("SERVER_PROTOCOLS", "OFF", "on", "off"),
    ("CONSOLE", "On", "auto", "on"),
    ("PRESENCE_EVENTS", "ON", "off", "on"),
    ("ERROR_DETAILS", "ALL", None, "all"),
    ("LOG_TOOL_ARGUMENTS", "On", "off", "on"),
    ("LOG_LEVEL", "Debug", "info", "debug"),
    ("LOG_FORMAT", "json", "text", "json"),
    ("TRACING", "on", "off", "on"),
    ("LOG_CONFIG", "/etc/nuropb-gateway/logging.json", "", "/etc/nuropb-gateway/logging.json"),
    ("ACCESS_LOG", "Calls", "off", "calls"),
    ("ACCESS_LOG_RATE", "1", 100, 1),
    ("AUDIT_LOG", "/var/log/audit.jsonl", "", None),
    ("ADMIN_LISTEN", "unix:/run/nuropb/admin.sock", "", None),
    ("ADMIN_TOKEN", SECRET, "", None),
]


def test_every_field_is_in_the_table() -> None:
    assert [name.lower() for name, *_ in FIELDS] == [field.name for field in dataclasses.fields(Settings)]


@pytest.mark.parametrize(("name", "text", "default", "value"), FIELDS)
def test_a_variable_sets_its_field_and_no_other(name: str, text: str, default: Any, value: Any) -> None:
    expected = text if value is None else value
    given = from_env(**{name: text})  # of an empty file, in the case of the key's
    found = getattr(given, name.lower())
    assert found == expected
    assert type(found) is type(expected)
    if default is not ...:
        assert changed(given) == ({} if expected == default else {name.lower(): expected})
        assert getattr(Settings(), name.lower()) == default


@pytest.mark.parametrize(("name", "text", "default", "value"), FIELDS)
def test_a_setting_of_code_is_the_same_as_of_the_environment(name: str, text: str, default: Any, value: Any) -> None:
    fields: dict[str, Any] = {"instance_id": "one", name.lower(): text if value is None else value}
    assert Settings(**fields) == from_env(**{"INSTANCE_ID": "one", name: text})


def test_nothing_set_is_the_defaults() -> None:
    assert changed(from_env()) == {}
    assert from_env().embedded
    assert not from_env(MESH_URL="amqp://mq").embedded


def test_each_process_has_an_instance_id_of_its_own() -> None:
    assert Settings().instance_id != Settings().instance_id


def test_the_environment_of_the_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in list(os.environ):
        if variable.startswith(ENV_PREFIX):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("NUROPB_GATEWAY_PATH", "/from/the/process")
    assert changed(Settings.from_env()) == {"path": "/from/the/process"}


@pytest.mark.parametrize("name", [name for name, _, default, _ in FIELDS if isinstance(default, str | int | float)])
def test_an_empty_variable_is_not_set(name: str) -> None:
    assert changed(from_env(**{name: ""})) == {}


@pytest.mark.parametrize("name", ["EXPOSE", "EXPOSE_TOPICS", "ALLOWED_ORIGINS", "JWT_ALGORITHMS"])
@pytest.mark.parametrize("text", ["", " ", ",", " , "])
def test_an_empty_list_is_a_list(name: str, text: str) -> None:
    assert getattr(from_env(**{name: text}), name.lower()) == ()


@pytest.mark.parametrize("value", [["a", "b"], ("a", "b"), "a,b", " a ,, b,"])
def test_a_list_is_any_sequence_of_strings(value: Any) -> None:
    assert Settings(expose=value).expose == ("a", "b")


def test_a_policy_goes_with_lists_that_expose_nothing() -> None:
    given = from_env(POLICY="p.toml", EXPOSE="", EXPOSE_TOPICS=",")
    assert (given.policy, given.expose, given.expose_topics) == ("p.toml", (), ())


def test_settings_are_given_by_name() -> None:
    with pytest.raises(TypeError):
        Settings("amqp://mq")  # type: ignore[call-arg]


def test_settings_do_not_change() -> None:
    given = Settings(expose=["a.*"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        given.path = "/other"  # type: ignore[misc]
    assert hash(given) == hash(dataclasses.replace(given))


# --- variables of no setting ------------------------------------------------------------------------------------

KUBERNETES = {
    "SERVICE_HOST": "10.0.0.1",
    "SERVICE_PORT": "8000",
    "SERVICE_PORT_HTTP": "8000",
    "PORT": "tcp://10.0.0.1:8000",
    "PORT_8000_TCP": "tcp://10.0.0.1:8000",
    "PORT_8000_TCP_PROTO": "tcp",
    "PORT_8000_TCP_PORT": "8000",
    "PORT_8000_TCP_ADDR": "10.0.0.1",
}


def test_variables_that_kubernetes_sets_for_a_service_are_ignored(caplog: pytest.LogCaptureFixture) -> None:
    assert changed(from_env(**KUBERNETES)) == {}
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("ALLOWED_ORIGN", "ALLOWED_ORIGINS"),
        ("ALLOW_ORIGINS", "ALLOWED_ORIGINS"),
        ("MAX_CONNECTION", "MAX_CONNECTIONS"),
        ("JWTKEY", "JWT_KEY"),
        ("JWT_AUDIENC", "JWT_AUDIENCE"),
    ],
)
def test_a_misspelt_variable_is_ignored_with_a_warning(name: str, meant: str, caplog: pytest.LogCaptureFixture) -> None:
    assert changed(from_env(**{name: SECRET})) == {}
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"{ENV_PREFIX}{name} " in caplog.text
    assert f"is {ENV_PREFIX}{meant} meant?" in caplog.text
    assert SECRET not in caplog.text


def test_variables_without_the_prefix_are_ignored(caplog: pytest.LogCaptureFixture) -> None:
    others = {"PATH": "/bin", "NUROPB_PATH": "x", "NUROPB_GATEWAYPATH": "x", "xNUROPB_GATEWAY_PATH": "x"}
    assert changed(Settings.from_env(others)) == {}
    assert not caplog.records


# --- wrong values -----------------------------------------------------------------------------------------------

NO_STRING = "a value of type NoneType; expected a string"
LIST = "not a list of strings; expected a list, comma-separated in the environment"
URL = "not a URL; expected amqp://user:password@host:5672/vhost, with special characters percent-encoded"
SCHEME = "unknown scheme; expected amqp://, amqps:// or embedded://demo"
NO_MESH = "unknown embedded mesh; expected embedded://demo"
NO_HOST = "no host; expected amqp://user:password@host:5672/vhost"
NAME = "not a name; expected 1 to 100 letters, digits, '.', '_' or '-', beginning with a letter or digit"
PATH = "not a path; expected a slash, and then characters of a URL's path, as in /ws"
PUBLIC = "not a URL of clients; expected https://host[:port][/prefix]"
COOKIE = "not a cookie name; expected a token of RFC 6265, such as Authorization"
WHOLE = "not a number; expected a whole number"
SECONDS = "not a number; expected a number of seconds"
UP_TO_A_DAY = "expected a number of seconds above 0 and up to 86400"
FROM_ZERO = "expected a number of seconds from 0 to 86400"

RATE = "expected a rate such as 200/s or 200/s burst 400, or off"
WITH_POLICY = (
    "set together with POLICY, and would allow more than the file says; expected one of the two; "
    "the same patterns can be a [[rule]] in the file"
)

WHOLE_NUMBERS = [
    ("MAX_MESSAGE_SIZE", 256),
    ("MAX_IN_FLIGHT", 1),
    ("MAX_IN_FLIGHT_PER_SERVICE", 1),
    ("MAX_CONNECTIONS", 1),
    ("MAX_CONNECTIONS_PER_USER", 1),
    ("OUTBOX_SIZE", 1024),
]
TIMES = ["REQUEST_TIMEOUT", "REQUEST_TIMEOUT_MAX", "WRITE_TIMEOUT", "AUTH_TIMEOUT", "PING_INTERVAL", "PING_TIMEOUT"]

WRONG = [
    # variable, its text, the fault and the expected value
    *(
        ("MESH_URL", text, SCHEME)
        for text in ("mq", "//mq/", "http://mq/", "amqp+tls://mq/", "file:///x", "localhost:5672")
    ),
    *(("MESH_URL", text, NO_MESH) for text in ("embedded://", "embedded:demo", "embedded://other", "EMBEDDED://demo")),
    ("MESH_URL", "embedded://demo/x", NO_MESH),
    *(("MESH_URL", text, NO_HOST) for text in ("amqp:", "amqp://", "amqp:///vhost", "amqp://:5672", "amqp://me:pw@/")),
    *(
        ("MESH_URL", f"amqp://{host}", URL)
        for host in ("[::1", "::1]", "mq:port", "mq:65536", "mq:-1", "mq:0", "mq:5672x")
    ),
    *(("MESH_URL", f"amqp://me:{SECRET}{char}pw@mq/vhost", URL) for char in "/?#"),
    *(("MESH_URL", f"amqp://me:{SECRET}{char}pw@mq/vhost", URL) for char in " \t\n\r\0\x7f\u2028"),
    *(("MESH_URL", f"amqp://me:12{char}{SECRET}@mq/vhost", URL) for char in "/?#[]"),
    *(("MESH_URL", f"{char}amqp://mq/", URL) for char in " \n"),
    ("MESH_URL", "amqp://mq/vhost\n", URL),
    *(
        ("MESH_URL", f"amqp://{hosts}", URL.replace("host:5672", "one:5672,two:5672"))
        for hosts in (
            "one:5672,two:port",
            "one:0,two",
            "one, two",
            "one,[::1",
            f"me:{SECRET}/pw@one,two/vhost",
            f"me:pw@one,you:{SECRET}@two/vhost",
            f"me:pw@one,amqp://you:{SECRET}@two/vhost",
        )
    ),
    *(("MESH_URL", f"amqp://me:pw@{hosts}/vhost", NO_HOST) for hosts in (",", "one,", ",two", "one,,two", "one,:5672")),
    ("MESH_URL", "embedded://demo,demo", NO_MESH),
    *(("SERVICE_NAME", text, NAME) for text in (" ", "a b", "-a", ".a", "a/b", "é", "a" * 101, "a\n", "a*", "a#")),
    *(("INSTANCE_ID", text, NAME) for text in ("_a", "a:b", "\u0661")),
    *(("PATH", text, PATH) for text in ("ws", " /ws", "http://host/ws", "/ws\n", "/ws?x", "/ws#x", "/{x}", "/é")),
    *(("HTTP", text, "unknown choice; expected one of on, off") for text in ("auto", "1", "yes", "none")),
    *(
        ("TCP", text, "not an address; expected host:port, as in 127.0.0.1:8001 or [::1]:8001")
        for text in ("8001", ":8001", "::1:8001", "[::1]", "[host]:1", "host:", "host:65536", "host:-1", "tcp://h:1")
    ),
    *(
        ("PUBLIC_URL", text, PUBLIC)
        for text in ("x", "ws://a", "https://", "https://u:p@a", "https://a/?b", "http://a/\n")
    ),
    *(("AUTH_COOKIE", text, COOKIE) for text in (" ", "a b", "a=b", "a;b", "a,b", '"a"', "é", "a\n")),
    *((name, text, WHOLE) for name, _ in WHOLE_NUMBERS for text in (SECRET, "1.5", "1e3", "0x10", "nan", "inf")),
    *((name, "9" * 5000, WHOLE) for name, _ in WHOLE_NUMBERS),
    *(
        (name, f"{number}", f"{number} is out of range; expected a whole number, {minimum} or more")
        for name, minimum in WHOLE_NUMBERS
        for number in (minimum - 1, 0, -1, -(10**30))
    ),
    ("MAX_JSON_DEPTH", "x", WHOLE),
    ("MAX_JSON_DEPTH", "2", "2 is out of range; expected a whole number from 3 to 256"),
    ("MAX_JSON_DEPTH", "257", "257 is out of range; expected a whole number from 3 to 256"),
    *(
        (name, text, SECONDS)
        for name in [*TIMES, "JWT_LEEWAY", "DRAIN_TIMEOUT"]
        for text in (SECRET, "10s", "1,5", "1:00")
    ),
    *(
        (name, text, f"{float(text)} is out of range; {UP_TO_A_DAY}")
        for name in TIMES
        for text in ("0", "-0.0", "-1", "86400.1", "1e999", "inf", "-inf", "nan")
    ),
    *(
        (name, text, f"{float(text)} is out of range; {FROM_ZERO}")
        for name in ("JWT_LEEWAY", "DRAIN_TIMEOUT")
        for text in ("-0.1", "86401", "inf", "nan")
    ),
    *(
        (name, text, f"not a rate; {RATE}")
        for name in ("RATE_LIMIT", "RATE_LIMIT_USER")
        for text in ("200", "0/s", "200/d", "200/s ", "OFF", "no", "200/s burst", "1000001/s")
    ),
    *(
        ("RATE_LIMIT", f"200/s burst {text}", f"the burst is not a whole number from 1 to 1000000; {RATE}")
        for text in ("0", "-1", "x", "1.5")
    ),
    ("CORS_HEADERS", "X-One,Not One", "not a list of header names; expected names with commas, as in X-Request-Id"),
    ("ERROR_DETAILS", SECRET, "unknown choice; expected one of nuropb, all, none"),
    ("LOG_LEVEL", "warn", "unknown choice; expected one of debug, info, warning, error, critical"),
    ("LOG_FORMAT", "JSON5", "unknown choice; expected one of text, json"),
]


@pytest.mark.parametrize(("name", "text", "reason"), WRONG)
def test_a_wrong_value_is_refused_in_one_line_with_the_variable_and_the_expected_value(
    name: str, text: str, reason: str
) -> None:
    message = refusal(**{name: text})
    assert message == f"NUROPB_GATEWAY_{name}: {reason}"
    assert "\n" not in message


OF_CODE = [
    # field, value, the fault and the expected value
    *((name, None, NO_STRING) for name in ("mesh_url", "jwt_key", "path", "auth_cookie")),
    ("jwt_key", SECRET.encode(), "a value of type bytes; expected a string"),
    ("jwt_key_file", Path("/key"), f"a value of type {type(Path()).__name__}; expected a string"),
    ("mesh_url", "", SCHEME),
    ("rate_limit", "", f"not a rate; {RATE}"),
    ("rate_limit", None, "a value of type NoneType; expected a string"),
    ("handshake_rate", "fast", f"not a rate; {RATE}"),
    ("handshake_rate_per_address", "5/day", f"not a rate; {RATE}"),
    ("service_name", "", NAME),
    ("instance_id", "", NAME),
    ("path", "", PATH),
    ("expose", 5, LIST),
    ("expose", {"a.*"}, LIST),
    ("expose", b"a.*", LIST),
    ("expose", ["a.*", None], LIST),
    ("expose", [["a.*"]], LIST),
    ("jwt_algorithms", None, LIST),
    ("jwt_algorithms", {"HS256": True}, LIST),
    ("max_in_flight", None, "a value of type NoneType; expected a whole number"),
    ("max_in_flight", True, "a value of type bool; expected a whole number"),
    ("max_in_flight", 1.5, "not a whole number; expected a whole number"),
    ("max_in_flight", math.inf, WHOLE),
    ("max_in_flight", -math.inf, WHOLE),
    ("max_in_flight", math.nan, WHOLE),
    ("max_in_flight", [1], "a value of type list; expected a whole number"),
    ("request_timeout", False, "a value of type bool; expected a number of seconds"),
    ("request_timeout", 10**400, SECONDS),
    ("request_timeout", math.nan, f"nan is out of range; {UP_TO_A_DAY}"),
    ("request_timeout", 1j, "a value of type complex; expected a number of seconds"),
    ("log_level", 10, "unknown choice; expected one of debug, info, warning, error, critical"),
    ("log_format", ["text"], "unknown choice; expected one of text, json"),
]


@pytest.mark.parametrize(("name", "value", "reason"), OF_CODE)
def test_a_value_of_a_wrong_type_is_refused_in_the_same_way(name: str, value: Any, reason: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings(**{name: value})
    assert str(caught.value) == f"NUROPB_GATEWAY_{name.upper()}: {reason}"


@pytest.mark.parametrize(
    ("variables", "default", "maximum"),
    [
        ({"REQUEST_TIMEOUT_MAX": "29"}, 29.0, 29.0),
        ({"REQUEST_TIMEOUT": "61"}, 61.0, 61.0),
        ({"REQUEST_TIMEOUT": "40", "REQUEST_TIMEOUT_MAX": "50"}, 40.0, 50.0),
    ],
)
def test_the_timeout_that_was_not_set_follows_the_one_that_was(
    variables: dict[str, str], default: float, maximum: float
) -> None:
    given = from_env(**variables)
    assert (given.request_timeout, given.request_timeout_max) == (default, maximum)


@pytest.mark.parametrize("value", [64, 64.0, "64", " 64 "])
def test_a_whole_number_may_be_written_in_several_ways(value: Any) -> None:
    found = Settings(max_in_flight=value).max_in_flight
    assert found == 64
    assert type(found) is int


TOGETHER = [
    # variables, the variable that the message names, the fault and the expected value
    ({"POLICY": "p.toml", "EXPOSE": "a.*"}, "EXPOSE", WITH_POLICY),
    ({"POLICY": "p.toml", "EXPOSE_TOPICS": "a.#"}, "EXPOSE_TOPICS", WITH_POLICY),
    (
        {"REQUEST_TIMEOUT": "31", "REQUEST_TIMEOUT_MAX": "29"},
        "REQUEST_TIMEOUT",
        "exceeds REQUEST_TIMEOUT_MAX; expected at most 29.0",
    ),
    (
        {"AUTH_COOKIE": "Authorization", "ALLOWED_ORIGINS": "https://app.example,*"},
        "ALLOWED_ORIGINS",
        "'*' together with AUTH_COOKIE would let any page act for its visitors; expected a list of origins",
    ),
]


@pytest.mark.parametrize(("variables", "name", "reason"), TOGETHER)
def test_values_that_do_not_go_together_are_refused(variables: dict[str, str], name: str, reason: str) -> None:
    assert refusal(**variables) == f"NUROPB_GATEWAY_{name}: {reason}"


@pytest.mark.parametrize(
    "variables",
    [
        {"REQUEST_TIMEOUT": "60"},
        {"OUTBOX_SIZE": "1024"},
        {"MAX_MESSAGE_SIZE": "2000000"},
        {"ALLOWED_ORIGINS": "*"},
        {"AUTH_COOKIE": "Authorization"},
        {"AUTH_COOKIE": "Authorization", "ALLOWED_ORIGINS": "https://app.example"},
        {"MESH_URL": "amqp://[::1]:5672/"},
        {"MESH_URL": "amqp://me:p%2Fw%40@mq/%2F"},
        {"MESH_URL": "AMQP://mq"},
        {"MESH_URL": "AMQP://one,two"},
        {"MESH_URL": "amqps://me:p,w@one:5671,[::1]:5671,10.0.0.3/vhost?cafile=/ca.pem"},
        {"PATH": "/"},
        {"PATH": "/a/b-c_d~e.f%20g@h:i/"},
    ],
)
def test_values_at_the_limits_are_accepted(variables: dict[str, str]) -> None:
    assert set(changed(from_env(**variables))) == {name.lower() for name in variables}


@given(st.sampled_from([name for name, *_ in FIELDS]), st.text(st.characters(exclude_characters="\0"), min_size=1))
def test_any_text_is_a_value_or_one_line(name: str, text: str) -> None:
    try:
        given_settings = from_env(**{name: text})
    except SettingsError as error:
        message = str(error)
        # Of two contradicting settings, the message may name the setting that has its default.
        other = {"REQUEST_TIMEOUT_MAX": "REQUEST_TIMEOUT", "MAX_MESSAGE_SIZE": "OUTBOX_SIZE"}.get(name, name)
        assert message.startswith((f"NUROPB_GATEWAY_{name}: ", f"NUROPB_GATEWAY_{other}: "))
        assert "\n" not in message
    else:
        assert repr(given_settings).startswith("Settings(")


def test_a_refusal_is_a_value_error_and_a_gateway_error() -> None:
    with pytest.raises(ValueError, match="NUROPB_GATEWAY_PATH"):
        Settings(path="ws")
    with pytest.raises(GatewayError):
        Settings(path="ws")


# --- secrets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        (b"s", "s"),
        (b"s\n", "s"),
        (b"s\r\n", "s"),
        (b"s\n\n", "s\n"),
        (b" s \n", " s "),
        ("é\n".encode(), "é"),
        (b"-----BEGIN-----\nAA\n-----END-----\n", "-----BEGIN-----\nAA\n-----END-----"),
    ],
)
def test_a_key_is_read_from_its_file_but_for_one_line_break(tmp_path: Path, content: bytes, secret: str) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    assert from_env(JWT_KEY_FILE=str(file)).jwt_key == secret
    assert Settings(jwt_key_file=str(file)).jwt_key == secret


def test_the_url_of_the_mesh_is_read_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("amqp://me:pw@mq/\n")
    assert changed(from_env(MESH_URL_FILE=str(file))) == {"mesh_url": "amqp://me:pw@mq/"}
    assert changed(from_env(MESH_URL_FILE="")) == {}


@pytest.mark.parametrize("name", ["JWT_KEY", "MESH_URL"])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_secret_that_is_given_twice_is_refused(name: str, reverse: bool, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET)
    variables = [(name, SECRET), (f"{name}_FILE", str(file))]
    message = refusal(**dict(reversed(variables) if reverse else variables))
    assert message == f"NUROPB_GATEWAY_{name}: given twice, as a value and as a file; expected one of the two"


@pytest.mark.parametrize("name", ["JWT_KEY_FILE", "MESH_URL_FILE", "ADMIN_TOKEN_FILE"])
@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("missing", "FileNotFoundError"),
        ("", "IsADirectoryError"),
        ("latin", "UnicodeDecodeError"),
        ("latin/x", "NotADirectoryError"),
        ("a\0b", "ValueError"),
        ("a" * 300, "OSError"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_one_line(name: str, path: str, error: str, tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(SECRET.encode() + b"\xe9")
    assert refusal(**{name: f"{tmp_path}/{path}"}) == (
        f"NUROPB_GATEWAY_{name}: the file cannot be read ({error}); expected the name of a readable text file"
    )


def test_a_copy_of_settings_keeps_the_key_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(SECRET)
    given = Settings(jwt_key_file=str(file))
    assert dataclasses.replace(given, path="/other").jwt_key == SECRET


@pytest.mark.parametrize("text", ["9100", "unix:", "unix:admin.sock", "127.0.0.1:0", "127.0.0.1:65536", "host"])
def test_the_admin_api_needs_an_address(text: str) -> None:
    assert refusal(ADMIN_LISTEN=text, ADMIN_TOKEN=SECRET).startswith("NUROPB_GATEWAY_ADMIN_LISTEN: not an address")


def test_the_admin_api_at_a_port_needs_a_token() -> None:
    assert refusal(ADMIN_LISTEN="127.0.0.1:9100").startswith("NUROPB_GATEWAY_ADMIN_TOKEN: not set")
    assert from_env(ADMIN_LISTEN="[::1]:9100", ADMIN_TOKEN=SECRET).admin_address == ("::1", 9100)
    assert from_env(ADMIN_LISTEN="unix:/run/a.sock").admin_address == "/run/a.sock"
    assert Settings().admin_address is None


@pytest.mark.parametrize("token", ["hunter2", "x" * 1025, f"{SECRET} {SECRET}", f"{SECRET}\n{SECRET}", f"{SECRET}é"])
def test_an_admin_token_that_can_be_guessed_or_cannot_be_sent_is_refused(token: str) -> None:
    said = refusal(ADMIN_LISTEN="127.0.0.1:9100", ADMIN_TOKEN=token)
    assert said.startswith("NUROPB_GATEWAY_ADMIN_TOKEN: too short, or with characters")
    assert token not in said


def test_an_admin_token_comes_from_a_file_and_is_shown_nowhere(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{SECRET}\n")
    given = from_env(ADMIN_LISTEN="127.0.0.1:9100", ADMIN_TOKEN_FILE=str(tmp_path / "token"), JWT_KEY=SECRET)
    assert given.admin_token == SECRET
    assert SECRET not in repr(given)
    assert SECRET not in json.dumps(given.shown())
    assert (given.shown()["admin_token"], given.shown()["jwt_key"]) == ("<hidden>", "<hidden>")


def test_repr_shows_changed_settings_and_no_secret(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(SECRET)
    assert repr(Settings(instance_id="one")) == "Settings(instance_id='one')"
    assert repr(Settings(instance_id="one", jwt_key=SECRET, expose=["a.*"], path="/x")) == (
        "Settings(instance_id='one', path='/x', jwt_key='<hidden>', expose=('a.*',))"
    )
    url = f"//me:{SECRET}@host/x"
    given = Settings(mesh_url=f"amqp:{url}", jwt_jwks_url=f"https:{url}", jwt_oidc_issuer="https://[", jwt_key=SECRET)
    for text in (repr(given), str(given), f"{given}", repr(Settings(jwt_key_file=str(file)))):
        assert SECRET not in text
    assert "mesh_url='amqp://me:***@host/x', jwt_key='<hidden>', jwt_jwks_url='https://me:***@host/x'" in (
        repr(given).replace(f"instance_id='{given.instance_id}', ", "")
    )


@pytest.mark.parametrize("name", [name for name, *_ in FIELDS if not name.endswith("_FILE")])
def test_no_refusal_quotes_a_secret(name: str) -> None:
    for text in (SECRET, f"amqp://me:{SECRET}@", f"amqp://me:{SECRET}@[", f"amqp://{SECRET}:{SECRET}"):
        try:
            from_env(**{"JWT_KEY": SECRET, name: text})
        except SettingsError as error:
            chain: list[BaseException | None] = [error, error.__context__]
            shown = str(chain) if name == "MESH_URL" else str(error)
            assert SECRET not in shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://host", "amqp://host"),
        ("amqp://me@host/", "amqp://me@host/"),
        ("amqp://me:pw@host:5672/vh?x=1", "amqp://me:***@host:5672/vh?x=1"),
        ("amqp://me:@host/", "amqp://me:***@host/"),
        ("amqp://:pw@host/", "amqp://:***@host/"),
        ("amqp://me:me@me/me", "amqp://me:***@me/me"),
        ("amqp://me:p:w@host/", "amqp://me:***@host/"),
        ("amqp://me:p@w@host/", "amqp://me:***@host/"),
        ("amqp://me:pw@[::1]:5672/", "amqp://me:***@[::1]:5672/"),
        ("amqp://me:pw@[::1", "<hidden>"),
        ("amqp://me:pw@one:1,[::1]:2,three/vh?x=1", "amqp://me:***@one:1,[::1]:2,three/vh?x=1"),
        ("amqp://me:p,w@one,two", "amqp://me:***@one,two"),
        ("amqp://me@one,two/", "amqp://me@one,two/"),
        ("amqp://one,two/", "amqp://one,two/"),
        ("embedded://demo", "embedded://demo"),
    ],
)
def test_a_password_in_a_url_is_hidden(url: str, shown: str) -> None:
    assert hide_password(url) == shown


@pytest.mark.parametrize(
    ("url", "each"),
    [
        ("amqp://me:pw@one:1/vh", ["amqp://me:pw@one:1/vh"]),
        ("amqp://me:p,w@one/vh", ["amqp://me:p,w@one/vh"]),
        ("amqp://one/v,h?x=a,b", ["amqp://one/v,h?x=a,b"]),
        ("amqps://m:p@one:1,two/vh?x=1", ["amqps://m:p@one:1/vh?x=1", "amqps://m:p@two/vh?x=1"]),
        ("amqp://[::1]:1,[::2],three", ["amqp://[::1]:1", "amqp://[::2]", "amqp://three"]),
        ("amqp://one,two?x=1", ["amqp://one?x=1", "amqp://two?x=1"]),
        ("embedded://demo", ["embedded://demo"]),
    ],
)
def test_a_url_has_a_url_for_each_of_its_hosts(url: str, each: list[str]) -> None:
    assert list(host_urls(url)) == each


FORK = """
import dataclasses, os
from nuropb_gateway_asgi import Settings

random, chosen = Settings(), Settings(instance_id="one")
each = (random, dataclasses.replace(random), chosen)
read, write = os.pipe()
if os.fork() == 0:
    for settings in each:
        settings.renew_instance_id()
    os.write(write, " ".join(settings.instance_id for settings in each).encode())
    os._exit(0)
os.wait()
before = random.instance_id
random.renew_instance_id()
assert random.instance_id == before
print(before, os.read(read, 1000).decode())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_process_draws_a_random_instance_id_anew_and_keeps_a_chosen_one() -> None:
    run = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, check=True, timeout=60)
    parent, child, copied, chosen = run.stdout.split()
    assert len({parent, child, copied}) == 3
    assert chosen == "one"


@pytest.mark.parametrize(
    ("query", "fact"),
    [
        ("heartbeat=soon", "heartbeat: not a valid value; expected whole seconds"),
        ("heartbeat=-1", "heartbeat: not a valid value"),
        ("heartbeat=", "heartbeat: not a valid value"),
        ("heartbeat=1.5", "heartbeat: not a valid value"),
        ("heartbeat=10&heartbeat=20", "heartbeat: given twice"),
        ("no_verify_ssl=false", "no_verify_ssl: not a valid value; expected 0, or 1 to accept every certificate"),
        ("cafile=", "cafile: not a valid value"),
        ("timeout=1s", "timeout: not a valid value"),
        ("auth=magic", "auth: not a valid value"),
    ],
)
def test_a_bad_parameter_of_the_mesh_url_is_an_error_in_one_line(query: str, fact: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings(mesh_url=f"amqps://user:hunter2@mq/v?{query}")
    assert str(caught.value).startswith(f"NUROPB_GATEWAY_MESH_URL: {fact}")
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_good_parameters_of_the_mesh_url_are_taken() -> None:
    Settings(mesh_url="amqps://mq/v?heartbeat=30&no_verify_ssl=0&cafile=/etc/ca.pem&certfile=a&keyfile=b&auth=EXTERNAL")


def test_an_unknown_parameter_of_the_mesh_url_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    Settings(mesh_url="amqps://mq/v?cafiel=/etc/ca.pem&retries=3")
    assert "MESH_URL: 'cafiel' is not a parameter and is ignored; is cafile meant?" in caplog.text
    assert "MESH_URL: 'retries' is not a parameter and is ignored" in caplog.text

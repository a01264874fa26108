from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest

from nuropb_gateway_asgi.authentication import Authenticator, Identity, JWTAuthenticator, issue_token
from nuropb_gateway_asgi.authentication.revocation import Revocation
from nuropb_gateway_asgi.authorization import AuthorizedPolicy, ExposePolicy, Policy, RulePolicy, completed
from nuropb_gateway_asgi.authorization.explain import explain, render
from nuropb_gateway_asgi.authorization.syntax import parse_policy
from nuropb_gateway_asgi.cli.explain import print_explanation, read_token
from nuropb_gateway_asgi.exceptions import AuthenticationUnavailable
from nuropb_gateway_asgi.handler_manager import HandlerManager
from nuropb_gateway_asgi.service_mesh_manager import ServiceMeshManager
from nuropb_gateway_asgi.settings import Settings
from nuropb_gateway_asgi.wire.interface import CallMessage, Reply

from .fakes import FakeMesh

SECRET = "a secret that is long enough to sign with, and no longer"
POLICY = RulePolicy(
    parse_policy(
        b"""\
[[rule]]
allow = "call"
methods = ["orders.*"]

[[rule]]
allow = "call"
methods = ["orders.create"]
when = { scope = { contains = "write" } }
rate = "5/min"

[[rule]]
deny = "call"
methods = ["orders.create"]

[[rule]]
allow = "subscribe"
topics = ["orders.#"]
delivery = "latest"
""",
        "policy.toml",
    )
)


class AnsweringMesh(FakeMesh):
    """A mesh with one service and its description, or without any service."""

    def __init__(self, methods: Mapping[str, Any] | None = None, *, there: bool = True, **more: Any) -> None:
        super().__init__()
        self.result = {"service_version": "1.2"} | ({} if methods is None else {"methods": dict(methods)}) | more
        self.there = there

    def send(self, message: CallMessage) -> None:
        super().send(message)
        assert message.method == "nuropb_describe"
        if not self.there:
            self.told.on_returned(message.correlation_id)
        elif self.told.expects(message.correlation_id):
            self.told.on_reply(Reply(message.correlation_id, json.dumps(self.result).encode()))


async def explained(
    name: str = "orders.get",
    *,
    token: str | None = None,
    action: str = "call",
    policy: Policy = POLICY,
    mesh: FakeMesh | None = None,
    settings: Settings | None = None,
    authenticator: Authenticator | None = None,
    **claims: Any,
) -> dict[str, Any]:
    mesh = AnsweringMesh({"get": {}, "create": {}}) if mesh is None else mesh
    settings = settings or Settings()
    handlers = HandlerManager(settings, authenticator or JWTAuthenticator(key=SECRET), policy)
    return await explain(
        settings,
        handlers.authenticator,
        handlers.revocations,
        policy,
        ServiceMeshManager(settings, handlers, mesh, policy),
        token=issue_token(SECRET, "alice", username="Alice", **claims) if token is None else token,
        action=action,  # type: ignore[arg-type]
        name=name,
        timeout=0.01,
    )


def outcome(found: Mapping[str, Any]) -> tuple[bool, str]:
    return found["outcome"]["allowed"], found["outcome"]["code"]


# --- the token ------------------------------------------------------------------------------------------


async def test_who_is_not_let_in_gets_no_further() -> None:
    other = issue_token("another secret that is long enough to sign with", "alice")
    for token, why in (("nonsense", "Token refused: "), (other, "Token refused: the signature")):
        found = await explained(token=token)
        assert found["token"]["valid"] is False
        assert found["token"]["why"][0].startswith(why)
        assert outcome(found) == (False, "unauthenticated")
        assert found["identity"] is found["policy"] is found["context"] is None
        assert found["mesh"]["service"]["answers"] is True
        assert token not in json.dumps(found) + render(found)


async def test_a_token_within_the_leeway_is_valid() -> None:
    found = await explained(token=issue_token(SECRET, "alice", lifetime=-2))
    assert found["token"] == {"valid": True, "why": []}
    assert found["identity"]["expires_at"] == found["identity"]["claims"]["exp"]
    assert "ago, within the leeway" in render(found)


async def test_an_identity_that_has_ended_is_not_valid() -> None:
    async def late(token: str) -> Identity | None:
        return Identity(user_id="alice", username="Alice", token=token, expires_at=1000.0, leeway=10.0)

    found = await explained(token="t", authenticator=late)
    assert found["token"] == {"valid": False, "why": ["the token has expired"]}
    assert outcome(found) == (False, "unauthenticated")


async def test_an_authenticator_may_keep_its_reasons_to_itself() -> None:
    async def silent(token: str) -> Identity | None:
        return None

    found = await explained(token="t", authenticator=silent)
    assert found["token"]["why"] == ["the authenticator gives no reason"]


async def test_a_token_that_cannot_be_checked_now_is_not_called_bad() -> None:
    async def without_keys(token: str) -> Identity | None:
        raise AuthenticationUnavailable("there are no keys yet")

    found = await explained(token="t", authenticator=without_keys)
    assert found["token"]["why"] == ["the token cannot be checked now: there are no keys yet"]


async def test_a_token_that_was_revoked_is_no_good() -> None:
    class Records(AnsweringMesh):
        def send(self, message: CallMessage) -> None:
            revocation = Revocation(user_id="alice", issued_before=time.time() + 1, until=time.time() + 60)
            self.told.on_record(msgspec.json.encode(revocation))
            super().send(message)

    found = await explained(mesh=Records({"get": {}}))
    assert found["token"] == {"valid": False, "why": ["the token has been revoked"]}
    assert outcome(found) == (False, "unauthenticated")


async def test_listening_to_the_authenticator_leaves_the_log_as_it_was() -> None:
    package = logging.getLogger("nuropb_gateway_asgi")
    before = (package.level, list(package.handlers), package.propagate)
    await explained(token="nonsense")
    assert (package.level, list(package.handlers), package.propagate) == before


async def test_the_identity_is_all_that_the_token_says_but_the_token() -> None:
    token = issue_token(SECRET, "alice", username="Alice", scope="read write", realm={"roles": ["x"]})
    found = await explained(token=token)
    identity = found["identity"]
    assert (identity["user_id"], identity["username"]) == ("alice", "Alice")
    assert identity["expires_at"] > time.time()
    assert (identity["claims"]["scope"], identity["claims"]["realm"]) == ("read write", {"roles": ["x"]})
    assert found["context"] == {
        "user_id": "alice",
        "Authorization": "Bearer ***",
        "trace_id": "<of the call>",
        "session_id": "<of the connection>",
    }
    for part in token.split("."):
        assert part not in json.dumps(found) + render(found)


# --- the frame, the policy ------------------------------------------------------------------------------

FRAMES = [
    ("call", "orders", "bad_request"),
    ("call", "orders._x", "bad_request"),
    ("call", "or ders.x", "bad_request"),
    ("call", "orders.x-y", "bad_request"),
    ("call", "orders.nuropb_describe", "permission_denied"),
    ("call", "users.get", "permission_denied"),
    ("subscribe", "a*", "bad_request"),
    ("subscribe", "", "bad_request"),
    ("subscribe", "users.x", "permission_denied"),
]


@pytest.mark.parametrize(("action", "name", "code"), FRAMES)
async def test_what_no_client_may_ask_for(action: str, name: str, code: str) -> None:
    found = await explained(name, action=action)
    assert outcome(found) == (False, code)
    assert (found["policy"] is None) is (found["mesh"] is None) is (code == "bad_request")
    assert render(found).startswith(f"{action} {name}: no, ")


async def test_the_rule_that_decides_and_the_others() -> None:
    found = await explained("orders.create", scope="read")
    assert found["policy"] == {
        "allowed": False,
        "reason": "policy.toml:11 denies orders.create",
        "rule": "policy.toml:11",
        "considered": [
            {
                "where": "policy.toml:5",
                "rule": "allow call orders.create when scope contains 'write'",
                "decides": False,
                "why": "does not apply: scope contains 'write' does not hold",
            },
            {"where": "policy.toml:11", "rule": "deny call orders.create", "decides": True, "why": "decides"},
            {
                "where": "policy.toml:1",
                "rule": "allow call orders.*",
                "decides": False,
                "why": "is weaker than policy.toml:11, which names the method without *",
            },
        ],
    }
    found = await explained("orders.create", scope="write")
    assert outcome(found) == (True, "ok")
    assert found["limits"]["calls_by_rule"] == "5/min burst 5 for each user"


TOOLS = parse_policy(
    b"""
[[rule]]
allow = "call"
methods = ["orders.*"]
[[rule]]
allow = "tool"
methods = ["orders.get", "payroll.get"]
""",
    "policy.toml",
)


@pytest.mark.parametrize(
    ("name", "expected", "reason"),
    [
        ("orders.get", (True, "ok"), "policy.toml:5 allows orders.get"),
        ("orders.create", (False, "permission_denied"), "no rule allows it as a tool"),
        ("payroll.get", (False, "permission_denied"), "its user may not call it: no rule allows it"),
    ],
)
async def test_a_tool_is_explained_by_both_kinds_of_rules(name: str, expected: tuple[bool, str], reason: str) -> None:
    found = await explained(name, action="tool", policy=RulePolicy(TOOLS))
    assert outcome(found) == expected
    assert found["asked"] == {"action": "tool", "name": name}
    assert found["policy"]["reason"] == reason
    assert render(found).startswith(f"tool {name}: ")


async def test_the_rules_about_a_tool_come_before_those_about_the_call() -> None:
    found = await explained("orders.get", action="tool", policy=RulePolicy(TOOLS))
    assert [each["rule"] for each in found["policy"]["considered"]] == ["allow tool orders.get", "allow call orders.*"]


async def test_a_subscription_has_a_delivery_and_no_context() -> None:
    found = await explained("orders.new", action="subscribe")
    assert outcome(found) == (True, "ok")
    assert found["limits"]["delivery"] == "latest"
    assert found["mesh"] == {"connected": True, "problem": None}
    assert found["context"] is None
    assert "Context" not in render(found)


async def test_an_authorizer_is_explained_with_the_rules_that_it_heard_of() -> None:
    found = await explained(policy=AuthorizedPolicy(POLICY, lambda *_: False))
    assert outcome(found) == (False, "permission_denied")
    assert found["policy"]["reason"] == "the authorizer"
    assert [each["where"] for each in found["policy"]["considered"]] == ["policy.toml:1"]


async def test_a_policy_in_python_decides_by_what_it_may() -> None:
    class NoRefunds(ExposePolicy):
        def may_call(self, identity: Identity, service: str, method: str) -> bool:
            return False

        def may_subscribe(self, identity: Identity, pattern: str) -> bool:
            return True

    for action, allowed in (("call", False), ("subscribe", True)):
        found = await explained("orders.get", action=action, policy=NoRefunds(["orders.*"], []))
        assert found["outcome"]["allowed"] is allowed
        assert found["policy"]["reason"] == "NoRefunds decides so"


async def test_a_completed_policy_is_explained_by_the_name_of_its_own_class() -> None:
    class OnlyGet:
        exposes_anything = True

        def may_call(self, identity: Identity, service: str, method: str) -> bool:
            return method == "get"

    found = await explained("orders.get", policy=completed(OnlyGet()))
    assert found["policy"]["reason"] == "OnlyGet decides so"


async def test_no_policy_can_allow_what_no_client_may_call() -> None:
    class Everything(ExposePolicy):
        def may_call(self, identity: Identity, service: str, method: str) -> bool:
            return True

    found = await explained("orders.nuropb_describe", policy=Everything([], []))
    assert outcome(found) == (False, "permission_denied")
    assert found["policy"]["reason"] == "clients can never call it"


async def test_the_limits_are_those_of_the_settings() -> None:
    settings = Settings(rate_limit="5/s", rate_limit_user="off", max_in_flight=3, request_timeout=7)
    assert (await explained(settings=settings))["limits"] == {
        "calls_by_rule": None,
        "frames_per_connection": "5/s",
        "frames_per_user": "off",
        "max_message_size": 65536,
        "outbox_size": 1048576,
        "max_in_flight": 3,
        "max_in_flight_per_service": 16,
        "request_timeout": 7.0,
        "request_timeout_max": 60.0,
    }


# --- the mesh -------------------------------------------------------------------------------------------

MESHES: list[tuple[Callable[[], FakeMesh], tuple[bool, str], str]] = [
    (lambda: AnsweringMesh({"get": {}}), (True, "ok"), "it has the method; calls are not encrypted"),
    (lambda: AnsweringMesh({"put": {}}), (False, "method_not_found"), "it has no such method, or hides it"),
    (lambda: AnsweringMesh(there=False), (False, "service_unavailable"), "the service does not answer"),
    (lambda: AnsweringMesh(None), (False, "permission_denied"), "it cannot describe itself"),
    (
        lambda: AnsweringMesh({"get": {"requires_encryption": True}}),
        (False, "service_error"),
        "it has the method; calls must be encrypted, but the service has no usable key",
    ),
    (
        lambda: AnsweringMesh({"get": {"requires_encryption": True}}, public_key="PEM"),
        (True, "ok"),
        "it has the method; calls are encrypted",
    ),
    (
        lambda: FakeMesh(connected=False, problem="the broker sleeps"),
        (False, "mesh_unavailable"),
        "not reachable: the broker sleeps",
    ),
]


@pytest.mark.parametrize(("mesh", "expected", "line"), MESHES)
async def test_whether_the_mesh_has_it(mesh: Callable[[], FakeMesh], expected: tuple[bool, str], line: str) -> None:
    there = mesh()
    found = await explained(mesh=there)
    assert outcome(found) == expected
    assert line in render(found)
    assert not there.calls
    assert not there.runs


async def test_a_service_that_cannot_describe_itself_may_be_called_by_name() -> None:
    found = await explained(mesh=AnsweringMesh(None), policy=ExposePolicy(["orders.get"], []))
    assert outcome(found) == (True, "ok")
    assert "the gateway cannot know whether the method exists" in render(found)


@pytest.mark.parametrize(("expose", "expected"), [("*.get", (False, "permission_denied")), ("orders.*", (True, "ok"))])
async def test_a_wildcard_does_not_include_another_gateway(expose: str, expected: tuple[bool, str]) -> None:
    mesh = AnsweringMesh({"get": {}}, nuropb_gateway=True)
    found = await explained(mesh=mesh, policy=ExposePolicy([expose], []))
    assert outcome(found) == expected
    assert "it is a gateway, which no wildcard includes" in render(found)


async def test_a_subscription_is_made_while_the_mesh_is_away() -> None:
    found = await explained("orders.new", action="subscribe", mesh=FakeMesh(connected=False, problem="asleep"))
    assert outcome(found) == (True, "ok")
    assert "not reachable: asleep" in render(found)


# --- as text --------------------------------------------------------------------------------------------


async def test_an_explanation_as_text() -> None:
    found = await explained("orders.create", scope="write")
    found["identity"]["claims"] = {"scope": "write"}
    assert render(found, now=found["identity"]["expires_at"] - 3 * 3600).splitlines() == [
        "call orders.create: yes, the call would be sent",
        "Token     valid",
        "Identity  alice (Alice), expires in 3 hours",
        '          scope = "write"',
        "Policy    allowed: policy.toml:5 allows orders.create",
        "          > policy.toml:5: allow call orders.create when scope contains 'write': decides",
        "            policy.toml:11: deny call orders.create: is weaker than policy.toml:5, which has conditions",
        "            policy.toml:1: allow call orders.*: "
        "is weaker than policy.toml:5, which names the method without *",
        "Limits    calls_by_rule: 5/min burst 5 for each user",
        "          frames_per_connection: 2000/s burst 10000",
        "          frames_per_user: 5000/s burst 25000",
        "          max_message_size: 65536",
        "          outbox_size: 1048576",
        "          max_in_flight: 64",
        "          max_in_flight_per_service: 16",
        "          request_timeout: 30.0",
        "          request_timeout_max: 60.0",
        "Mesh      reachable",
        "          the service answers, version 1.2",
        "          it has the method; calls are not encrypted",
        "Context   user_id = alice",
        "          Authorization = Bearer ***",
        "          trace_id = <of the call>",
        "          session_id = <of the connection>",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "does not expire"), (5, "5 seconds"), (119, "119 seconds"), (120, "2 minutes"), (86400 * 3, "3 days")],
)
async def test_how_long_a_token_lasts(seconds: float | None, text: str) -> None:
    found = await explained()
    found["identity"]["expires_at"] = None if seconds is None else 1000.0 + seconds
    assert text in render(found, now=1000.0)


async def test_nothing_in_a_token_or_of_a_service_writes_to_the_terminal_by_itself() -> None:
    found = await explained(mesh=AnsweringMesh({"get": {}}, service_version="\x1b[2J"), scope="\x1b[31m\n")
    found["identity"]["claims"]["\x1b[32m"] = 1
    text = render(found)
    assert "\x1b" not in text
    assert "u001b[31m" in text


# --- the command ----------------------------------------------------------------------------------------


def test_the_command_tells_why_a_token_of_another_run_does_not_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_explanation(issue_token(SECRET, "alice"), method="demo.add", settings=Settings()) == 1
    output = capsys.readouterr().out
    assert "JWT_KEY is not set, so every process generates its own key" in output
    assert "the service answers, version 1.0.0" in output


def test_the_command_answers_with_a_status(capsys: pytest.CaptureFixture[str]) -> None:
    token, settings = issue_token(SECRET, "alice"), Settings(jwt_key=SECRET)
    assert print_explanation(token, method="demo.add", settings=settings) == 0
    assert print_explanation(token, topic="demo.tick", settings=settings) == 0
    assert print_explanation(token, topic="#", settings=settings, as_json=True) == 1
    output = capsys.readouterr().out
    assert json.loads(output[output.index("{") :])["outcome"]["code"] == "permission_denied"


@pytest.mark.parametrize(
    ("token", "method", "topic"), [("t", "a.b", "a"), ("t", None, None), ("", "a.b", None)], ids=["2", "0", "no token"]
)
def test_the_command_needs_a_token_and_one_question(token: str, method: str | None, topic: str | None) -> None:
    with pytest.raises(ValueError, match="needed"):
        print_explanation(token, method=method, topic=topic, settings=Settings())


def test_a_token_is_read_without_the_space_around_it(tmp_path: Any) -> None:
    (tmp_path / "token").write_text(" a.b.c\r\n")
    assert read_token(str(tmp_path / "token")) == "a.b.c"

"""Why may this token call that, or why not: the whole decision, as data and as text, for an operator.

Nothing is called. What a client would go through is gone through here: token, frame, policy, limits, mesh.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Literal, Protocol

import msgspec

from ...authentication import Authenticator, Identity
from ...authentication.revocation import Revocations
from ...exceptions import AuthenticationUnavailable, CallError, ProtocolError
from ...protocol import Decoder, ErrorCode, encode_json
from ...settings import Settings
from ...wire.context import context_for
from ...wire.description import Description
from ..patterns import Rule, is_private
from ..rule_policy import AuthorizedPolicy, Considered, Decision, Policy, RulePolicy, class_name

__all__ = ["explain", "render"]

MASK: Final = "***"
#: Seconds between two looks at whether the mesh is there.
POLL_INTERVAL: Final = 0.02


class DescribingManager(Protocol):
    """The part of the ServiceMeshManager that an explanation needs: a mesh connection, and descriptions of services."""

    async def __aenter__(self) -> Any:
        """Connect to the mesh."""

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Disconnect from the mesh."""

    @property
    def connected(self) -> bool:
        """Whether the mesh takes messages now."""
        ...

    @property
    def problem(self) -> str | None:
        """The reason why the mesh takes no messages, or None."""
        ...

    async def describe(self, service: str) -> Description:
        """Ask a service for its description. Raises CallError."""
        ...


async def explain(
    settings: Settings,
    authenticator: Authenticator,
    revocations: Revocations,
    policy: Policy,
    manager: DescribingManager,
    *,
    token: str,
    action: Literal["call", "subscribe"],
    name: str,
    timeout: float = 5.0,  # noqa: ASYNC109 - of the mesh
) -> dict[str, Any]:
    """The decision about a call of ``name`` (``service.method``), or a subscription to it (a topic pattern).

    ``manager`` is entered for this, and asks the service for its description; ``timeout`` is for a connection, in
    seconds. The token is nowhere in the result. It has ``asked``, ``token``, ``identity``, ``policy``, ``limits``,
    ``mesh``, ``context`` and ``outcome``; what cannot be known is None.
    """
    verdict, identity = await _check_token(authenticator, token, timeout)
    malformed = _check_frame(settings, action, name)
    decision = considered = None
    if identity is not None and malformed is None:
        decision, considered = _decide(policy, identity, action, name)
    mesh = None
    if malformed is None:
        mesh = await _ask_mesh(manager, name.rpartition(".") if action == "call" else None, timeout)
    if identity is not None and revocations.refuses(identity):  # the mesh has told of it meanwhile
        verdict, identity = {"valid": False, "why": ["it has been revoked"]}, None
    return {
        "asked": {"action": action, "name": name},
        "token": verdict,
        "identity": None if identity is None else _identity(identity),
        "policy": None if decision is None else _policy(decision, considered or ()),
        "limits": _limits(settings, policy, identity, action, name),
        "mesh": mesh,
        "context": None if identity is None or action == "subscribe" else _context(identity),
        "outcome": _outcome(malformed, policy, identity, decision, mesh, action, name),
    }


# --- token ----------------------------------------------------------------------------------------------------


async def _check_token(
    authenticator: Authenticator,
    token: str,
    timeout: float,  # noqa: ASYNC109
) -> tuple[dict[str, Any], Identity | None]:
    identity: Identity | None = None
    with _overhearing() as remarks:
        for _ in range(max(1, math.ceil(timeout / POLL_INTERVAL))):
            try:
                identity = await authenticator(token)
            except AuthenticationUnavailable as error:  # its keys are on their way, or not to be had
                last = str(error)
                await asyncio.sleep(POLL_INTERVAL)
            else:
                break
        else:
            return {"valid": False, "why": [f"it cannot be checked now: {last}"]}, None
    if identity is None:
        return {"valid": False, "why": remarks or ["the authenticator does not say"]}, None
    if identity.expires_at is not None and identity.expires_at <= time.time():
        return {"valid": False, "why": ["it has expired, and is good only within the leeway for clocks"]}, None
    return {"valid": True, "why": []}, identity


@contextlib.contextmanager
def _overhearing() -> Iterator[list[str]]:
    """What is logged meanwhile: why a token is refused is told to nobody else."""
    remarks: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            remarks.append(record.getMessage())

    package = logging.getLogger(__package__.partition(".")[0])
    listener, level = Listener(), package.level
    package.addHandler(listener)
    package.setLevel(logging.DEBUG)
    try:
        yield remarks
    finally:
        package.setLevel(level)
        package.removeHandler(listener)


def _identity(identity: Identity) -> dict[str, Any]:
    return {
        "user_id": identity.user_id,
        "username": identity.username,
        "expires_at": identity.expires_at,
        "claims": dict(identity.claims),
    }


# --- policy ---------------------------------------------------------------------------------------------------


def _check_frame(settings: Settings, action: str, name: str) -> str | None:
    """Why no client could ask for this, whoever it is."""
    service, _, method = name.rpartition(".")
    payload = {"service": service, "method": method} if action == "call" else {"topics": [name]}
    frame = {"type": "request" if action == "call" else "subscribe", "payload": payload}
    try:
        Decoder(max_size=settings.max_message_size, max_depth=settings.max_json_depth).decode(encode_json(frame))
    except ProtocolError as error:
        return error.description
    return None


def _decide(policy: Policy, identity: Identity, action: str, name: str) -> tuple[Decision, Sequence[Considered]]:
    service, _, method = name.rpartition(".")
    if action == "call" and is_private(method):
        return Decision(False, "no client may ever call it"), ()
    rules: object = policy
    while isinstance(rules, AuthorizedPolicy):
        rules = rules.policy
    considered: Sequence[Considered] = ()
    names: tuple[str, ...] = (name,)
    if action == "call":
        names = (service, method)
        allowed = policy.may_call(identity, service, method)
        if isinstance(rules, RulePolicy):
            considered = rules.consider_call(identity, service, method)
    else:
        allowed = policy.may_subscribe(identity, name)
        if isinstance(rules, RulePolicy):
            considered = rules.consider_subscribe(identity, name)
    decide = getattr(policy, f"decide_{action}", None)
    decision = None if decide is None else decide(identity, *names)
    if decision is None or decision.allowed is not allowed:  # a subclass that decides otherwise counts
        decision = Decision(allowed, f"{class_name(policy)} decides so")
    return decision, considered


def _policy(decision: Decision, considered: Sequence[Considered]) -> dict[str, Any]:
    return {
        "allowed": decision.allowed,
        "reason": decision.reason,
        "rule": None if decision.rule is None else decision.rule.where,
        "considered": [
            {
                "where": each.rule.where,
                "rule": _in_words(each.rule, str(each.pattern)),
                "decides": each.decides,
                "why": each.why,
            }
            for each in considered
        ],
    }


def _in_words(rule: Rule, pattern: str) -> str:
    words = ["allow" if rule.allows else "deny", "call" if rule.methods else "subscribe", pattern]
    if rule.conditions:
        words.append("when " + " and ".join(map(str, rule.conditions)))
    return " ".join(words)


# --- limits ---------------------------------------------------------------------------------------------------


def _limits(
    settings: Settings, policy: Policy, identity: Identity | None, action: str, name: str
) -> dict[str, str | int | float | None]:
    limits: dict[str, str | int | float | None] = {
        "frames_per_connection": settings.rate_limit,
        "frames_per_user": settings.rate_limit_user,
        "max_message_size": settings.max_message_size,
        "outbox_size": settings.outbox_size,
    }
    if action == "subscribe":
        return limits | {"delivery": None if identity is None else policy.delivery(identity, name)}
    service, _, method = name.rpartition(".")
    rate = None if identity is None else policy.rate(identity, service, method)
    return (
        {"calls_by_rule": None if rate is None else f"{rate.rate} for each {rate.per}"}
        | limits
        | {
            "max_in_flight": settings.max_in_flight,
            "request_timeout": settings.request_timeout,
            "request_timeout_max": settings.request_timeout_max,
        }
    )


# --- mesh -----------------------------------------------------------------------------------------------------


async def _ask_mesh(
    manager: DescribingManager,
    asked: tuple[str, str, str] | None,
    timeout: float,  # noqa: ASYNC109
) -> dict[str, Any]:
    async with manager:
        for _ in range(math.ceil(timeout / POLL_INTERVAL)):
            if manager.connected:
                break
            await asyncio.sleep(POLL_INTERVAL)
        mesh: dict[str, Any] = {"connected": manager.connected, "problem": manager.problem}
        if asked is None or not manager.connected:
            return mesh
        service, _, method = asked
        try:
            description = await manager.describe(service)
        except CallError as error:
            return mesh | {"service": {"answers": False, "code": error.code, "why": error.description}}
    return mesh | {"service": _service(description, method)}


def _service(description: Description, method: str) -> dict[str, Any]:
    found = {"answers": True, "version": description.version, "describes_itself": description.methods is not None}
    info = (description.methods or {}).get(method)
    if description.methods is None:
        return found
    if info is None:
        return found | {"method": None}
    usable = description.public_key is not None and not description.keys_differ
    encryption = {"required": info.requires_encryption, "possible": not info.requires_encryption or usable}
    return found | {"method": {"description": info.description, "encryption": encryption}}


def _context(identity: Identity) -> dict[str, str | None]:
    masked = msgspec.structs.replace(identity, token=MASK)
    return context_for(masked, "<of the call>", "<of the connection>")


# --- the end --------------------------------------------------------------------------------------------------


def _outcome(
    malformed: str | None,
    policy: Policy,
    identity: Identity | None,
    decision: Decision | None,
    mesh: Mapping[str, Any] | None,
    action: str,
    name: str,
) -> dict[str, Any]:
    """What the client would get: the first thing in its way."""

    def refused(code: str, why: str) -> dict[str, Any]:
        return {"allowed": False, "code": code, "why": why}

    if identity is None:
        return refused("unauthenticated", "the handshake would be refused: 401, or close code 4510 for a browser")
    if malformed is not None:
        return refused(ErrorCode.BAD_REQUEST.value, malformed)
    assert decision is not None  # noqa: S101 - there is an identity and a frame
    assert mesh is not None  # noqa: S101 - there is a frame
    if not decision.allowed:
        return refused(ErrorCode.PERMISSION_DENIED.value, decision.reason)
    if action == "subscribe":
        return {"allowed": True, "code": "ok", "why": "the subscription would be made"}
    if not mesh["connected"]:
        return refused(ErrorCode.MESH_UNAVAILABLE.value, f"the mesh is not reachable: {mesh['problem']}")
    service = mesh["service"]
    if not service["answers"]:
        return refused(service["code"], service["why"])
    service_name, _, method = name.rpartition(".")
    if not service["describes_itself"]:
        if policy.names(identity, service_name, method):
            return {
                "allowed": True,
                "code": "ok",
                "why": "the call would be sent; whether there is such a method is unknown",
            }
        return refused(
            ErrorCode.PERMISSION_DENIED.value,
            "the service cannot describe itself, and the rule does not name the method",
        )
    if service["method"] is None:
        return refused(ErrorCode.METHOD_NOT_FOUND.value, "the service has no such method, or hides it")
    if not service["method"]["encryption"]["possible"]:
        return refused(ErrorCode.SERVICE_ERROR.value, "it has to be called encrypted, and shows no key, or several")
    return {"allowed": True, "code": "ok", "why": "the call would be sent"}


# --- as text --------------------------------------------------------------------------------------------------


def render(explanation: Mapping[str, Any], now: float | None = None) -> str:
    """An explanation as text; ``now`` is in unix seconds."""
    asked, outcome = explanation["asked"], explanation["outcome"]
    lines = [f"{asked['action']} {asked['name']}: {'yes' if outcome['allowed'] else 'no'}, {outcome['why']}"]
    if not outcome["allowed"]:
        lines[0] += f" ({outcome['code']})"
    for title, section in (
        ("Token", _token_lines(explanation["token"])),
        ("Identity", _identity_lines(explanation["identity"], time.time() if now is None else now)),
        ("Policy", _policy_lines(explanation["policy"])),
        ("Limits", [f"{name}: {_plain(value)}" for name, value in explanation["limits"].items() if value is not None]),
        ("Mesh", _mesh_lines(explanation["mesh"])),
        ("Context", _context_lines(explanation["context"])),
    ):
        lines += [f"{title if number == 0 else '':<10}{line}" for number, line in enumerate(section)]
    return "\n".join(lines)


def _token_lines(token: Mapping[str, Any]) -> list[str]:
    return ["valid"] if token["valid"] else [f"not valid: {token['why'][0]}", *token["why"][1:]]


def _identity_lines(identity: Mapping[str, Any] | None, now: float) -> list[str]:
    if identity is None:
        return []
    expires_at = identity["expires_at"]
    expiry = "without an end" if expires_at is None else f"for another {_span(expires_at - now)}"
    claims = [f"{_plain(name)} = {json.dumps(value, default=str)}" for name, value in identity["claims"].items()]
    return [f"{_plain(identity['user_id'])} ({_plain(identity['username'])}), {expiry}", *claims]


def _policy_lines(policy: Mapping[str, Any] | None) -> list[str]:
    if policy is None:
        return []
    considered = [
        f"{'>' if each['decides'] else ' '} {each['where']}: {each['rule']}: {each['why']}"
        for each in policy["considered"]
    ]
    return [f"{'allowed' if policy['allowed'] else 'denied'}: {policy['reason']}", *considered]


def _mesh_lines(mesh: Mapping[str, Any] | None) -> list[str]:
    if mesh is None:
        return []
    lines = ["reachable" if mesh["connected"] else f"not reachable: {mesh['problem']}"]
    service = mesh.get("service")
    if service is None:
        return lines
    if not service["answers"]:
        return [*lines, f"the service does not answer: {service['why']}"]
    version = "" if service["version"] is None else f", version {_plain(service['version'])}"
    lines.append(f"the service answers{version}")
    if not service["describes_itself"]:
        return [*lines, "it cannot describe itself, so its methods are not known"]
    method = service["method"]
    if method is None:
        return [*lines, "it has no such method, or hides it"]
    encryption = method["encryption"]
    how = (
        "in clear"
        if not encryption["required"]
        else "encrypted"
        if encryption["possible"]
        else "encrypted, without a key"
    )
    return [*lines, f"it has the method, which is called {how}"]


def _context_lines(context: Mapping[str, Any] | None) -> list[str]:
    return [] if context is None else [f"{name} = {_plain(value)}" for name, value in context.items()]


def _plain(value: object) -> str:
    # json.dumps: what a token or a service says must not write to the operator's terminal by itself.
    return json.dumps(value, default=str) if isinstance(value, str) and not value.isprintable() else str(value)


def _span(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} seconds"

"""Explanations for operators: why a token may call a method or subscribe to a topic, or why not, as data.

An explanation goes through the steps of a client's call (token, frame, policy, limits, mesh) and calls no method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from ...authentication import Authenticator, Identity
from ...authentication.revocation import Revocations
from ...exceptions import ProtocolError
from ...protocol import Decoder, ErrorCode, encode_json
from ...settings import Settings
from ...wire.context import context_for
from ..authorizer import AuthorizedPolicy
from ..decisions import Considered, Decision
from ..patterns import is_private
from ..policy import Policy, class_name
from ..rule_policy import RulePolicy
from ..rules import Rule
from ..tool_policy import ToolPolicy
from .mesh import DescribingManager, ask_mesh
from .token import check_token

__all__ = ["explain"]

MASK: Final = "***"


async def explain(
    settings: Settings,
    authenticator: Authenticator,
    revocations: Revocations,
    policy: Policy,
    manager: DescribingManager,
    *,
    token: str,
    action: Literal["call", "subscribe", "tool"],
    name: str,
    timeout: float = 5.0,  # noqa: ASYNC109 - of the mesh
) -> dict[str, Any]:
    """Explain the decision about a call of ``name`` (``service.method``), or a subscription to it (a topic pattern).

    The action "tool" is the call by an agent; ``policy`` is the users' in every case.
    ``manager`` is entered meanwhile, and asks the service for its description. ``timeout`` is for the connection to the
    mesh, in seconds. The result has ``asked``, ``token``, ``identity``, ``policy``, ``limits``, ``mesh``, ``context``
    and ``outcome``, each None if it cannot be known. It does not contain the token itself.
    """
    asked = action
    if action == "tool":
        policy, action = ToolPolicy(policy), "call"
    verdict, identity = await check_token(authenticator, token, timeout)
    malformed = _check_frame(settings, action, name)
    decision = considered = None
    if identity is not None and malformed is None:
        decision, considered = _decide(policy, identity, action, name)
    mesh = None
    if malformed is None:
        mesh = await ask_mesh(manager, name.rpartition(".") if action == "call" else None, timeout)
    if identity is not None and revocations.refuses(identity):  # the mesh brought the revocation meanwhile
        verdict, identity = {"valid": False, "why": ["the token has been revoked"]}, None
    return {
        "asked": {"action": asked, "name": name},
        "token": verdict,
        "identity": None if identity is None else _identity(identity),
        "policy": None if decision is None else _policy(decision, considered or ()),
        "limits": _limits(settings, policy, identity, action, name),
        "mesh": mesh,
        "context": None if identity is None or action == "subscribe" else _context(identity),
        "outcome": _outcome(malformed, policy, identity, decision, mesh, action, name),
    }


def _identity(identity: Identity) -> dict[str, Any]:
    return {
        "user_id": identity.user_id,
        "username": identity.username,
        "expires_at": identity.expires_at,
        "claims": dict(identity.claims),
    }


# --- policy ---------------------------------------------------------------------------------------------------


def _check_frame(settings: Settings, action: str, name: str) -> str | None:
    """Return why every client's frame with this request would be malformed, or None."""
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
        return Decision(False, "clients can never call it"), ()
    rules: object = policy
    while isinstance(rules, AuthorizedPolicy):
        rules = rules.policy
    considered: Sequence[Considered] = ()
    names: tuple[str, ...] = (name,)
    if action == "call":
        names = (service, method)
        allowed = policy.may_call(identity, service, method)
        if isinstance(rules, RulePolicy | ToolPolicy):
            considered = rules.consider_call(identity, service, method)
    else:
        allowed = policy.may_subscribe(identity, name)
        if isinstance(rules, RulePolicy):
            considered = rules.consider_subscribe(identity, name)
    decide = getattr(policy, f"decide_{action}", None)
    decision = None if decide is None else decide(identity, *names)
    if decision is None or decision.allowed is not allowed:  # a subclass overrides the decision
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
    action = "subscribe" if rule.topics else "call" if rule.tool is None else "tool"
    words = ["allow" if rule.allows else "deny", action, pattern]
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
            "max_in_flight_per_service": settings.max_in_flight_per_service,
            "request_timeout": settings.request_timeout,
            "request_timeout_max": settings.request_timeout_max,
        }
    )


def _context(identity: Identity) -> dict[str, str | None]:
    masked = msgspec.structs.replace(identity, token=MASK)
    return context_for(masked, "<of the call>", "<of the connection>")


# --- outcome --------------------------------------------------------------------------------------------------


def _outcome(
    malformed: str | None,
    policy: Policy,
    identity: Identity | None,
    decision: Decision | None,
    mesh: Mapping[str, Any] | None,
    action: str,
    name: str,
) -> dict[str, Any]:
    """Return the client's answer: the first obstacle, or success."""

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
                "why": "the call would be sent; the gateway cannot know whether the method exists",
            }
        return refused(
            ErrorCode.PERMISSION_DENIED.value,
            "the service cannot describe itself, and the rule does not name the method in full",
        )
    if service["gateway"] and not policy.names_service(identity, service_name, method):
        return refused(
            ErrorCode.PERMISSION_DENIED.value,
            "the service is a gateway, which no wildcard includes; only a rule with the service's full name does",
        )
    if service["method"] is None:
        return refused(ErrorCode.METHOD_NOT_FOUND.value, "the service has no such method, or hides it")
    if not service["method"]["encryption"]["possible"]:
        return refused(
            ErrorCode.SERVICE_ERROR.value,
            "the method requires encryption, but the service publishes no key, or several",
        )
    return {"allowed": True, "code": "ok", "why": "the call would be sent"}

"""Explanations as text, for a terminal. Pure."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

__all__ = ["render"]


def render(explanation: Mapping[str, Any], now: float | None = None) -> str:
    """Return the text of an explanation. ``now`` is in unix seconds."""
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
    return "\n".join(map(_escaped, lines))


def _escaped(line: str) -> str:
    # Control characters in a token or a description must not reach the operator's terminal, nor begin a line.
    return line if line.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in line)


def _token_lines(token: Mapping[str, Any]) -> list[str]:
    return ["valid"] if token["valid"] else [f"not valid: {token['why'][0]}", *token["why"][1:]]


def _identity_lines(identity: Mapping[str, Any] | None, now: float) -> list[str]:
    if identity is None:
        return []
    expires_at = identity["expires_at"]
    if expires_at is None:
        expiry = "does not expire"
    elif expires_at > now:
        expiry = f"expires in {_span(expires_at - now)}"
    else:
        expiry = f"expired {_span(now - expires_at)} ago, within the leeway"
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
        return [*lines, "it cannot describe itself, so its methods are unknown"]
    if service["gateway"]:
        lines.append("it is a gateway, which no wildcard includes")
    method = service["method"]
    if method is None:
        return [*lines, "it has no such method, or hides it"]
    encryption = method["encryption"]
    how = (
        "calls are not encrypted"
        if not encryption["required"]
        else "calls are encrypted"
        if encryption["possible"]
        else "calls must be encrypted, but the service has no usable key"
    )
    return [*lines, f"it has the method; {how}"]


def _context_lines(context: Mapping[str, Any] | None) -> list[str]:
    return [] if context is None else [f"{name} = {_plain(value)}" for name, value in context.items()]


def _plain(value: object) -> str:
    # json.dumps: control characters in a token or a description must not reach the operator's terminal.
    return json.dumps(value, default=str) if isinstance(value, str) and not value.isprintable() else str(value)


def _span(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    rounded = f"{max(seconds, 0):.0f}"
    return f"{rounded} second{'' if rounded == '1' else 's'}"

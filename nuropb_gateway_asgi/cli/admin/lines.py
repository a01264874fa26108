"""Results of the admin API as lines of text."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from .._output import counted

__all__ = ["TEXTS"]


def _status_lines(result: Any) -> Iterable[str]:
    for each in result["processes"]:
        state = "ready" if each["ready"] else f"not ready: {'; '.join(each['reasons'])}"
        counts = ", ".join(f"{count} {kind}" for kind, count in each["connections"].items())
        yield f"{each['instance_id']}  {state}  connections: {counts}  in flight: {each['in_flight']}"
        yield from (f"  warning: {warning}" for warning in each["warnings"])


def _connection_lines(result: Any) -> Iterable[str]:
    for each in result["connections"]:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each["connected_at"]))
        state = "" if each["connected"] else "  (waits for its client)"
        yield f"{each['user_id']}  {each['session_id']}  {each['transport']}  {each['address']}  since {since}{state}"
        topics = each["topics"] + (["..."] if each["topic_count"] > len(each["topics"]) else [])
        if topics:
            yield f"  topics: {' '.join(topics)}"
        for call in each["calls"]:
            name = f"{call['service']}.{call['method']}"
            yield f"  in flight: {name} for {call['seconds']:.1f} s, trace {call['trace_id']}"
    left_out = result["total"] - len(result["connections"])
    yield counted(result["total"], "connection") + (f", {left_out} of them not listed" if left_out > 0 else "")


def _circuit_lines(result: Any) -> Iterable[str]:
    for each in result["circuits"]:
        state = "open" if each["open"] else "closed"
        yield f"service {each['service']}  {state}  {counted(each['timeouts'], 'timeout')}  {each['instance_id']}"
    for each in result["budgets"]:
        calls = f"{counted(each['errors'], 'failed call')}, {each['refusals']} refused"
        yield f"user {each['user_id']}  {calls}  {each['instance_id']}"
    if not result["circuits"] and not result["budgets"]:
        yield "all services answer, and no calls of users failed lately"


def _reload_lines(result: Any) -> Iterable[str]:
    for each in result["processes"]:
        policy, said = each["policy"], "no policy file"
        if policy is not None:
            said = policy["problem"] or f"{counted(policy['rules'], 'rule')} in force"
        yield f"{each['instance_id']}  {said}"


#: By the name of the subcommand.
TEXTS: Final[dict[str, Callable[[Any], Iterable[str]]]] = {
    "status": _status_lines,
    "connections": _connection_lines,
    "disconnect": lambda result: [f"{counted(result['count'], 'connection')} closed"],
    "revoke": lambda result: ["revoked"],
    "unrevoke": lambda result: ["the revocation is taken back"],
    "publish": lambda result: ["published"],
    "circuits": _circuit_lines,
    "reset": lambda result: [f"{result['count']} reset"],
    "reload": _reload_lines,
    "log-level": lambda result: [f"{name}  {level}" for name, level in result["levels"].items()],
    "debug-bundle": lambda result: [f"{result['file']}: {result['bytes']} bytes"],
}

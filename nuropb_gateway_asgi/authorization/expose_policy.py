"""The policy of ``EXPOSE``, ``EXPOSE_TOPICS`` and ``EXPOSE_TOOLS``: the same permissions for all users. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ..exceptions import SettingsError
from .patterns import CallPattern, TopicPattern
from .rule_policy import RulePolicy
from .rules import Rule, ToolOptions

__all__ = ["ExposePolicy"]

_USER_ID: Final = "{user_id}"


class ExposePolicy(RulePolicy):
    """A policy of allowing rules without conditions. Users differ only by ``{user_id}``.

    ``expose`` holds patterns of ``service.method``. ``*`` matches any run of characters, including an empty one; every
    other character is literal, and case matters. The last dot separates service and method, and no ``*`` matches across
    it.

    ``expose_topics`` holds topic patterns. In them ``{user_id}``, as a word or a part of one, stands for the caller's
    user id as :func:`escape_word` writes it. No two patterns should match the same topic: with ``user-{user_id}`` and
    ``user-{user_id}-log`` both exposed, the user ``a-log`` may see the log of the user ``a``. A literal first word that
    no other pattern starts with keeps them apart, as in ``users.{user_id}.#``.

    ``expose_tools`` holds patterns as ``expose`` does: of the methods in both, agents have tools.

    Raises :exc:`SettingsError` for an invalid pattern.
    """

    def __init__(
        self,
        expose: Sequence[str],
        expose_topics: Sequence[str],
        expose_tools: Sequence[str] = (),
        *,
        own_service: str = "",
    ) -> None:
        calls = _parse_calls(expose, "EXPOSE")
        tools = _parse_calls(expose_tools, "EXPOSE_TOOLS")
        topics = tuple(map(_parse_topic, expose_topics))
        rules = [
            *([Rule(True, methods=calls, source="EXPOSE")] if calls else ()),
            *([Rule(True, topics=topics, source="EXPOSE_TOPICS")] if topics else ()),
            *([Rule(True, methods=tools, tool=ToolOptions(), source="EXPOSE_TOOLS")] if tools else ()),
        ]
        super().__init__(rules, own_service=own_service)


def _parse_calls(patterns: Sequence[str], setting: str) -> tuple[CallPattern, ...]:
    parsed = (_parse_call(pattern, setting) for pattern in patterns)
    return tuple(pattern for pattern in parsed if not pattern.is_private)


def _parse_call(pattern: str, setting: str) -> CallPattern:
    try:
        return CallPattern.parse(pattern, placeholders=False)
    except ValueError as error:
        raise SettingsError(
            f"{setting}: {pattern!r} is not a pattern of service.method; expected printable ASCII characters "
            "on both sides of a dot, with * for any run of characters, such as orders.* or users.me"
        ) from error


def _parse_topic(pattern: str) -> TopicPattern:
    reason = "braces that are not {user_id}"
    try:
        if not set(pattern.replace(_USER_ID, "")) & {"{", "}"}:
            return TopicPattern.parse(pattern)
    except ValueError as error:
        reason = str(error)
    raise SettingsError(
        f"EXPOSE_TOPICS: {pattern!r} is not a topic pattern: {reason}; expected words separated by "
        f"dots, * for one word, # for any number of words, {_USER_ID} in a word, such as orders.# or "
        f"users.{_USER_ID}.*"
    )

"""Who may call and subscribe to what. What is not exposed does not exist for a client.

Pure: a policy decides from its arguments alone, synchronously and within microseconds, because it is asked
for every frame.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import quote

from .exceptions import SettingsError
from .topics import MAX_BYTES, check_pattern, covers

if TYPE_CHECKING:
    from .authentication import Identity

__all__ = ["ExposePolicy", "Policy", "escape_word"]

_USER_ID: Final = "{user_id}"


class Policy(Protocol):
    """What the gateway asks before it lets a frame through. It decides by what is in memory."""

    @property
    def exposes_anything(self) -> bool:
        """Whether there is anything at all that some client may do."""

    def may_call(self, identity: Identity, service: str, method: str) -> bool:
        """Whether this identity may send requests and commands to this method."""

    def may_subscribe(self, identity: Identity, pattern: str) -> bool:
        """Whether this identity may see every event whose topic matches ``pattern``."""

    def may_describe(self, identity: Identity, service: str) -> bool:
        """Whether this identity may be told about the service, because something on it may be callable."""

    def services(self, identity: Identity) -> Sequence[str]:
        """Return the services, as far as their names are known, on which this identity may call something."""


class ExposePolicy:
    """What the settings ``EXPOSE`` and ``EXPOSE_TOPICS`` say. Only ``{user_id}`` makes users differ.

    ``expose`` holds patterns of ``service.method``. ``*`` is any run of characters, also an empty one;
    everything else is literal and case-sensitive. The last dot separates service and method, and no ``*``
    reaches across it. A method that starts with ``_``, or is ``nuropb_describe``, is never callable, whatever
    the patterns say.

    ``expose_topics`` holds topic patterns, in which ``{user_id}`` stands for the caller's user id as
    :func:`escape_word` writes it, as a word or a part of one. Patterns should not meet: where
    ``user-{user_id}`` and ``user-{user_id}-log`` are exposed, the user ``a-log`` may see the log of the user
    ``a``. Literal words that no other pattern starts with keep them apart, as in ``users.{user_id}.#``.

    ``own_service`` is the gateway's own name on the mesh: what it offers there (to send to users, to disconnect
    them) is meant for services, so only patterns that name it are about it, and no ``*`` is.

    Raises :exc:`SettingsError` for a pattern that is not one.
    """

    def __init__(self, expose: Sequence[str], expose_topics: Sequence[str], *, own_service: str = "") -> None:
        calls = [(service, method) for service, method in map(_parse_call, expose) if not _is_private(method)]
        self._own_service = own_service
        self._calls = _compile_calls(calls)
        self._own_calls = _compile_calls([call for call in calls if call[0] == own_service])
        self._called = _compile(_translate(service, ".") for service, _ in calls)
        self._services = tuple(dict.fromkeys(service for service, _ in calls if "*" not in service))
        self._topics = tuple(map(_parse_topic, expose_topics))
        self.exposes_anything: Final = bool(calls or self._topics)

    def may_call(self, identity: Identity, service: str, method: str) -> bool:
        """Whether some pattern of ``expose`` matches this method."""
        if not (0 < len(service) <= MAX_BYTES and 0 < len(method) <= MAX_BYTES):
            return False
        # A dot in the method would let ("a", "b.c") pass for ("a.b", "c").
        if "." in method or _is_private(method):
            return False
        calls = self._own_calls if service == self._own_service else self._calls
        return calls.match(f"{service}.{method}") is not None

    def may_subscribe(self, identity: Identity, pattern: str) -> bool:
        """Whether ``pattern`` is valid and some pattern of ``expose_topics`` covers it."""
        if check_pattern(pattern) is not None:
            return False
        user_id = escape_word(identity.user_id)
        return any(covers(exposed.replace(_USER_ID, user_id), pattern) for exposed in self._topics)

    def may_describe(self, identity: Identity, service: str) -> bool:
        """Whether some pattern of ``expose`` is about this service."""
        if service == self._own_service:
            return service in self._services
        return 0 < len(service) <= MAX_BYTES and self._called.match(service) is not None

    def services(self, identity: Identity) -> Sequence[str]:
        """Return the services of ``expose`` in its order, without those that have a ``*`` in their name."""
        return self._services


def escape_word(text: str) -> str:
    """Write ``text`` such that it can be a topic word, or a part of one, and means nothing but itself.

    What is not an ASCII letter, a digit or one of ``-_@~+=:,`` becomes ``%XX`` for each byte of its UTF-8
    form, so there is no ``.``, ``*`` or ``#`` in the result, and two texts never have the same. A service
    that publishes to the topic of one user writes the user id in the same way.
    """
    # The surrogates: JSON can smuggle half a pair into a claim. The dot: to quote() it is always safe.
    return quote(text, safe="-_@~+=:,", errors="surrogatepass").replace(".", "%2E")


def _is_private(method: str) -> bool:
    # nuropb_describe is NuroPb's own method of every service. It tells about all of its methods, so clients
    # get an answer of the gateway instead, about those that are exposed.
    return method.startswith("_") or method == "nuropb_describe"


def _parse_call(pattern: str) -> tuple[str, str]:
    service, _, method = pattern.rpartition(".")
    if not (service and method and pattern.isascii() and pattern.isprintable()):
        raise SettingsError(
            f"EXPOSE: {pattern!r} is not a pattern of service.method; allowed are printable ASCII characters "
            "on both sides of a dot, with * for any run of them, such as orders.* or users.me"
        )
    return service, method


def _parse_topic(pattern: str) -> str:
    reason: str | None
    if set(pattern.replace(_USER_ID, "")) & {"{", "}"}:
        reason = "braces that are not {user_id}"
    else:
        # Any letter shows whether the pattern is valid with a user id in it.
        reason = check_pattern(pattern.replace(_USER_ID, "u"))
    if reason is not None:
        raise SettingsError(
            f"EXPOSE_TOPICS: {pattern!r} is not a topic pattern: {reason}; allowed are words separated by "
            f"dots, * for one word, # for any number of words, {_USER_ID} in a word, such as orders.# or "
            f"users.{_USER_ID}.*"
        )
    return pattern


def _compile_calls(calls: Sequence[tuple[str, str]]) -> re.Pattern[str]:
    return _compile(rf"{_translate(left, '.')}\.{_translate(right, '[^.]')}" for left, right in calls)


def _compile(expressions: Iterable[str]) -> re.Pattern[str]:
    """Return one expression that matches what any of them matches, and without any of them nothing."""
    return re.compile(rf"(?:{'|'.join(expressions) or '(?!)'})\Z", re.DOTALL)


def _translate(pattern: str, character: str) -> str:
    """Make an expression of ``pattern``, with runs of ``character`` for its ``*``.

    What is between two ``*`` is taken where it first occurs, and the atomic group never looks further: as in
    :func:`fnmatch.translate`, the next ``*`` makes up for it. Only the last ``*`` backtracks, so the cost
    does not explode with their number.
    """
    first, *others = map(re.escape, re.split(r"\*+", pattern))
    if not others:
        return first
    *middle, last = others
    return "".join([first, *(f"(?>{character}*?{literal})" for literal in middle), f"{character}*{last}"])

"""Who may call and subscribe to what. What is not exposed does not exist for a client.

Pure: a policy decides from its arguments alone, synchronously and within microseconds, because it is asked
for every frame.

* `Policy` is what the gateway asks.
* `RulePolicy` decides by rules, the most specific one first. `ExposePolicy` is one with the rules of two settings.
* `AuthorizedPolicy` lets a function of the host application have the last word.
"""

from __future__ import annotations

import inspect
import logging
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Generic,
    Literal,
    NamedTuple,
    Protocol,
    TypeAlias,
    TypeVar,
    runtime_checkable,
)

from ..exceptions import SettingsError
from ..rates import CallRate
from ..topics import MAX_BYTES, check_pattern, covers, overlaps
from .patterns import CallPattern, Delivery, Rule, TopicPattern, escape_word, is_private

if TYPE_CHECKING:
    from ..authentication import Identity

__all__ = [
    "AuthorizedPolicy",
    "Authorizer",
    "CallVerdict",
    "Considered",
    "Decision",
    "ExposePolicy",
    "Policy",
    "RulePolicy",
    "completed",
    "escape_word",
]

logger = logging.getLogger(__name__)

_USER_ID: Final = "{user_id}"
#: Methods for which it is remembered which rules are about them. Clients make the names up, so there is an end to it.
MAX_REMEMBERED: Final = 1024


class CallVerdict(NamedTuple):
    """The answer about one call: whether it is allowed, and the rate that it counts against (None: no own rate)."""

    allowed: bool
    rate: CallRate | None


_ALLOWED: Final = CallVerdict(True, None)
_DENIED: Final = CallVerdict(False, None)


@runtime_checkable
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

    # What follows has an answer for policies that say nothing about it.

    def names(self, identity: Identity, service: str, method: str) -> bool:
        """Whether a call that is allowed is so by the name of the method, and not by a wildcard.

        It matters for services that cannot describe themselves: which methods they hide is not known.
        """
        return True

    def rate(self, identity: Identity, service: str, method: str) -> CallRate | None:
        """How many calls like this one are allowed; None for no limit of its own."""
        return None

    def delivery(self, identity: Identity, pattern: str) -> Delivery:
        """What becomes of the events of this subscription when the connection is too slow for them."""
        return "close"

    def topics(self, identity: Identity) -> Sequence[str]:
        """Return the topic patterns, as far as they are known, that this identity may subscribe to."""
        return ()

    def judge_call(self, identity: Identity, service: str, method: str) -> CallVerdict:
        """Answer ``may_call`` and ``rate`` at once. The gateway asks it, once, for every request and command.

        By default it asks these two methods. A policy may define it to save the second decision; it then has to give
        the same answers as they do.
        """
        return _ask_both(self, identity, service, method)


def _ask_both(policy: Policy, identity: Identity, service: str, method: str) -> CallVerdict:
    """Judge a call by ``may_call`` and, if that allows it, by ``rate``."""
    if not policy.may_call(identity, service, method):
        return _DENIED
    return _allowed_at(policy.rate(identity, service, method))


def _allowed_at(rate: CallRate | None) -> CallVerdict:
    return _ALLOWED if rate is None else CallVerdict(True, rate)


def _overrides(policy: object, base: type, *names: str) -> bool:
    """Whether the class of ``policy`` defines one of these methods anew."""
    return any(getattr(type(policy), name) is not getattr(base, name) for name in names)


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether something is allowed, and why: for operators, not for clients. It is true when it is allowed."""

    allowed: bool
    reason: str
    #: What decided, if a rule did.
    rule: Rule | None = None
    pattern: CallPattern | TopicPattern | None = None

    @property
    def rate(self) -> CallRate | None:
        """The rate of the rule that decided."""
        return None if self.rule is None else self.rule.rate

    def __bool__(self) -> bool:
        return self.allowed


class Considered(NamedTuple):
    """A rule that is about what was asked for, and what became of it."""

    rule: Rule
    pattern: CallPattern | TopicPattern
    decides: bool
    why: str


_NO_RULE: Final = Decision(False, "no rule allows it")
_NO_NAME: Final = Decision(False, "it is not the name of a method that clients could call")
_NO_PATTERN: Final = Decision(False, "it is not a topic pattern")


P = TypeVar("P", CallPattern, TopicPattern)


class _Entry(Generic[P]):
    """One pattern of one rule. Entries are sorted: the first one that applies decides."""

    __slots__ = ("decision", "key", "number", "pattern", "rule")

    def __init__(self, rule: Rule, pattern: P, number: int) -> None:
        self.rule = rule
        self.pattern: P = pattern
        #: Its place in the file.
        self.number = number
        # Greater is stronger. The number is the place among all, so no two keys are equal.
        self.key = (*pattern.rank, bool(rule.conditions), not rule.allows, -number)
        verb = "allows" if rule.allows else "denies"
        self.decision = Decision(rule.allows, f"{rule.where} {verb} {pattern}", rule, pattern)


#: What the stronger of two entries has over the other, for the first member of the keys in which they differ.
_CALL_REASONS: Final = (
    "names the service without *",
    "spells out more of the service",
    "has fewer * for the service",
    "names the method without *",
    "spells out more of the method",
    "has fewer * for the method",
    "has conditions",
    "denies",
    "comes first",
)
_TOPIC_REASONS: Final = (
    "has no #",
    "has more words that are no wildcards",
    "has more *",
    "has fewer #",
    "spells out more",
    "has conditions",
    "denies",
    "comes first",
)

_Test: TypeAlias = "Callable[[Identity], bool]"


class RulePolicy:
    """Decides by rules: the most specific one that applies, and among equals one that denies. Without one: no.

    ``docs/policy.md`` has the order in full. A method that starts with ``_``, or is ``nuropb_describe``, is never
    callable, whatever the rules say. ``own_service`` is the gateway's own name on the mesh: what it offers there (to
    send to users, to disconnect them) is meant for services, so only rules that name it allow it, and no ``*`` does.
    """

    def __init__(self, rules: Iterable[Rule], *, own_service: str = "") -> None:
        self._own_service = own_service
        self._overridden = _overrides(self, RulePolicy, "may_call", "rate")
        self.replace(rules)

    @property
    def is_overridden(self) -> bool:
        """Whether a subclass has its own ``may_call`` or ``rate``, so that ``decide_call`` alone decides no call."""
        return self._overridden

    def replace(self, rules: Iterable[Rule]) -> None:
        """Decide by these rules from now on."""
        self.rules = tuple(rules)
        self._calls = _sorted((rule, pattern) for rule in self.rules for pattern in rule.methods)
        self._topics = _sorted((rule, pattern) for rule in self.rules for pattern in rule.topics)
        self._remembered: dict[tuple[str, str], tuple[tuple[_Test | None, Decision], ...]] = {}

    @property
    def exposes_anything(self) -> bool:
        """Whether some rule allows something to somebody."""
        return any(rule.allows for rule in self.rules)

    # --- calls ------------------------------------------------------------------------------------------------

    def may_call(self, identity: Identity, service: str, method: str) -> bool:
        """Whether the rule that decides allows it."""
        return self.decide_call(identity, service, method).allowed

    def judge_call(self, identity: Identity, service: str, method: str) -> CallVerdict:
        """Answer ``may_call`` and ``rate`` by one decision, unless a subclass overrides one of these."""
        if self._overridden:
            return _ask_both(self, identity, service, method)
        decision = self.decide_call(identity, service, method)
        if not decision.allowed:
            return _DENIED
        rule = decision.rule
        return _ALLOWED if rule is None or rule.rate is None else CallVerdict(True, rule.rate)

    def decide_call(self, identity: Identity, service: str, method: str) -> Decision:
        """Whether this identity may call this method, and by which rule."""
        candidates = self._remembered.get((service, method))
        if candidates is None:
            if not _is_callable(service, method):
                return _NO_NAME
            candidates = self._candidates(service, method)
        for test, decision in candidates:
            if test is None or test(identity):
                return decision
        return _NO_RULE

    def _candidates(self, service: str, method: str) -> tuple[tuple[_Test | None, Decision], ...]:
        """What is left to be decided by the identity: tests in order, and what follows when one is passed."""
        found: list[tuple[_Test | None, Decision]] = []
        for entry in self._calls_about(service, method):
            test = _test(entry, service, method)
            found.append((test, entry.decision))
            if test is None:
                break  # nothing gets past it
        if len(self._remembered) >= MAX_REMEMBERED:
            self._remembered.clear()
        return self._remembered.setdefault((service, method), tuple(found))

    def _calls_about(self, service: str, method: str | None = None) -> Iterator[_Entry[CallPattern]]:
        """The entries that may apply to a method of this service, or to this one, strongest first."""
        for entry in self._calls:
            pattern = entry.pattern
            if service == self._own_service and not pattern.service.is_literal:
                continue  # which matters for what allows: a denial of this kind is weaker than all that is left
            if pattern.service.may_match(service) and (method is None or pattern.method.may_match(method)):
                yield entry

    def may_describe(self, identity: Identity, service: str) -> bool:
        """Whether some rule allows calls of this service, and none that is stronger denies all of these."""
        if not 0 < len(service) <= MAX_BYTES:
            return False
        denied: list[CallPattern] = []
        for entry in self._calls_about(service):
            pattern = entry.pattern
            if entry.rule.unmet(identity.claims) is not None or not pattern.service.matches(service, identity):
                continue
            if not entry.rule.allows:
                denied.append(pattern)
            elif not any(deny.method.covers(pattern.method) for deny in denied):
                return True
        return False

    def services(self, identity: Identity) -> Sequence[str]:
        """Return the services of the rules in their order, without those that have a ``*`` in their name."""
        named = (
            pattern.service.fill_in(identity)
            for rule in self.rules
            if rule.allows and rule.unmet(identity.claims) is None
            for pattern in rule.methods
        )
        return tuple(name for name in dict.fromkeys(named) if name is not None and self.may_describe(identity, name))

    def names(self, identity: Identity, service: str, method: str) -> bool:
        """Whether no rule with a ``*`` or a placeholder is what allows this call."""
        decision = self.decide_call(identity, service, method)
        pattern = decision.pattern
        # Where the rules do not allow it, a subclass has, or an authorizer, and that by its name.
        return not decision.allowed or not isinstance(pattern, CallPattern) or pattern.names_the_method

    def rate(self, identity: Identity, service: str, method: str) -> CallRate | None:
        """The rate of the rule that decides."""
        return self.decide_call(identity, service, method).rate

    def consider_call(self, identity: Identity, service: str, method: str) -> list[Considered]:
        """The rules that are about this method, strongest first, and what becomes of each."""
        found: list[Considered] = []
        decided: _Entry[CallPattern] | None = None
        for entry in self._calls_about(service, method) if _is_callable(service, method) else ():
            pattern = entry.pattern
            unmet = entry.rule.unmet(identity.claims)
            if unmet is not None:
                why = f"does not apply: {unmet} does not hold"
            elif not pattern.matches(service, method, identity):
                why = "does not apply: a placeholder stands for something else, or for nothing"
            elif decided is None:
                found.append(Considered(entry.rule, pattern, True, "decides"))
                decided = entry
                continue
            else:
                why = _weaker(entry, decided, _CALL_REASONS)
            found.append(Considered(entry.rule, pattern, False, why))
        return found

    # --- subscriptions ----------------------------------------------------------------------------------------

    def may_subscribe(self, identity: Identity, pattern: str) -> bool:
        """Whether the rules allow every topic that ``pattern`` may match."""
        return self.decide_subscribe(identity, pattern).allowed

    def decide_subscribe(self, identity: Identity, pattern: str) -> Decision:
        """Whether this identity may subscribe to ``pattern``, and by which rule.

        A rule has to allow all of it, and no stronger one may deny a part of it, unless one that is stronger still
        allows all that is denied there. So no topic within it is one that the rules deny.
        """
        if check_pattern(pattern) is not None:
            return _NO_PATTERN
        stronger: list[tuple[_Entry[TopicPattern], str]] = []
        for entry, own in self._topics_for(identity):
            if entry.rule.allows and covers(own, pattern):
                in_the_way = _first_denial(stronger, pattern)
                return entry.decision if in_the_way is None else in_the_way.decision
            stronger.append((entry, own))
        return _NO_RULE

    def _topics_for(self, identity: Identity) -> Iterator[tuple[_Entry[TopicPattern], str]]:
        """The entries that apply to this identity, strongest first, and what their patterns are for it."""
        for entry in self._topics:
            if entry.rule.unmet(identity.claims) is None:
                own = entry.pattern.fill_in(identity)
                if own is not None:
                    yield entry, own

    def delivery(self, identity: Identity, pattern: str) -> Delivery:
        """The delivery of the rule that decides."""
        decision = self.decide_subscribe(identity, pattern)
        return decision.rule.delivery if decision.allowed and decision.rule is not None else "close"

    def topics(self, identity: Identity) -> Sequence[str]:
        """Return the patterns of the rules, filled in for this identity, of which nothing is denied."""
        allowed = {entry: own for entry, own in self._topics_for(identity) if entry.rule.allows}
        # In the order of the file: the strongest first would be of no use to a reader.
        named = (allowed.get(entry) for entry in sorted(self._topics, key=lambda entry: entry.number))
        return tuple(own for own in dict.fromkeys(named) if own is not None and self.may_subscribe(identity, own))

    def consider_subscribe(self, identity: Identity, pattern: str) -> list[Considered]:
        """The rules that are about some topic of ``pattern``, strongest first, and what becomes of each."""
        decision = self.decide_subscribe(identity, pattern)
        found: list[Considered] = []
        if decision is _NO_PATTERN:
            return found
        applying = dict(self._topics_for(identity))
        decided = next((entry for entry in applying if entry.decision is decision), None)
        for entry in self._topics:
            own = applying.get(entry)
            if own is None:
                unmet = entry.rule.unmet(identity.claims)
                reason = "a placeholder stands for nothing" if unmet is None else f"{unmet} does not hold"
                why = f"does not apply: {reason}"
            elif not overlaps(own, pattern):
                continue
            elif entry is decided:
                why = "decides"
            elif entry.rule.allows and not covers(own, pattern):
                why = "allows only a part of it"
            elif decided is None:
                why = "denies a part of it"
            elif entry.key < decided.key:
                why = _weaker(entry, decided, _TOPIC_REASONS)
            else:
                why = "denies a part of it, of which a stronger one allows all"
            found.append(Considered(entry.rule, entry.pattern, entry is decided, why))
        return found


def _sorted(patterns: Iterable[tuple[Rule, P]]) -> list[_Entry[P]]:
    entries = [_Entry(rule, pattern, number) for number, (rule, pattern) in enumerate(patterns)]
    return sorted(entries, key=lambda entry: entry.key, reverse=True)


def _is_callable(service: str, method: str) -> bool:
    # A dot in the method would let ("a", "b.c") pass for ("a.b", "c").
    fits = 0 < len(service) <= MAX_BYTES and 0 < len(method) <= MAX_BYTES
    return fits and "." not in method and not is_private(method)


def _test(entry: _Entry[CallPattern], service: str, method: str) -> _Test | None:
    """What the identity has to fulfil for this entry to apply to the method; None where anybody does."""
    conditions, pattern = entry.rule.conditions, entry.pattern
    names = ((pattern.service, service), (pattern.method, method))
    left = [(each, name) for each, name in names if each.has_placeholders]  # the others match, or this were not asked
    if not conditions and not left:
        return None

    def test(identity: Identity) -> bool:
        claims = identity.claims
        for condition in conditions:
            if not condition.holds(claims):
                return False
        return not left or all(each.matches(name, identity) for each, name in left)

    return test


def _weaker(entry: _Entry[P], than: _Entry[P], reasons: Sequence[str]) -> str:
    reason = next(why for why, one, other in zip(reasons, entry.key, than.key, strict=True) if one != other)
    return f"is weaker than {than.rule.where}, which {reason}"


def _first_denial(entries: Sequence[tuple[_Entry[TopicPattern], str]], pattern: str) -> _Entry[TopicPattern] | None:
    """The first that denies a part of ``pattern`` of which not all is allowed by a stronger one."""
    for number, (entry, own) in enumerate(entries):
        if entry.rule.allows or not overlaps(own, pattern):
            continue
        if not any(before.rule.allows and covers(other, own) for before, other in entries[:number]):
            return entry
    return None


# --- from settings --------------------------------------------------------------------------------------------


class ExposePolicy(RulePolicy):
    """What the settings ``EXPOSE`` and ``EXPOSE_TOPICS`` say: rules without conditions that allow something.

    Only ``{user_id}`` makes users differ.

    ``expose`` holds patterns of ``service.method``. ``*`` is any run of characters, also an empty one;
    everything else is literal and case-sensitive. The last dot separates service and method, and no ``*``
    reaches across it.

    ``expose_topics`` holds topic patterns, in which ``{user_id}`` stands for the caller's user id as
    :func:`escape_word` writes it, as a word or a part of one. Patterns should not meet: where
    ``user-{user_id}`` and ``user-{user_id}-log`` are exposed, the user ``a-log`` may see the log of the user
    ``a``. Literal words that no other pattern starts with keep them apart, as in ``users.{user_id}.#``.

    Raises :exc:`SettingsError` for a pattern that is not one.
    """

    def __init__(self, expose: Sequence[str], expose_topics: Sequence[str], *, own_service: str = "") -> None:
        calls = tuple(pattern for pattern in map(_parse_call, expose) if not pattern.is_private)
        topics = tuple(map(_parse_topic, expose_topics))
        rules = [
            *([Rule(True, methods=calls, source="EXPOSE")] if calls else ()),
            *([Rule(True, topics=topics, source="EXPOSE_TOPICS")] if topics else ()),
        ]
        super().__init__(rules, own_service=own_service)


def _parse_call(pattern: str) -> CallPattern:
    try:
        return CallPattern.parse(pattern, placeholders=False)
    except ValueError as error:
        raise SettingsError(
            f"EXPOSE: {pattern!r} is not a pattern of service.method; allowed are printable ASCII characters "
            "on both sides of a dot, with * for any run of them, such as orders.* or users.me"
        ) from error


def _parse_topic(pattern: str) -> TopicPattern:
    reason = "braces that are not {user_id}"
    try:
        if not set(pattern.replace(_USER_ID, "")) & {"{", "}"}:
            return TopicPattern.parse(pattern)
    except ValueError as error:
        reason = str(error)
    raise SettingsError(
        f"EXPOSE_TOPICS: {pattern!r} is not a topic pattern: {reason}; allowed are words separated by "
        f"dots, * for one word, # for any number of words, {_USER_ID} in a word, such as orders.# or "
        f"users.{_USER_ID}.*"
    )


# --- by the host application ----------------------------------------------------------------------------------


class Authorizer(Protocol):
    """A function of the host application that has the last word.

    ``action`` is ``call`` (``name`` is ``service.method``), ``subscribe`` (a topic pattern) or ``describe`` (a
    service). ``default`` is what the policy says. The answer is a bool, or ``default`` as it came, or a Decision with
    a reason for the log. It is asked for every frame, on the event loop, so it must not wait for anything.
    """

    def __call__(
        self, identity: Identity, action: Literal["call", "subscribe", "describe"], name: str, default: Decision, /
    ) -> Decision | bool:
        """Decide. An exception is a no."""
        ...


class AuthorizedPolicy:
    """A policy whose decisions go by an :class:`Authorizer`. What is never callable, it cannot allow either."""

    def __init__(self, policy: Policy, authorizer: Authorizer) -> None:
        if inspect.iscoroutinefunction(authorizer) or inspect.iscoroutinefunction(type(authorizer).__call__):
            raise TypeError("authorizer: it is asked for every frame and must not wait, so it cannot be a coroutine")
        self._policy = policy
        self._authorizer = authorizer
        #: The policy, if its `decide_call` holds all that it has to say about a call.
        self._rules = policy if isinstance(policy, RulePolicy) and not policy.is_overridden else None
        self._overridden = _overrides(self, AuthorizedPolicy, "may_call", "decide_call", "rate")

    @property
    def policy(self) -> Policy:
        """What the authorizer is asked about."""
        return self._policy

    @property
    def exposes_anything(self) -> bool:
        """Whether there may be anything: what the authorizer allows is not known before it is asked."""
        return True

    def may_call(self, identity: Identity, service: str, method: str) -> bool:
        """Whether the authorizer allows it."""
        return self.decide_call(identity, service, method).allowed

    def decide_call(self, identity: Identity, service: str, method: str) -> Decision:
        """What the authorizer makes of the policy's decision."""
        if not _is_callable(service, method):
            return _NO_NAME
        if self._rules is not None:
            default = self._rules.decide_call(identity, service, method)
        else:
            policy = self._policy
            default = _decision(policy.may_call, getattr(policy, "decide_call", None), identity, service, method)
        return self._ask(identity, "call", f"{service}.{method}", default)

    def judge_call(self, identity: Identity, service: str, method: str) -> CallVerdict:
        """Answer ``may_call`` and ``rate``; the authorizer is asked once."""
        if self._rules is None or self._overridden:
            return _ask_both(self, identity, service, method)
        if not _is_callable(service, method):
            return _DENIED
        default = self._rules.decide_call(identity, service, method)
        decision = self._ask(identity, "call", f"{service}.{method}", default)
        return _allowed_at(default.rate) if decision.allowed else _DENIED

    def may_subscribe(self, identity: Identity, pattern: str) -> bool:
        """Whether the authorizer allows it."""
        return self.decide_subscribe(identity, pattern).allowed

    def decide_subscribe(self, identity: Identity, pattern: str) -> Decision:
        """What the authorizer makes of the policy's decision."""
        if check_pattern(pattern) is not None:
            return _NO_PATTERN
        policy = self._policy
        default = _decision(policy.may_subscribe, getattr(policy, "decide_subscribe", None), identity, pattern)
        return self._ask(identity, "subscribe", pattern, default)

    def may_describe(self, identity: Identity, service: str) -> bool:
        """Whether the authorizer allows it."""
        if not 0 < len(service) <= MAX_BYTES:
            return False
        default = _decision(self._policy.may_describe, None, identity, service)
        return self._ask(identity, "describe", service, default).allowed

    def services(self, identity: Identity) -> Sequence[str]:
        """Those of the policy that may be described."""
        return [service for service in self._policy.services(identity) if self.may_describe(identity, service)]

    def names(self, identity: Identity, service: str, method: str) -> bool:
        """What the policy does not allow, the authorizer has allowed by its name."""
        return not self._policy.may_call(identity, service, method) or self._policy.names(identity, service, method)

    def rate(self, identity: Identity, service: str, method: str) -> CallRate | None:
        """The policy's."""
        return self._policy.rate(identity, service, method)

    def delivery(self, identity: Identity, pattern: str) -> Delivery:
        """The policy's."""
        return self._policy.delivery(identity, pattern)

    def topics(self, identity: Identity) -> Sequence[str]:
        """Those of the policy that the authorizer allows."""
        return [pattern for pattern in self._policy.topics(identity) if self.may_subscribe(identity, pattern)]

    def _ask(
        self, identity: Identity, action: Literal["call", "subscribe", "describe"], name: str, default: Decision
    ) -> Decision:
        try:
            answer = self._authorizer(identity, action, name, default)
        except Exception as error:
            # Without its message, which may quote the token.
            logger.error("the authorizer raised %s for a %s, which is a no", type(error).__name__, action)
            if logger.isEnabledFor(logging.DEBUG):
                logger.debug("It was raised here:\n%s", "".join(traceback.format_tb(error.__traceback__)))
            return Decision(False, f"the authorizer raised {type(error).__name__}")
        if isinstance(answer, Decision):
            return answer
        if isinstance(answer, bool):
            return default if answer is default.allowed else Decision(answer, "the authorizer")
        if inspect.iscoroutine(answer):
            answer.close()
        logger.error("the authorizer answered with a %s for a %s, which is a no", type(answer).__name__, action)
        return Decision(False, "the authorizer gave no answer")


def _decision(
    may: Callable[..., bool], decide: Callable[..., Decision] | None, identity: Identity, *names: str
) -> Decision:
    """What a policy says, with its reason if it gives any. What counts is ``may``: a subclass may have changed it."""
    allowed = may(identity, *names)
    decision = None if decide is None else decide(identity, *names)
    return decision if decision is not None and decision.allowed is allowed else Decision(allowed, "the policy")


def completed(policy: Any) -> Policy:
    """``policy`` itself, or if it lacks what has a default, one that has it."""
    return policy if isinstance(policy, Policy) and _defines_judge_call(policy) else _Completed(policy)


def class_name(policy: Policy) -> str:
    """The name of the class that the host application knows: for a completed policy, that of its own."""
    return type(policy.policy if isinstance(policy, _Completed) else policy).__name__


def _defines_judge_call(policy: object) -> bool:
    # Not hasattr(): where __getattr__ passes on to another policy, that one's answer would bypass this one's may_call.
    return inspect.getattr_static(policy, "judge_call", None) is not None


class _Completed(Policy):
    """A policy that answers only some of the questions that have a default."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        for name in ("names", "rate", "delivery", "topics", "decide_call", "decide_subscribe"):
            if hasattr(policy, name):
                setattr(self, name, getattr(policy, name))
        if _defines_judge_call(policy):
            setattr(self, "judge_call", policy.judge_call)  # noqa: B010 - as above

    @property
    def policy(self) -> Policy:
        """The policy that is completed."""
        return self._policy

    @property
    def exposes_anything(self) -> bool:
        return self._policy.exposes_anything

    def may_call(self, identity: Identity, service: str, method: str) -> bool:
        return self._policy.may_call(identity, service, method)

    def may_subscribe(self, identity: Identity, pattern: str) -> bool:
        return self._policy.may_subscribe(identity, pattern)

    def may_describe(self, identity: Identity, service: str) -> bool:
        return self._policy.may_describe(identity, service)

    def services(self, identity: Identity) -> Sequence[str]:
        return self._policy.services(identity)

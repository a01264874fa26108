"""The policy of rules: the most specific rule that applies decides. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, ClassVar, Final, TypeAlias

from ..rates import CallRate
from ..topics import MAX_BYTES, check_pattern, covers, overlaps
from .call_index import CallIndex, Test, make_test
from .decisions import NO_NAME, NO_PATTERN, NO_RULE, Considered, Decision, is_callable
from .patterns import CallPattern, TopicPattern
from .policy import ALLOWED, DENIED, CallVerdict, ask_both, overrides
from .precedence import CALL_ADVANTAGES, TOPIC_ADVANTAGES, Entry, sort_entries, weakness
from .rules import Delivery, Rule, ToolOptions
from .topic_index import TopicIndex

if TYPE_CHECKING:
    from ..authentication import Identity

__all__ = ["MAX_REMEMBERED_CALLS", "RulePolicy", "ToolRules"]

#: Methods in one generation of those whose candidates are remembered, beside the methods that the
#: rules name in full. Clients can make up any number of method names.
MAX_REMEMBERED_CALLS: Final = 1024

#: The decisions about one method, strongest first, each with the test that an identity has to pass (None: none).
_Candidates: TypeAlias = tuple[tuple[Test, Decision], ...]


class RulePolicy:
    """A policy of rules. The most specific rule that applies decides; among equals, a denial. Without any: denied.

    ``docs/policy.md`` has the order in full. A method that starts with ``_``, and ``nuropb_describe``, are never
    callable, whatever the rules say. ``own_service`` is the gateway's own name on the mesh. Its methods (send to users,
    disconnect users) are meant for services: a rule allows them only if it names the service without ``*``.
    """

    #: Whether the rules about tools count here, in place of those about calls.
    about_tools: ClassVar[bool] = False

    def __init__(self, rules: Iterable[Rule], *, own_service: str = "") -> None:
        self._own_service = own_service
        self._tools: ToolRules | None = None
        self._overridden = overrides(self, RulePolicy, "may_call", "rate")
        self.replace(rules)

    def replace(self, rules: Iterable[Rule]) -> None:
        """Replace all rules, from the next decision on."""
        self.rules = tuple(rules)
        self._about_calls = tuple(rule for rule in self.rules if (rule.tool is not None) is self.about_tools)
        self._calls = sort_entries((rule, pattern) for rule in self._about_calls for pattern in rule.methods)
        self._topics = sort_entries((rule, pattern) for rule in self.rules for pattern in rule.topics)
        #: Whether all rules have the same delivery, so that none has to be found.
        self._all_close = all(rule.delivery == "close" for rule in self.rules)
        self._index = CallIndex(self._calls, self._own_service)
        self._allowing = TopicIndex((entry.pattern, entry) for entry in self._topics if entry.rule.allows)
        self._denying = TopicIndex((entry.pattern, entry) for entry in self._topics if not entry.rule.allows)
        # Two generations, of which every call looks at the younger one, a plain dict: a GenerationCache would take
        # twice as long (57 ns, not 31 ns). A method that is called again in time stays, however many others are made up
        # meanwhile; and a method that a rule names in full stays for good.
        self._remembered: dict[tuple[str, str], _Candidates] = {}
        self._older: dict[tuple[str, str], _Candidates] = {}
        self._named: dict[tuple[str, str], _Candidates] = {}
        if self._tools is not None:
            self._tools.replace(self.rules)

    @property
    def tools(self) -> ToolRules:
        """The rules about tools, which are replaced together with the others."""
        if self._tools is None:
            self._tools = ToolRules(self.rules, own_service=self._own_service)
        return self._tools

    @property
    def exposes_anything(self) -> bool:
        """Whether some rule allows a call or a subscription."""
        return any(rule.allows and (rule.topics or rule.tool is None) for rule in self.rules)

    @property
    def remembered(self) -> int:
        """The number of methods whose candidates are remembered, beside those that the rules name in full.

        At most twice `MAX_REMEMBERED_CALLS`.
        """
        return len(self._remembered) + len(self._older)

    @property
    def is_overridden(self) -> bool:
        """Whether a subclass overrides ``may_call`` or ``rate``, so that ``decide_call`` alone does not judge calls."""
        return self._overridden

    # --- calls ------------------------------------------------------------------------------------------------

    def may_call(self, identity: Identity, service: str, method: str) -> bool:
        """Return whether the rule that decides allows the call."""
        return self.decide_call(identity, service, method).allowed

    def judge_call(self, identity: Identity, service: str, method: str) -> CallVerdict:
        """Answer ``may_call`` and ``rate`` by a single decision, unless a subclass overrides one of them."""
        if self._overridden:
            return ask_both(self, identity, service, method)
        decision = self.decide_call(identity, service, method)
        if not decision.allowed:
            return DENIED
        rule = decision.rule
        return ALLOWED if rule is None or rule.rate is None else CallVerdict(True, rule.rate)

    def decide_call(self, identity: Identity, service: str, method: str) -> Decision:
        """Decide whether this identity may call this method, with the rule that decides."""
        candidates = self._remembered.get((service, method))
        if candidates is None:
            if not is_callable(service, method):
                return NO_NAME
            candidates = self._recall(service, method)
        for test, decision in candidates:
            if test is None or test(identity):
                return decision
        return NO_RULE

    def _recall(self, service: str, method: str) -> _Candidates:
        """Return the decisions that depend on the identity alone, and move them to the younger generation."""
        key = (service, method)
        candidates = self._named.get(key) or self._older.get(key)
        if candidates is None:
            candidates = self._find_candidates(service, method)
        if len(self._remembered) >= MAX_REMEMBERED_CALLS:
            self._older, self._remembered = self._remembered, {}
        self._remembered[key] = candidates
        return candidates

    def _find_candidates(self, service: str, method: str) -> _Candidates:
        found: list[tuple[Test, Decision]] = []
        is_named = False
        for entry in self._index.about(service, method):
            is_named = is_named or entry.pattern.names_the_method
            test = make_test(entry, service, method)
            found.append((test, entry.decision))
            if test is None:
                break  # it always applies, so the weaker entries never decide
        candidates = tuple(found)
        if is_named:
            self._named[service, method] = candidates
        return candidates

    def may_describe(self, identity: Identity, service: str) -> bool:
        """Return whether a rule allows calls of this service that no stronger rule denies altogether."""
        if not 0 < len(service) <= MAX_BYTES:
            return False
        denied: list[CallPattern] = []
        for entry in self._index.about(service):
            pattern = entry.pattern
            if entry.rule.unmet(identity.claims) is not None or not pattern.service.matches(service, identity):
                continue
            if not entry.rule.allows:
                denied.append(pattern)
            elif not any(deny.method.covers(pattern.method) for deny in denied):
                return True
        return False

    def services(self, identity: Identity) -> Sequence[str]:
        """Return the services of the rules, in their order, except those with a ``*`` in their name."""
        named = (
            pattern.service.fill_in(identity)
            for rule in self._about_calls
            if rule.allows and rule.unmet(identity.claims) is None
            for pattern in rule.methods
        )
        return tuple(name for name in dict.fromkeys(named) if name is not None and self.may_describe(identity, name))

    def names(self, identity: Identity, service: str, method: str) -> bool:
        """Return whether the call is allowed by something else than a pattern with a ``*`` or a placeholder."""
        decision = self.decide_call(identity, service, method)
        pattern = decision.pattern
        # A call that the rules deny was allowed by a subclass or an authorizer, which saw the full name.
        return not decision.allowed or not isinstance(pattern, CallPattern) or pattern.names_the_method

    def names_service(self, identity: Identity, service: str, method: str) -> bool:
        """Return whether the call is allowed by something else than a service's name with a ``*`` or a placeholder."""
        decision = self.decide_call(identity, service, method)
        pattern = decision.pattern
        return not decision.allowed or not isinstance(pattern, CallPattern) or pattern.service.is_literal

    def rate(self, identity: Identity, service: str, method: str) -> CallRate | None:
        """Return the rate of the rule that decides."""
        return self.decide_call(identity, service, method).rate

    def consider_call(self, identity: Identity, service: str, method: str) -> list[Considered]:
        """Return the rules about this method, strongest first, with the reason why each decides or not."""
        found: list[Considered] = []
        decided: Entry[CallPattern] | None = None
        for entry in self._index.about(service, method) if is_callable(service, method) else ():
            pattern = entry.pattern
            unmet = entry.rule.unmet(identity.claims)
            if unmet is not None:
                why = f"does not apply: {unmet} does not hold"
            elif not pattern.matches(service, method, identity):
                why = "does not apply: a placeholder has another value, or none"
            elif decided is None:
                found.append(Considered(entry.rule, pattern, True, "decides"))
                decided = entry
                continue
            else:
                why = weakness(entry, decided, CALL_ADVANTAGES)
            found.append(Considered(entry.rule, pattern, False, why))
        return found

    # --- subscriptions ----------------------------------------------------------------------------------------

    def may_subscribe(self, identity: Identity, pattern: str) -> bool:
        """Return whether the rules allow every topic that ``pattern`` may match."""
        return self.decide_subscribe(identity, pattern).allowed

    def decide_subscribe(self, identity: Identity, pattern: str) -> Decision:
        """Decide whether this identity may subscribe to ``pattern``, with the rule that decides.

        A rule has to allow all of the pattern. A stronger rule that denies a part of it decides, unless an even
        stronger rule allows everything that this denial covers. So no denied topic is within an allowed pattern.
        """
        if check_pattern(pattern) is not None:
            return NO_PATTERN
        decided = self._strongest_cover(identity, pattern)
        if decided is None:
            return NO_RULE
        in_the_way = self._strongest_denial(identity, pattern, decided)
        return decided.decision if in_the_way is None else in_the_way.decision

    def _strongest_cover(self, identity: Identity, pattern: str) -> Entry[TopicPattern] | None:
        """Return the strongest entry that allows all of ``pattern``."""
        covering = self._allowing.covering(pattern, identity)
        applying = (entry for entry in covering if entry.rule.unmet(identity.claims) is None)
        return max(applying, key=_strength, default=None)

    def _strongest_denial(
        self, identity: Identity, pattern: str, decided: Entry[TopicPattern]
    ) -> Entry[TopicPattern] | None:
        """Return the strongest entry above ``decided`` that denies a part of ``pattern``.

        An entry is left out if an even stronger one allows everything that it denies.
        """
        overlapping = self._denying.overlapping(pattern, identity)
        stronger = (entry for entry in overlapping if entry.key > decided.key)
        for entry in sorted(stronger, key=_strength, reverse=True):
            own = entry.pattern.fill_in(identity) if entry.rule.unmet(identity.claims) is None else None
            if own is not None:
                allowing = self._strongest_cover(identity, own)
                if allowing is None or allowing.key < entry.key:
                    return entry
        return None

    def _topics_for(self, identity: Identity) -> Iterator[tuple[Entry[TopicPattern], str]]:
        """Yield the entries that apply to this identity, strongest first, with their patterns filled in for it."""
        for entry in self._topics:
            if entry.rule.unmet(identity.claims) is None:
                own = entry.pattern.fill_in(identity)
                if own is not None:
                    yield entry, own

    def delivery(self, identity: Identity, pattern: str) -> Delivery:
        """Return the delivery of the rule that decides."""
        if self._all_close:
            return "close"
        decision = self.decide_subscribe(identity, pattern)
        return decision.rule.delivery if decision.allowed and decision.rule is not None else "close"

    def topics(self, identity: Identity) -> Sequence[str]:
        """Return the patterns of the rules, filled in for this identity, except those with a denied part."""
        allowed = {entry: own for entry, own in self._topics_for(identity) if entry.rule.allows}
        # In the order of the file, which means more to a reader than the order by strength.
        named = (allowed.get(entry) for entry in sorted(self._topics, key=lambda entry: entry.number))
        return tuple(own for own in dict.fromkeys(named) if own is not None and self.may_subscribe(identity, own))

    def consider_subscribe(self, identity: Identity, pattern: str) -> list[Considered]:
        """Return the rules about topics of ``pattern``, strongest first, with the reason why each decides or not."""
        decision = self.decide_subscribe(identity, pattern)
        found: list[Considered] = []
        if decision is NO_PATTERN:
            return found
        applying = dict(self._topics_for(identity))
        decided = next((entry for entry in applying if entry.decision is decision), None)
        for entry in self._topics:
            own = applying.get(entry)
            if own is None:
                unmet = entry.rule.unmet(identity.claims)
                reason = "a placeholder has no value" if unmet is None else f"{unmet} does not hold"
                why = f"does not apply: {reason}"
            elif not overlaps(own, pattern):
                continue
            elif entry is decided:
                why = "decides"
            elif entry.rule.allows and not covers(own, pattern):
                why = "allows only a part of the pattern"
            elif decided is None:
                why = "denies a part of the pattern"
            elif entry.key < decided.key:
                why = weakness(entry, decided, TOPIC_ADVANTAGES)
            else:
                why = "denies a part of the pattern, but a stronger rule allows this part"
            found.append(Considered(entry.rule, entry.pattern, entry is decided, why))
        return found


class ToolRules(RulePolicy):
    """The rules about tools. They do not allow a call: see :class:`~.tool_policy.ToolPolicy`."""

    about_tools = True

    def options(self, identity: Identity, service: str, method: str) -> ToolOptions:
        """Return the options of the rule that decides."""
        rule = self.decide_call(identity, service, method).rule
        return ToolOptions() if rule is None or rule.tool is None else rule.tool


_strength = attrgetter("key")

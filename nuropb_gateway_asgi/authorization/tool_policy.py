"""The policy of tools: the methods that agents may call on behalf of a user. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from ..rates import CallRate
from .authorizer import AuthorizedPolicy
from .decisions import Considered, Decision
from .policy import DENIED, CallVerdict, Policy
from .rule_policy import RulePolicy, ToolRules
from .rules import Delivery, ToolOptions

if TYPE_CHECKING:
    from ..authentication import Identity

__all__ = ["ToolPolicy"]

_NOT_A_TOOL: Final = "no rule allows it as a tool"


class ToolPolicy:
    """The part of a policy that holds for agents: what the policy allows, and a rule about tools allows as well.

    So an agent never has more in reach than its user, and what the user may call is not by itself a tool. The rules
    about tools are those of a RulePolicy, also within an AuthorizedPolicy; with any other policy nothing is a tool.
    Subscriptions are those of the policy.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        rules: object = policy
        while isinstance(rules, AuthorizedPolicy):
            rules = rules.policy
        self._rules = rules if isinstance(rules, RulePolicy) else None
        self._tools = ToolRules(()) if self._rules is None else self._rules.tools

    @property
    def exposes_anything(self) -> bool:
        """Whether some rule allows a tool."""
        return any(rule.allows and rule.tool is not None for rule in self._tools.rules)

    def may_call(self, identity: Identity, service: str, method: str) -> bool:
        """Return whether an agent of this identity may call the method."""
        return self._tools.may_call(identity, service, method) and self._policy.may_call(identity, service, method)

    def decide_call(self, identity: Identity, service: str, method: str) -> Decision:
        """Decide as :meth:`may_call`, with the rule about tools unless the policy itself denies the call."""
        tool = self._tools.decide_call(identity, service, method)
        if not tool.allowed:
            return tool if tool.rule is not None else Decision(False, _NOT_A_TOOL)
        if not self._policy.may_call(identity, service, method):
            decide = getattr(self._policy, "decide_call", None)
            reason = "the policy" if decide is None else decide(identity, service, method).reason
            return Decision(False, f"its user may not call it: {reason}")
        return tool

    def judge_call(self, identity: Identity, service: str, method: str) -> CallVerdict:
        """Answer ``may_call`` and ``rate``."""
        tool = self._tools.judge_call(identity, service, method)
        if not tool.allowed:
            return DENIED
        call = self._policy.judge_call(identity, service, method)
        return tool if call.allowed and tool.rate is not None else call

    def consider_call(self, identity: Identity, service: str, method: str) -> list[Considered]:
        """Return the rules about this tool and then those about this call, strongest first."""
        calls = [] if self._rules is None else self._rules.consider_call(identity, service, method)
        return [*self._tools.consider_call(identity, service, method), *calls]

    def options(self, identity: Identity, service: str, method: str) -> ToolOptions:
        """Return the options of the rule that decides about the tool."""
        return self._tools.options(identity, service, method)

    def may_describe(self, identity: Identity, service: str) -> bool:
        """Return whether some method of the service may be a tool."""
        return self._tools.may_describe(identity, service) and self._policy.may_describe(identity, service)

    def services(self, identity: Identity) -> Sequence[str]:
        """Return the services that a rule about tools or about calls names, and that may have a tool."""
        named = dict.fromkeys((*self._tools.services(identity), *self._policy.services(identity)))
        return tuple(service for service in named if self.may_describe(identity, service))

    def names(self, identity: Identity, service: str, method: str) -> bool:
        """Return whether both rules name the method in full."""
        both = self._tools, self._policy
        return all(each.names(identity, service, method) for each in both)

    def names_service(self, identity: Identity, service: str, method: str) -> bool:
        """Return whether both rules name the service in full."""
        both = self._tools, self._policy
        return all(each.names_service(identity, service, method) for each in both)

    def rate(self, identity: Identity, service: str, method: str) -> CallRate | None:
        """Return the rate of the rule about the tool, or that of the call."""
        rate = self._tools.rate(identity, service, method)
        return self._policy.rate(identity, service, method) if rate is None else rate

    def may_subscribe(self, identity: Identity, pattern: str) -> bool:
        """Return the policy's answer."""
        return self._policy.may_subscribe(identity, pattern)

    def delivery(self, identity: Identity, pattern: str) -> Delivery:
        """Return the policy's delivery."""
        return self._policy.delivery(identity, pattern)

    def topics(self, identity: Identity) -> Sequence[str]:
        """Return the policy's topic patterns."""
        return self._policy.topics(identity)

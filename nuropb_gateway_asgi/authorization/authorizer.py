"""The authorizer: a function of the host application that has the last word on each decision of a policy."""

from __future__ import annotations

import inspect
import logging
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from ..rates import CallRate
from ..topics import MAX_BYTES, check_pattern
from .decisions import NO_NAME, NO_PATTERN, Decision, is_callable
from .policy import ALLOWED, DENIED, CallVerdict, Policy, ask_both, overrides
from .rule_policy import RulePolicy
from .rules import Delivery

if TYPE_CHECKING:
    from ..authentication import Identity

__all__ = ["AuthorizedPolicy", "Authorizer"]

logger = logging.getLogger(__name__)


class Authorizer(Protocol):
    """A function of the host application that confirms or overrules the policy.

    ``action`` is ``call`` (``name`` is ``service.method``), ``subscribe`` (``name`` is a topic pattern) or ``describe``
    (``name`` is a service). ``default`` is the policy's decision. The authorizer returns a bool, ``default`` itself, or
    its own Decision with a reason for operators. It runs on the event loop for every frame, so it must not wait.
    """

    def __call__(
        self, identity: Identity, action: Literal["call", "subscribe", "describe"], name: str, default: Decision, /
    ) -> Decision | bool:
        """Decide. An exception denies the action."""
        ...


class AuthorizedPolicy:
    """A policy with an :class:`Authorizer`, which cannot allow methods that are never callable."""

    def __init__(self, policy: Policy, authorizer: Authorizer) -> None:
        if inspect.iscoroutinefunction(authorizer) or inspect.iscoroutinefunction(type(authorizer).__call__):
            raise TypeError(
                "authorizer: a coroutine function; expected a plain function, because it is called for every frame and "
                "must not wait"
            )
        self._policy = policy
        self._authorizer = authorizer
        #: The policy, if its `decide_call` alone answers `may_call` and `rate`.
        self._rules = policy if isinstance(policy, RulePolicy) and not policy.is_overridden else None
        self._overridden = overrides(self, AuthorizedPolicy, "may_call", "decide_call", "rate")

    @property
    def policy(self) -> Policy:
        """The policy whose decisions the authorizer confirms or overrules."""
        return self._policy

    @property
    def exposes_anything(self) -> bool:
        """Always True: only a call of the authorizer shows its permissions."""
        return True

    def may_call(self, identity: Identity, service: str, method: str) -> bool:
        """Return whether the authorizer allows the call."""
        return self.decide_call(identity, service, method).allowed

    def decide_call(self, identity: Identity, service: str, method: str) -> Decision:
        """Return the authorizer's decision about the call."""
        if not is_callable(service, method):
            return NO_NAME
        if self._rules is not None:
            default = self._rules.decide_call(identity, service, method)
        else:
            policy = self._policy
            default = _decision(policy.may_call, getattr(policy, "decide_call", None), identity, service, method)
        return self._ask(identity, "call", f"{service}.{method}", default)

    def judge_call(self, identity: Identity, service: str, method: str) -> CallVerdict:
        """Answer ``may_call`` and ``rate``. The authorizer is called once."""
        if self._rules is None or self._overridden:
            return ask_both(self, identity, service, method)
        if not is_callable(service, method):
            return DENIED
        default = self._rules.decide_call(identity, service, method)
        if not self._ask(identity, "call", f"{service}.{method}", default).allowed:
            return DENIED
        rate = default.rate
        return ALLOWED if rate is None else CallVerdict(True, rate)

    def may_subscribe(self, identity: Identity, pattern: str) -> bool:
        """Return whether the authorizer allows the subscription."""
        return self.decide_subscribe(identity, pattern).allowed

    def decide_subscribe(self, identity: Identity, pattern: str) -> Decision:
        """Return the authorizer's decision about the subscription."""
        if check_pattern(pattern) is not None:
            return NO_PATTERN
        policy = self._policy
        default = _decision(policy.may_subscribe, getattr(policy, "decide_subscribe", None), identity, pattern)
        return self._ask(identity, "subscribe", pattern, default)

    def may_describe(self, identity: Identity, service: str) -> bool:
        """Return whether the authorizer allows the description."""
        if not 0 < len(service) <= MAX_BYTES:
            return False
        default = _decision(self._policy.may_describe, None, identity, service)
        return self._ask(identity, "describe", service, default).allowed

    def services(self, identity: Identity) -> Sequence[str]:
        """Return the policy's services whose description the authorizer allows."""
        return [service for service in self._policy.services(identity) if self.may_describe(identity, service)]

    def names(self, identity: Identity, service: str, method: str) -> bool:
        """Return the policy's answer; a call that the policy denies was allowed by the authorizer by its full name."""
        return not self._policy.may_call(identity, service, method) or self._policy.names(identity, service, method)

    def names_service(self, identity: Identity, service: str, method: str) -> bool:
        """Return the policy's answer; a call that the policy denies was allowed by the authorizer by its full name."""
        policy = self._policy
        return not policy.may_call(identity, service, method) or policy.names_service(identity, service, method)

    def rate(self, identity: Identity, service: str, method: str) -> CallRate | None:
        """Return the policy's rate."""
        return self._policy.rate(identity, service, method)

    def delivery(self, identity: Identity, pattern: str) -> Delivery:
        """Return the policy's delivery."""
        return self._policy.delivery(identity, pattern)

    def topics(self, identity: Identity) -> Sequence[str]:
        """Return the policy's topic patterns that the authorizer allows."""
        return [pattern for pattern in self._policy.topics(identity) if self.may_subscribe(identity, pattern)]

    def _ask(
        self, identity: Identity, action: Literal["call", "subscribe", "describe"], name: str, default: Decision
    ) -> Decision:
        try:
            answer = self._authorizer(identity, action, name, default)
        except Exception as error:
            # Without the exception's message, which may quote the token.
            logger.error("the authorizer raised %s for a %s; denied", type(error).__name__, action)
            if logger.isEnabledFor(logging.DEBUG):
                logger.debug("It was raised here:\n%s", "".join(traceback.format_tb(error.__traceback__)))
            return Decision(False, f"the authorizer raised {type(error).__name__}")
        if isinstance(answer, Decision):
            return answer
        if isinstance(answer, bool):
            return default if answer is default.allowed else Decision(answer, "the authorizer")
        if inspect.iscoroutine(answer):
            answer.close()
        logger.error(
            "the authorizer returned an unusable %s for a %s; denied (it has to return a bool or a Decision)",
            type(answer).__name__,
            action,
        )
        return Decision(False, "the authorizer returned no decision")


def _decision(
    may: Callable[..., bool], decide: Callable[..., Decision] | None, identity: Identity, *names: str
) -> Decision:
    """Return a policy's decision, with its reason if it gives one. ``may`` counts: a subclass may override it."""
    allowed = may(identity, *names)
    decision = None if decide is None else decide(identity, *names)
    return decision if decision is not None and decision.allowed is allowed else Decision(allowed, "the policy")

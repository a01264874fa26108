"""The questions that the gateway asks a policy, and defaults for the optional ones. Pure."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, runtime_checkable

from ..rates import CallRate
from .rules import Delivery

if TYPE_CHECKING:
    from ..authentication import Identity

__all__ = [
    "ALLOWED",
    "DENIED",
    "CallVerdict",
    "Policy",
    "ask_both",
    "callable_methods",
    "class_name",
    "completed",
    "overrides",
]


class CallVerdict(NamedTuple):
    """The answer about one call: whether it is allowed, and the rate that it counts against (None: no own rate)."""

    allowed: bool
    rate: CallRate | None


#: Allowed without a rate; shared, so that most calls allocate no verdict.
ALLOWED: Final = CallVerdict(True, None)
DENIED: Final = CallVerdict(False, None)


@runtime_checkable
class Policy(Protocol):
    """The permissions of all clients.

    The gateway asks a policy for every frame, on the event loop. A policy therefore decides synchronously, within
    microseconds, from its arguments and from data in memory. A client cannot tell a service that it may not call from
    one that does not exist.
    """

    @property
    def exposes_anything(self) -> bool:
        """Whether the policy allows anything at all to any client."""

    def may_call(self, identity: Identity, service: str, method: str) -> bool:
        """Return whether this identity may send requests and commands to this method."""

    def may_subscribe(self, identity: Identity, pattern: str) -> bool:
        """Return whether this identity may see every event whose topic matches ``pattern``."""

    def may_describe(self, identity: Identity, service: str) -> bool:
        """Return whether this identity may see the service's description: some method of it may be callable."""

    def services(self, identity: Identity) -> Sequence[str]:
        """Return the services, as far as their names are known, on which this identity may call something."""

    # The following methods are optional: `completed` adds these defaults to a policy that lacks them.

    def names(self, identity: Identity, service: str, method: str) -> bool:
        """Return whether an allowed call is allowed by the full name of its method, not by a wildcard.

        The gateway asks about services that cannot describe themselves: it does not know which methods they hide.
        """
        return True

    def names_service(self, identity: Identity, service: str, method: str) -> bool:
        """Return whether an allowed call is allowed by the full name of its service, not by a wildcard.

        The gateway asks about services that are gateways themselves: their methods are for services, not for clients.
        """
        return True

    def rate(self, identity: Identity, service: str, method: str) -> CallRate | None:
        """Return the rate that this call counts against, or None for no limit beside those of the settings."""
        return None

    def delivery(self, identity: Identity, pattern: str) -> Delivery:
        """Return how to handle events of this subscription when the connection reads too slowly."""
        return "close"

    def topics(self, identity: Identity) -> Sequence[str]:
        """Return the topic patterns, as far as they are known, that this identity may subscribe to."""
        return ()

    def judge_call(self, identity: Identity, service: str, method: str) -> CallVerdict:
        """Answer ``may_call`` and ``rate`` at once. The gateway calls it once for every request and command.

        The default calls these two methods. A policy may override it to save the second decision; the answers must
        stay the same.
        """
        return ask_both(self, identity, service, method)


def ask_both(policy: Policy, identity: Identity, service: str, method: str) -> CallVerdict:
    """Judge a call by ``may_call`` and, if the call is allowed, ``rate``."""
    if not policy.may_call(identity, service, method):
        return DENIED
    rate = policy.rate(identity, service, method)
    return ALLOWED if rate is None else CallVerdict(True, rate)


def callable_methods(
    policy: Policy, identity: Identity, service: str, methods: Iterable[str], *, is_gateway: bool
) -> list[str]:
    """Return those of a service's ``methods`` that this identity may call. No wildcard includes a gateway's methods."""
    return [
        method
        for method in methods
        if policy.may_call(identity, service, method)
        and (not is_gateway or policy.names_service(identity, service, method))
    ]


def overrides(policy: object, base: type, *names: str) -> bool:
    """Return whether the class of ``policy`` overrides one of these methods of ``base``."""
    return any(getattr(type(policy), name) is not getattr(base, name) for name in names)


def completed(policy: Any) -> Policy:
    """Return ``policy`` itself, or, if it lacks optional methods, a wrapper with their defaults."""
    return policy if isinstance(policy, Policy) and _defines_judge_call(policy) else _Completed(policy)


def class_name(policy: Policy) -> str:
    """Return the name of the policy's class, as the host application knows it: without the wrapper of `completed`."""
    return type(policy.policy if isinstance(policy, _Completed) else policy).__name__


def _defines_judge_call(policy: object) -> bool:
    # Not hasattr(): where __getattr__ delegates to an inner policy, it would find the judge_call of the inner policy,
    # which knows nothing of the outer policy's may_call.
    return inspect.getattr_static(policy, "judge_call", None) is not None


class _Completed(Policy):
    """A policy of the host application, with defaults for the optional methods that it lacks."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        for name in ("names", "names_service", "rate", "delivery", "topics", "decide_call", "decide_subscribe"):
            if hasattr(policy, name):
                setattr(self, name, getattr(policy, name))
        if _defines_judge_call(policy):
            setattr(self, "judge_call", policy.judge_call)  # noqa: B010 - as above

    @property
    def policy(self) -> Policy:
        """The host application's policy."""
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

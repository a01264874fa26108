"""Checks of the topics of one subscription, in slices. Pure."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING

from .policy import Policy

if TYPE_CHECKING:
    from ..authentication import Identity

__all__ = ["TopicChecks"]


class TopicChecks:
    """Asks a policy about the topics of a subscription, ``count`` topics in each slice."""

    __slots__ = ("_count", "_policy", "_restarts")

    def __init__(self, policy: Policy, count: int) -> None:
        self._policy = policy
        self._count = count
        self._restarts = 0

    def restart(self) -> None:
        """Begin the checks that are going on anew, because the policy has changed."""
        self._restarts += 1

    def first_denied(
        self, identity: Callable[[], Identity | None], topics: Sequence[str]
    ) -> Generator[None, None, str | None]:
        """Return the first topic that ``identity`` may not subscribe to, or None; yield between two slices.

        All answers hold at the moment of the return: with a newer token, or after :meth:`restart`, all topics are
        checked again.
        """
        checked_for, restarts, checked = identity(), self._restarts, 0
        while checked < len(topics):
            if checked:
                yield
                if identity() is not checked_for or self._restarts != restarts:
                    checked_for, restarts, checked = identity(), self._restarts, 0
            if checked_for is None:
                return topics[0]
            for topic in topics[checked : checked + self._count]:
                if not self._policy.may_subscribe(checked_for, topic):
                    return topic
            checked += self._count
        return None

"""The waits between attempts."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Backoff"]


@dataclass(frozen=True)
class Backoff:
    """Exponential backoff with full jitter, so that clients that were disconnected together do not return together.

    A wait is random, up to a limit: ``base`` seconds before the first repetition, doubled for each further one, and
    ``cap`` at most. ``random`` returns numbers from 0 to 1; tests replace it.
    """

    base: float = 0.5
    cap: float = 30.0
    random: Callable[[], float] = random.random

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait after ``attempt`` failed repetitions."""
        # After 64 doublings every cap is reached. More would overflow a float.
        return self.random() * min(self.cap, self.base * 2.0 ** min(attempt, 64))

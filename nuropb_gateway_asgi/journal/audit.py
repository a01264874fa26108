"""The audit log: who connected, who was refused and why, revocations, and actions of operators. Never a token."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from .records import AUDIT_LOGGER, LineBudget, record

__all__ = ["AUDIT_LOGGER", "Audit"]

logger: Final = logging.getLogger(AUDIT_LOGGER)

#: Lines about refusals, which a stranger can cause at any rate, within so many seconds; further ones are summed up.
REFUSALS: Final = 100
REFUSAL_SECONDS: Final = 10.0
#: Seconds for which reads that are the same have one line: the admin page repeats its own every few seconds.
READ_SECONDS: Final = 300.0
#: Reads that are remembered for it; beyond them the oldest are forgotten.
MAX_READS: Final = 1000


class Audit:
    """The audit log of a process. Every line is written but those about refusals, whose number is bounded.

    ``reopen`` opens the file of the log again, once it was moved away.
    """

    def __init__(
        self, *, reopen: Callable[[], None] = lambda: None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        #: The time of the latest line about each read.
        self._reads: dict[tuple[str, str, str, str], float] = {}
        self._refusals = LineBudget(REFUSALS, REFUSAL_SECONDS, _report, clock=clock)
        self.reopen = reopen

    def close(self) -> None:
        """Report the lines that were left out."""
        self._refusals.close()

    def connected(self, who: dict[str, Any]) -> None:
        """Note a registered connection."""
        record(logger, "nuropb.audit.connected", "connected", who)

    def disconnected(self, who: dict[str, Any], how: dict[str, Any]) -> None:
        """Note the end of a connection."""
        attributes = {**who, **how}
        attributes.pop("nuropb.close_reason", None)
        record(logger, "nuropb.audit.disconnected", "disconnected", attributes)

    def refused(self, reason: str, detail: str, address: str, transport: str, user_id: str | None = None) -> None:
        """Note a refused connection, request or newer token. ``reason`` is the label of its metric."""
        if self._refusals.take(reason):
            attributes = {
                "user.id": user_id,
                "client.address": address or None,
                "nuropb.transport": transport,
                "nuropb.reason": reason,
                "nuropb.detail": detail,
            }
            record(logger, "nuropb.audit.refused", "refused", attributes)

    def revoked(self, tokens: dict[str, Any], until: float | None) -> None:
        """Note a revocation; ``tokens`` are the arguments that name the tokens."""
        record(logger, "nuropb.audit.revoked", "tokens revoked", {**_tokens(tokens), "nuropb.until": until})

    def taken_back(self, tokens: dict[str, Any]) -> None:
        """Note that a revocation was taken back."""
        record(logger, "nuropb.audit.revocation_taken_back", "revocation taken back", _tokens(tokens))

    def closed(self, user_ids: list[str] | None, session_id: str | None, code: int, reason: str, count: int) -> None:
        """Note that a service, the host application or an operator closed connections of users."""
        attributes = {
            "user.id": None if user_ids is None else ", ".join(user_ids),
            "session.id": session_id,
            "nuropb.close_code": int(code),
            "nuropb.close_reason": reason,
            "nuropb.count": count,
        }
        record(logger, "nuropb.audit.closed", "connections closed", attributes)

    def admin_action(self, address: str, action: str, parameters: str, outcome: str) -> None:
        """Note an action of an operator. ``parameters`` are without bodies of events."""
        attributes = {
            "client.address": address,
            "nuropb.action": action,
            "nuropb.parameters": parameters,
            "nuropb.outcome": outcome,
        }
        record(logger, "nuropb.audit.admin_action", "admin action", attributes)

    def admin_read(self, address: str, action: str, parameters: str, outcome: str) -> None:
        """Note that an operator has read data of users; the same read has a line every READ_SECONDS."""
        now, read = self._clock(), (address, action, parameters, outcome)
        noted = self._reads.get(read)
        if noted is not None and now - noted < READ_SECONDS:
            return
        self._reads.pop(read, None)
        if len(self._reads) >= MAX_READS:
            del self._reads[next(iter(self._reads))]
        self._reads[read] = now
        self.admin_action(address, action, parameters, outcome)

    def admin_refused(self, address: str, reason: str) -> None:
        """Note a refused request to the admin API."""
        if self._refusals.take(f"admin_{reason}"):
            attributes = {"client.address": address, "nuropb.reason": reason}
            record(logger, "nuropb.audit.admin_refused", "admin request refused", attributes)


def _tokens(tokens: dict[str, Any]) -> dict[str, Any]:
    names = {"user_id": "user.id", "session_id": "session.id", "token_id": "nuropb.token_id"}
    return {names.get(name, f"nuropb.{name}"): value for name, value in tokens.items()}


def _report(counts: Counter[str]) -> None:
    attributes = {"nuropb.left_out": counts.total(), "nuropb.left_out_by": dict(counts)}
    record(logger, "nuropb.audit.left_out", "lines about refusals are left out", attributes)

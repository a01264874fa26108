"""The journal of a connection kind: its access log and its audit log, as far as these are on."""

from __future__ import annotations

import dataclasses
from typing import Any, Final, Protocol

from .access import AccessLog, Traffic
from .audit import Audit

__all__ = ["NO_JOURNAL", "Journal"]


class _Identity(Protocol):
    @property
    def user_id(self) -> str: ...


class _Connection(Protocol):
    session_id: str
    address: str

    @property
    def identity(self) -> _Identity | None: ...


@dataclasses.dataclass(frozen=True)
class Journal:
    """The logs of a process, and the ``transport`` whose connections this one is for."""

    access: AccessLog | None = None
    audit: Audit | None = None
    transport: str = ""

    def for_transport(self, transport: str) -> Journal:
        """Return the journal of a connection kind; the logs are the same."""
        return dataclasses.replace(self, transport=transport)

    def count(self) -> Traffic | None:
        """Return new counters for a connection, if its line needs them."""
        return None if self.access is None else Traffic()

    def on_connected(self, connection: _Connection) -> None:
        """Note a registered connection."""
        if self.audit is not None:
            self.audit.connected(self._who(connection))

    def on_refused(self, connection: _Connection, reason: str, detail: str) -> None:
        """Note that something of a registered connection was refused."""
        if self.audit is not None:
            user_id = None if connection.identity is None else connection.identity.user_id
            self.audit.refused(reason, detail, connection.address, self.transport, user_id)

    def on_ended(
        self, connection: _Connection, closed: tuple[int, str] | None, left_with: int | None, traffic: Traffic | None
    ) -> None:
        """Note the end of a connection: with ``closed`` by the gateway, else by the client or the network."""
        if self.audit is None and traffic is None:
            return
        who = self._who(connection)
        code, reason = (left_with, None) if closed is None else closed
        by = "client" if closed is None else "gateway"
        how = {
            "nuropb.close_code": None if code is None else int(code),
            "nuropb.close_reason": reason or None,
            "nuropb.ended_by": by,
        }
        if self.audit is not None:
            self.audit.disconnected(who, how)
        if self.access is not None and traffic is not None:
            self.access.on_connection_ended(who, how, traffic)

    def close(self) -> None:
        """Report the lines that were left out."""
        for log in (self.access, self.audit):
            if log is not None:
                log.close()

    def _who(self, connection: _Connection) -> dict[str, Any]:
        identity = connection.identity
        return {
            "user.id": None if identity is None else identity.user_id,
            "session.id": connection.session_id,
            "client.address": connection.address or None,
            "nuropb.transport": self.transport,
        }


#: Neither log is on.
NO_JOURNAL: Final = Journal()

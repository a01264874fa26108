"""Remedies for the faults that the check of a broker finds."""

from __future__ import annotations

import shlex
from urllib.parse import unquote, urlsplit

from ._addresses import DEFAULT_PORTS

__all__ = ["BrokerFault", "remedy_for"]


class BrokerFault(ConnectionError):
    """The fault that the check of a broker found, and its ``remedy``; None if there is only a general one."""

    def __init__(self, fault: str, remedy: str | None) -> None:
        super().__init__(fault)
        self.remedy = remedy


def remedy_for(fault: str, url: str) -> str | None:
    """Return what an operator does about ``fault`` at the broker of ``url``, in one line; None for an unknown fault.

    ``fault`` is the text of ``explain``, which also tells what failed at each of several addresses.
    """
    parts = urlsplit(url)
    user, vhost = shlex.quote(unquote(parts.username or "guest")), shlex.quote(unquote(parts.path[1:]) or "/")
    place = f"{parts.hostname}:{parts.port or DEFAULT_PORTS.get(parts.scheme, '')}"
    if "refuses the credentials" in fault:
        return (
            "check user and password in MESH_URL (RabbitMQ lets guest connect from its own machine only): "
            f"rabbitmqctl authenticate_user {user}"
        )
    if "refuses the vhost" in fault:
        return (
            f"the path of MESH_URL is the vhost; make it, and let the user in: rabbitmqctl add_vhost {vhost}; "
            f"""rabbitmqctl set_permissions -p {vhost} {user} ".*" ".*" ".*\""""
        )
    if "gaierror" in fault:
        return f"check the spelling of {parts.hostname} in MESH_URL, and DNS on this machine"
    if "no answer from the broker in time" in fault:
        return f"check that RabbitMQ runs at {place}, without an alarm ('rabbitmqctl status'), and no firewall between"
    if "Connect call failed" in fault:
        return f"start RabbitMQ at {place}, or correct host and port in MESH_URL: AMQP has port 5672, with TLS 5671"
    return None

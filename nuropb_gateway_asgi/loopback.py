"""Loopback hosts: whether data sent to a host, or taken at an address, stays on this machine. Pure."""

from __future__ import annotations

import ipaddress

__all__ = ["is_loopback_host"]


def is_loopback_host(host: str) -> bool:
    """Return whether ``host``, a name or an address with or without brackets, is this machine's loopback interface.

    Of the names, only ``localhost`` counts: RFC 6761 asks resolvers to keep the names below it on this machine, too,
    and many ask the DNS instead. ``0.0.0.0`` and ``::`` are all interfaces of a machine, so they do not count.
    """
    if host.lower() == "localhost":
        return True
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)  # not a loopback address to Python before 3.13
    return bool((mapped or address).is_loopback)

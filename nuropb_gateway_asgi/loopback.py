"""Loopback hosts: the names and addresses whose data never leaves this machine. Pure."""

from __future__ import annotations

import ipaddress

__all__ = ["is_loopback_host"]


def is_loopback_host(host: str) -> bool:
    """Return whether ``host``, a name or an address with or without brackets, is this machine's loopback interface.

    Of names, only ``localhost`` counts: RFC 6761 asks resolvers to keep names such as ``a.localhost`` on this machine,
    too, but many resolvers ask the DNS. ``0.0.0.0`` and ``::`` do not count, because they are all interfaces of a
    machine.
    """
    if host.lower() == "localhost":
        return True
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)  # its is_loopback is False before Python 3.13
    return bool((mapped or address).is_loopback)

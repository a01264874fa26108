"""Keys that verify tokens, checked before they are used. python-jose is imported in this package alone.

* ``key``: a key and its algorithms, and which public keys are accepted
* ``signatures``: verifiers of signatures, by python-jose or cryptography
* ``configured``: the key of the settings; ``published``: the keys of a provider
* ``development``: secrets and tokens for development and tests
"""

from __future__ import annotations

from .configured import read_key
from .development import issue_token, new_secret
from .key import PUBLIC_ALGORITHMS, Key, KeyRing, check_algorithms
from .published import IgnoredKey, read_key_set, reasons

__all__ = [
    "PUBLIC_ALGORITHMS",
    "IgnoredKey",
    "Key",
    "KeyRing",
    "check_algorithms",
    "issue_token",
    "new_secret",
    "read_key",
    "read_key_set",
    "reasons",
]

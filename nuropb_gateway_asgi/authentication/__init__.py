"""Who is this? Tokens, keys, credentials, origins and revocations.

``authenticators`` turns a token into an :class:`Identity`; ``credentials`` finds the token in a handshake; ``tokens``,
``keys`` and ``key_sets`` verify it; ``fetching`` gets keys from a provider; ``strict_json`` reads untrusted JSON;
``origins`` decides which pages may connect; ``revocation`` refuses tokens before they expire.
"""

from __future__ import annotations

from .credentials import Credentials, bearer_from_header, bearer_from_subprotocols, find_credentials
from .jwt_authenticator import (
    Authenticator,
    FunctionAuthenticator,
    Identity,
    JWTAuthenticator,
    TokenAuthenticationBackend,
    TokenUser,
)
from .key_sets import KeySet
from .keys import issue_token, new_secret
from .origins import OriginPolicy

__all__ = [
    "Authenticator",
    "Credentials",
    "FunctionAuthenticator",
    "Identity",
    "JWTAuthenticator",
    "KeySet",
    "OriginPolicy",
    "TokenAuthenticationBackend",
    "TokenUser",
    "bearer_from_header",
    "bearer_from_subprotocols",
    "find_credentials",
    "issue_token",
    "new_secret",
]

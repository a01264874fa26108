"""Who is this? Authenticators turn the token of a client into its identity.

* ``identity``: identities, and the interface of authenticators
* ``jwt_authenticator``: JSON web tokens; ``function_authenticator``: a function of the host application
* ``issuers``: JSON web tokens of several issuers; ``issuer_file``: the file that describes them
* ``starlette_backend``: the same tokens for the host application's own HTTP routes
* ``credentials``: the token of a handshake, in a header, a subprotocol or a cookie; ``tokens``: its parts, not verified
* ``keys``: the keys that verify it; ``verified_tokens``: a cache of verified signatures
* ``key_sets``, ``freshness``, ``fetching``, ``key_documents``: keys of a provider, when they are fetched, and how
* ``revocation``: tokens that are refused before they expire; ``origins``: pages that may connect
* ``strict_json``: readers for untrusted JSON and base64url
"""

from __future__ import annotations

from .credentials import Credentials, bearer_from_header, bearer_from_subprotocols, find_credentials
from .function_authenticator import FunctionAuthenticator
from .identity import Authenticator, Identity
from .issuers import IssuersAuthenticator
from .jwt_authenticator import JWTAuthenticator
from .key_sets import KeySet
from .keys import issue_token, new_secret
from .origins import OriginPolicy
from .starlette_backend import TokenAuthenticationBackend, TokenUser

__all__ = [
    "Authenticator",
    "Credentials",
    "FunctionAuthenticator",
    "Identity",
    "IssuersAuthenticator",
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

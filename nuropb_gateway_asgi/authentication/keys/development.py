"""Secrets and tokens for development and tests."""

from __future__ import annotations

import secrets
import time
from typing import Any

from jose import jws

__all__ = ["issue_token", "new_secret"]


def new_secret() -> str:
    """Return 256 random bits as printable text, for a key that lives as long as this process."""
    return secrets.token_urlsafe(32)


def issue_token(
    secret: str, user_id: str, *, username: str | None = None, lifetime: float = 3600, **claims: Any
) -> str:
    """Return an HS256 token that is valid for ``lifetime`` seconds, with these ``claims`` added unchanged."""
    now = int(time.time())
    payload = {"sub": user_id, "iat": now, "exp": now + lifetime}
    if username is not None:
        payload["preferred_username"] = username
    return jws.sign(payload | claims, secret, algorithm="HS256")

"""The first step of an explanation: whether the token is valid, and if not, why."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Iterator
from typing import Any

from ...authentication import Authenticator, Identity
from ...exceptions import AuthenticationFailed, AuthenticationUnavailable
from .mesh import CONNECT_POLL_INTERVAL

__all__ = ["check_token"]


async def check_token(
    authenticator: Authenticator,
    token: str,
    timeout: float,  # noqa: ASYNC109
) -> tuple[dict[str, Any], Identity | None]:
    """Check a token, for up to ``timeout`` seconds while its keys are fetched. Return the verdict and the identity."""
    identity: Identity | None = None
    with _log_messages() as remarks:
        for _ in range(max(1, math.ceil(timeout / CONNECT_POLL_INTERVAL))):
            try:
                identity = await authenticator(token)
            except AuthenticationUnavailable as error:  # its keys are being fetched, or cannot be fetched
                last = str(error)
                await asyncio.sleep(CONNECT_POLL_INTERVAL)
            except AuthenticationFailed as error:
                return {"valid": False, "why": [str(error)]}, None
            else:
                break
        else:
            return {"valid": False, "why": [f"the token cannot be checked now: {last}"]}, None
    if identity is None:
        return {"valid": False, "why": remarks or ["the authenticator gives no reason"]}, None
    if identity.has_ended(time.time()):
        return {"valid": False, "why": ["the token has expired"]}, None
    return {"valid": True, "why": []}, identity


@contextlib.contextmanager
def _log_messages() -> Iterator[list[str]]:
    """Collect the package's log messages: only the log has the reason why a token is refused."""
    remarks: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            remarks.append(record.getMessage())

    package = logging.getLogger(__package__.partition(".")[0])
    listener, level = Listener(), package.level
    package.addHandler(listener)
    package.setLevel(logging.DEBUG)
    try:
        yield remarks
    finally:
        package.setLevel(level)
        package.removeHandler(listener)

"""The local API of faults on demand: ``GET`` and ``POST /dev/faults``, which the console uses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from ...authentication import bearer_from_header
from ...exceptions import AuthenticationFailed, AuthenticationUnavailable, SettingsError, TokenExpired

if TYPE_CHECKING:
    from ...gateway import Gateway
    from ...mocks.faults import Faults

__all__ = ["PATH", "faults_route"]

PATH: Final = "/dev/faults"
#: Bytes of a body.
MAX_BODY: Final = 4096


def faults_route(gateway: Gateway, faults: Faults) -> Route:
    """Return the route. A request needs a valid token in its Authorization header, which no page of others can send."""

    async def serve(request: Request) -> JSONResponse:
        try:
            await gateway.handler_manager.authenticate(
                bearer_from_header(request.headers.get("Authorization", "")) or ""
            )
        except (AuthenticationFailed, TokenExpired):
            return _refusal(401, "the request has no valid token")
        except AuthenticationUnavailable:
            return _refusal(503, "the token cannot be checked now")
        if request.method == "POST":
            try:
                wish = await _wish(request)
                faults.set(wish.pop("name", ""), **wish)
            except (SettingsError, TypeError) as error:
                return _refusal(400, str(error) if isinstance(error, SettingsError) else "on is neither true nor false")
        return JSONResponse({"faults": [msgspec.to_builtins(each) for each in faults.all]})

    return Route(PATH, serve, methods=["GET", "POST"])


async def _wish(request: Request) -> dict[str, Any]:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            raise SettingsError(f"a body of more than {MAX_BODY} bytes")
    try:
        wish = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise SettingsError("the body is no JSON object") from None
    if not isinstance(wish.get("name"), str) or not isinstance(wish.get("on", True), bool):
        raise SettingsError('expected {"name": "slow", "on": true}, and values of the fault')
    return wish


def _refusal(status: int, description: str) -> JSONResponse:
    return JSONResponse({"description": description}, status)

"""The admin API over HTTP: its routes, its console page, and the checks of every request."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ..console import admin_routes
from ..exceptions import CallError
from ..handlers.direct import CUT
from ..journal import Journal
from .api import ACTIONS, OPERATION_ERRORS, PREFIX, Action, Api, Bundle, Event, Invalid
from .guard import Guard, Refused

__all__ = ["MAX_BODY", "make_endpoint"]

logger = logging.getLogger(__name__)

#: Bytes of a body, and seconds for it to come.
MAX_BODY: Final = 1 << 20
BODY_TIMEOUT: Final = 10.0
#: Seconds for a request with its response; after it the connection is cut. The protocol of the server cuts those that
#: read nothing of a response before.
REQUEST_TIMEOUT: Final = 60.0
_HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_REFUSALS: Final[dict[Refused, tuple[int, str]]] = {
    "host": (403, "the Host of this request is a name of somebody else; expected an address, or localhost"),
    "origin": (403, "pages of other origins may not use the admin API"),
    "token": (401, "the request has no valid admin token"),
    "locked": (429, "too many wrong tokens; try again later"),
}
_encode = msgspec.json.encode


def make_endpoint(api: Api, guard: Guard, journal: Journal) -> Any:
    """Return the ASGI application of the admin API."""
    pages = [*admin_routes(needs_token=guard.needs_token)]
    routes: dict[str, dict[str, Action]] = {}
    for action in ACTIONS:
        routes.setdefault(f"{PREFIX}{action.path}", {})[action.method] = action
    served = [
        Route(path, _serving(actions, api, guard, journal), methods=sorted(actions)) for path, actions in routes.items()
    ]
    app = Starlette(routes=[*pages, *served])
    app.router.redirect_slashes = False

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        hosts, origins = request.headers.getlist("host"), request.headers.getlist("origin")
        origin = None if not origins else ", ".join(origins)
        refused = guard.check_page(hosts[0] if len(hosts) == 1 else "", origin)
        application: Any = app
        if refused is not None:
            application = _refusal(refused, request, guard, journal)
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT):
                await application(scope, receive, send)
        except TimeoutError:
            logger.warning("admin: a request took more than %g s", REQUEST_TIMEOUT)
            cut: Callable[[], None] | None = scope.get("extensions", {}).get(CUT)
            if cut is not None:
                cut()

    return guarded


def _serving(actions: dict[str, Action], api: Api, guard: Guard, journal: Journal) -> Any:
    async def serve(request: Request) -> Response:
        header = request.headers.get("authorization", "")
        refused = guard.check_token(header, address_of(request), time.monotonic())
        if refused is not None:
            return _refusal(refused, request, guard, journal)
        action = actions["GET" if request.method == "HEAD" else request.method]
        outcome, shown = "ok", ""
        try:
            parameters = await _parameters(request, action)
            shown = _shown(parameters)
            result = await action.operation(api, parameters)
        except _Refusal as refusal:
            outcome, response = refusal.code, _failure(refusal.status, refusal.code, str(refusal))
        except CallError as error:
            outcome, response = error.code, _failure(503, error.code, error.description)
        except OPERATION_ERRORS as error:
            outcome, response = "invalid", _failure(400, "invalid", str(error))
        else:
            response = _answer(result)
        _note(journal, action, address_of(request), shown, outcome)
        return response

    return serve


def _note(journal: Journal, action: Action, address: str, parameters: str, outcome: str) -> None:
    if journal.audit is None or action.audited == "never":
        return
    note = journal.audit.admin_action if action.audited == "each time" else journal.audit.admin_read
    note(address, action.name, parameters, outcome)


class _Refusal(Exception):
    def __init__(self, status: int, code: str, description: str) -> None:
        super().__init__(description)
        self.status = status
        self.code = code


async def _parameters(request: Request, action: Action) -> Any:
    """Read the parameters of an action: the query of a GET, or the JSON body of a POST. Raises _Refusal."""
    try:
        if action.method == "GET":
            query = request.query_params
            if len(query.multi_items()) != len(query):
                raise Invalid("a parameter is given twice")
            return msgspec.convert(dict(query), action.parameters, strict=False)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            # A form of another site cannot have this type.
            raise _Refusal(415, "invalid", "expected a body with Content-Type: application/json")
        return msgspec.json.decode(await _body(request), type=action.parameters)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, Invalid) as error:
        said = str(error) if isinstance(error, msgspec.ValidationError | Invalid) else "the body is no JSON object"
        raise _Refusal(400, "invalid", said[:200]) from error


async def _body(request: Request) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            async for part in request.stream():
                body += part
                if len(body) > MAX_BODY:
                    raise _Refusal(413, "too_large", f"the body has more than {MAX_BODY} bytes")
    except TimeoutError as error:
        raise _Refusal(408, "invalid", f"the body did not come within {BODY_TIMEOUT:g} s") from error
    except ClientDisconnect as error:
        raise _Refusal(400, "invalid", "the client left") from error
    return bytes(body) or b"{}"


def _shown(parameters: Any) -> str:
    """Return the parameters for the audit log, without the body of an event."""
    given = {name: value for name, value in msgspec.structs.asdict(parameters).items() if value is not None}
    if isinstance(parameters, Event):
        given["event"] = f"{len(_encode(parameters.event))} bytes"
    return _encode(given).decode()


def _answer(result: Any) -> Response:
    if isinstance(result, Bundle):
        headers = {**_HEADERS, "Content-Disposition": f'attachment; filename="{result.name}"'}
        return Response(result.content, media_type="application/gzip", headers=headers)
    return Response(_encode(result), media_type="application/json", headers=_HEADERS)


def _failure(status: int, code: str, description: str) -> Response:
    return JSONResponse({"code": code, "description": description}, status, headers=_HEADERS)


def _refusal(reason: Refused, request: Request, guard: Guard, journal: Journal) -> Response:
    address = address_of(request)
    if journal.audit is not None:
        journal.audit.admin_refused(address, reason)
    status, description = _REFUSALS[reason]
    response = _failure(status, reason, description)
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    elif status == 429:
        response.headers["Retry-After"] = str(guard.locked_for(address, time.monotonic()))
    return response


def address_of(request: Request) -> str:
    """Return the address of the operator's program; "unix" for a Unix socket, which has none."""
    return "unix" if request.client is None else request.client.host or "unix"

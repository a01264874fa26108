"""``GET /asyncapi.json`` and ``GET /openapi.json``: the contract of whoever asks, by their token."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
import time
from collections import OrderedDict
from typing import Final, Literal, NamedTuple, TypeAlias

from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..authentication import Identity
from ..authentication.credentials import find_credentials
from ..authentication.origins import OriginPolicy
from ..authorization import Policy
from ..exceptions import AuthenticationFailed, AuthenticationUnavailable, ConnectionLimitReached
from ..handler_manager import CANNOT_AUTHENTICATE, HandlerManager
from ..handlers.cross_origin import CrossOrigin
from ..limits.admission import address_of
from ..protocol import ErrorCode, Failure, encode_json, error_members
from ..service_mesh_manager import ServiceMeshManager
from ..settings import Settings
from ..static.entity_tags import entity_tag, tagged_response
from .asyncapi import asyncapi_document
from .model import Contract, Place, contract_for
from .openapi import openapi_document

__all__ = ["Contracts"]

logger = logging.getLogger(__name__)

Kind: TypeAlias = Literal["asyncapi", "openapi"]

#: Seconds that services have to describe themselves. Who reads a document waits for the slowest of them.
PATIENCE: Final = 3.0
#: Seconds for which a document is not made anew, however often it is asked for.
CACHE_SECONDS: Final = 5.0
#: Documents that are remembered.
CACHE_SIZE: Final = 128
#: Seconds until a client that was turned away should try again.
RETRY_AFTER: Final = 5


class _Key(NamedTuple):
    kind: Kind
    #: A digest: the token itself is nowhere kept.
    token: bytes
    place: Place


class _Document(NamedTuple):
    body: bytes
    etag: str
    made_at: float


class Contracts:
    """Makes the documents, and remembers them for a few seconds."""

    def __init__(
        self,
        settings: Settings,
        handler_manager: HandlerManager,
        service_mesh_manager: ServiceMeshManager,
        policy: Policy,
        origins: OriginPolicy,
    ) -> None:
        self._settings = settings
        self._handler_manager = handler_manager
        self._service_mesh_manager = service_mesh_manager
        self._policy = policy
        self._origins = origins
        self._documents: OrderedDict[_Key, _Document] = OrderedDict()

    def routes(self) -> list[Route]:
        """Where the documents are; that of calls over HTTP only where there are any."""
        kinds: tuple[Kind, ...] = ("asyncapi", "openapi") if self._settings.serves_http else ("asyncapi",)
        # Those pages may read them that may connect.
        cross_origin = Middleware(
            CrossOrigin, origins=self._origins, method="GET", request_headers=("Authorization", "If-None-Match")
        )
        return [
            Route(
                f"/{kind}.json",
                functools.partial(self._serve, kind),
                methods=["GET", "OPTIONS"],
                name=kind,
                middleware=[cross_origin],
            )
            for kind in kinds
        ]

    async def _serve(self, kind: Kind, request: Request) -> Response:
        if request.method == "OPTIONS":
            return Response(status_code=204, headers={"Allow": "GET, HEAD, OPTIONS"})
        if not self._service_mesh_manager.started:
            return _refuse(503, Failure(ErrorCode.MESH_UNAVAILABLE, "The gateway is not open"))
        # No cookie: browsers attach it to what other sites ask for.
        token = find_credentials(request.headers, ()).token
        try:
            identity = await self._authenticate(token, address_of(request.scope.get("client")))
        except ConnectionLimitReached as error:
            logger.info("contract refused: %s", error)
            return _refuse(503, Failure(ErrorCode.TOO_MANY_REQUESTS, "The gateway is full"))
        except AuthenticationFailed as error:
            logger.info("contract refused: %s", error)
            return _refuse(401, Failure(ErrorCode.UNAUTHENTICATED, "A valid bearer token is required"))
        except AuthenticationUnavailable as error:
            logger.info("contract put off: %s", error)
            return _refuse(503, CANNOT_AUTHENTICATE)
        # By what was sent: an authenticator may give many callers' identities the same token.
        key = _Key(kind, hashlib.sha256((token or "").encode()).digest(), _place(request))
        document = self._remembered(key)
        if document is None:
            found = await self._service_mesh_manager.describe_for(identity, patience=PATIENCE)
            document = self._remember(key, contract_for(identity, self._policy, found))
        headers = {"Cache-Control": "private, no-cache", "Vary": "Authorization"}
        return tagged_response(request, document.body, document.etag, media_type="application/json", headers=headers)

    async def _authenticate(self, token: str | None, address: str) -> Identity:
        """Who asks, which counts as a handshake does: it costs as much, and tokens can be guessed by it."""
        admission = self._handler_manager.admission
        admission.on_handshake(address, time.monotonic())
        if token is None:
            raise AuthenticationFailed("there is no token, or none that can be used")
        try:
            return await self._handler_manager.authenticate(token)
        except AuthenticationFailed:
            admission.on_failure(address, time.monotonic())
            raise

    def _remembered(self, key: _Key) -> _Document | None:
        document = self._documents.get(key)
        if document is None or _now() - document.made_at > CACHE_SECONDS:
            return None
        return document

    def _remember(self, key: _Key, contract: Contract) -> _Document:
        if key.kind == "asyncapi":
            body = encode_json(asyncapi_document(contract, key.place, self._settings.path))
        else:
            body = encode_json(openapi_document(contract, key.place))
        document = _Document(body, entity_tag(body), _now())
        self._documents.pop(key, None)
        self._documents[key] = document
        if len(self._documents) > CACHE_SIZE:
            self._documents.popitem(last=False)
        return document


def _now() -> float:
    return asyncio.get_running_loop().time()


def _place(request: Request) -> Place:
    server = request.scope.get("server")
    otherwise = "localhost" if server is None else f"{server[0]}:{server[1]}"
    host, root = request.headers.get("host", ""), request.scope.get("root_path", "")
    return Place.of(host, secure=request.url.scheme in ("https", "wss"), root=root, otherwise=otherwise)


def _refuse(status: int, failure: Failure) -> JSONResponse:
    headers = {"Cache-Control": "no-store"}
    headers |= {"WWW-Authenticate": "Bearer"} if status == 401 else {"Retry-After": str(RETRY_AFTER)}
    return JSONResponse(error_members(failure), status_code=status, headers=headers)

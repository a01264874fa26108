"""``GET /asyncapi.json`` and ``GET /openapi.json``: the contract of the caller that a token identifies."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import time
from collections import OrderedDict
from collections.abc import Generator, Mapping
from typing import Final, Literal, NamedTuple, TypeAlias, TypeVar

import anyio
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..authentication import Identity
from ..authentication.credentials import find_credentials
from ..authentication.origins import OriginPolicy
from ..authorization import Policy
from ..exceptions import AuthenticationFailed, AuthenticationUnavailable, ConnectionLimitReached
from ..handler_manager import HandlerManager
from ..handlers.cross_origin import CrossOrigin
from ..handlers.handshake import closed, count_failure
from ..handlers.refusals import Refusal, log_refusal
from ..limits.admission import Arrival, address_of
from ..protocol import Failure, encode_json
from ..service_mesh_manager import ServiceMeshManager
from ..settings import Settings
from ..static.entity_tags import entity_tag, tagged_response
from ..wire.description import Description
from .asyncapi import asyncapi_in_steps, asyncapi_servers
from .model import Place, contract_in_steps
from .openapi import openapi_in_steps, openapi_servers
from .steps import encode_in_steps

__all__ = ["Contracts", "place_of", "take_turns"]

T = TypeVar("T")
Kind: TypeAlias = Literal["asyncapi", "openapi"]

#: Seconds that services have to describe themselves. A request for a document waits for the slowest service.
DESCRIBE_TIMEOUT: Final = 3.0
#: Seconds for which a document is reused, however often it is requested.
CACHE_SECONDS: Final = 5.0
#: The most documents in the cache.
CACHE_SIZE: Final = 128


class _Key(NamedTuple):
    kind: Kind
    #: A digest: the token itself is not kept.
    token: bytes


class _Document(NamedTuple):
    """A document around its ``servers``, which depend on the request: a client may send any name of the host."""

    before: bytes
    after: bytes
    digest: bytes
    made_at: float

    def body(self, servers: bytes) -> bytes:
        """Return the document with these servers."""
        return b'%b,"servers":%b,%b' % (self.before, servers, self.after)


class Contracts:
    """Serves the documents, and caches them for a few seconds."""

    def __init__(
        self,
        settings: Settings,
        handler_manager: HandlerManager,
        service_mesh_manager: ServiceMeshManager,
        policy: Policy,
        origins: OriginPolicy,
    ) -> None:
        self._settings = settings
        self._public_place = Place.at(settings.public_url) if settings.public_url else None
        self._handler_manager = handler_manager
        self._service_mesh_manager = service_mesh_manager
        self._policy = policy
        self._origins = origins
        self._documents: OrderedDict[_Key, _Document] = OrderedDict()
        #: Held by the request that makes a document: one at a time, however many ask.
        self._making = anyio.Lock()

    def routes(self) -> list[Route]:
        """Return the routes of the documents; OpenAPI's only if the gateway serves calls over HTTP."""
        kinds: tuple[Kind, ...] = ("asyncapi", "openapi") if self._settings.serves_http else ("asyncapi",)
        cross_origin = Middleware(
            CrossOrigin, origins=self._origins, methods=["GET"], request_headers=("Authorization", "If-None-Match")
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
        # Cookies are not read: browsers attach them to the requests of other sites.
        token = find_credentials(request.headers, ()).token
        try:
            identity = await self._authenticate(token, address_of(request.scope.get("client")))
        except Refusal as refusal:
            response = refusal.response()
            response.headers["Cache-Control"] = "no-store"
            return response
        # The key is the token of the request: an authenticator may give the identities of many callers the same token.
        place = self._public_place or place_of(request)
        key = _Key(kind, hashlib.sha256((token or "").encode()).digest())
        document = self._cached(key) or await self._make(key, identity)
        servers = encode_json(asyncapi_servers(place) if kind == "asyncapi" else openapi_servers(place))
        body, etag = document.body(servers), entity_tag(document.digest + servers)
        headers = {"Cache-Control": "private, no-cache", "Vary": "Authorization"}
        return tagged_response(request, body, etag, media_type="application/json", headers=headers)

    async def _authenticate(self, token: str | None, address: str) -> Identity:
        """Return the caller's identity. Raises Refusal.

        A request counts as a handshake: it costs as much, and an attacker could guess tokens by it.
        """
        if not self._service_mesh_manager.started:
            raise closed(self._handler_manager)
        admission = self._handler_manager.admission
        arrival = Arrival.WITHOUT_TOKEN if token is None else Arrival.WITH_TOKEN
        try:
            admission.on_arrival(address, arrival, time.monotonic())
        except ConnectionLimitReached as error:
            raise log_refusal(error, "contract") from error
        try:
            if token is None:
                raise AuthenticationFailed("no token, or an unreadable one")
            return await self._handler_manager.authenticate(token)
        except (AuthenticationFailed, AuthenticationUnavailable) as error:
            admission.on_refusal(arrival, time.monotonic())
            count_failure(admission, address, arrival, error)
            raise log_refusal(error, "contract") from error

    def _cached(self, key: _Key) -> _Document | None:
        document = self._documents.get(key)
        if document is None or _now() - document.made_at > CACHE_SECONDS:
            return None
        return document

    async def _make(self, key: _Key, identity: Identity) -> _Document:
        """Make a document and put it into the cache, unless another request has done so meanwhile."""
        found = await self._service_mesh_manager.describe_for(identity, patience=DESCRIBE_TIMEOUT)
        async with self._making:
            return self._cached(key) or self._cache(key, *await take_turns(self._encode(key.kind, identity, found)))

    def _encode(
        self, kind: Kind, identity: Identity, found: Mapping[str, Description | Failure]
    ) -> Generator[None, None, tuple[bytes, bytes]]:
        """Return the parts of a document before and after its servers."""
        contract = yield from contract_in_steps(identity, self._policy, found)
        if kind == "asyncapi":
            document = yield from asyncapi_in_steps(contract, self._settings.path)
        else:
            document = yield from openapi_in_steps(contract)
        names = list(document)
        at = names.index("servers")
        before = yield from encode_in_steps({name: document[name] for name in names[:at]})
        after = yield from encode_in_steps({name: document[name] for name in names[at + 1 :]})
        return before[:-1], after[1:]

    def _cache(self, key: _Key, before: bytes, after: bytes) -> _Document:
        digest = hashlib.sha256(before)
        digest.update(after)
        document = _Document(before, after, digest.digest(), _now())
        self._documents.pop(key, None)
        self._documents[key] = document
        if len(self._documents) > CACHE_SIZE:
            self._documents.popitem(last=False)
        return document


async def take_turns(steps: Generator[None, None, T]) -> T:
    """Do the steps, one in each turn of the event loop, and return the result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        await asyncio.sleep(0)


def _now() -> float:
    return asyncio.get_running_loop().time()


def place_of(request: Request) -> Place:
    """Return the gateway's place as the client of this request sees it."""
    server = request.scope.get("server")
    otherwise = "localhost" if server is None else f"{server[0]}:{server[1]}"
    host, root = request.headers.get("host", ""), request.scope.get("root_path", "")
    return Place.of(host, secure=request.url.scheme in ("https", "wss"), root=root, otherwise=otherwise)

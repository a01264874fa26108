"""Liveness, readiness and metrics of a gateway, as endpoints for operators and their tools."""

from __future__ import annotations

from collections.abc import Callable, Collection

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..authentication import Authenticator
from ..authorization.policy_file import PolicyFile
from ..connection_kind import ConnectionKind
from .metrics import Metrics

__all__ = ["Health"]


class Health:
    """The endpoints ``/livez``, ``/readyz`` and, with ``metrics``, ``/metrics``.

    ``is_draining`` tells whether the gateway drains. The first of ``kinds`` is that of the WebSockets.
    """

    def __init__(
        self,
        kinds: Collection[ConnectionKind],
        authenticator: Authenticator,
        policy_file: PolicyFile | None,
        metrics: Metrics | None,
        is_draining: Callable[[], bool],
    ) -> None:
        self._kinds = kinds
        self._authenticator = authenticator
        self._policy_file = policy_file
        self._metrics = metrics
        self._is_draining = is_draining

    def routes(self) -> list[Route]:
        """Return the routes of the endpoints."""
        routes = [Route("/livez", _livez, methods=["GET"]), Route("/readyz", self._readyz, methods=["GET"])]
        if self._metrics is not None:
            routes.append(Route("/metrics", self._metrics_page, methods=["GET"]))
        return routes

    def not_ready(self) -> list[str]:
        """Return the reasons why new clients should go elsewhere; none when all is well."""
        if not all(kind.service_mesh_manager.started for kind in self._kinds):
            return ["the gateway was not started"]
        reasons = ["draining"] if self._is_draining() else []
        reasons += [kind.problem for kind in self._kinds if kind.problem is not None]
        # All kinds share the revocations.
        reasons += list(filter(None, (kind.service_mesh_manager.revoker.problem for kind in self._kinds)))[:1]
        if (problem := getattr(self._authenticator, "problem", None)) is not None:
            reasons.append(problem)
        return reasons

    def warnings(self) -> list[str]:
        """Return the faults with which clients are served nevertheless."""
        warning = getattr(self._authenticator, "warning", None)
        # All kinds are one user of the broker, and lack the same permissions.
        of_meshes = list(dict.fromkeys(warning for kind in self._kinds for warning in kind.warnings))
        return of_meshes if warning is None else [warning, *of_meshes]

    async def _readyz(self, request: Request) -> Response:
        reasons = self.not_ready()
        body = {
            "ready": not reasons,
            "reasons": reasons,
            "warnings": self.warnings(),
            "mesh": {"connected": all(kind.problem is None for kind in self._kinds)},
        }
        if self._policy_file is not None:  # clients are welcome with a broken file, too: the last good rules hold
            body["policy"] = {"rules": len(self._policy_file.policy.rules), "problem": self._policy_file.problem}
        return JSONResponse(body, status_code=503 if reasons else 200, headers={"Cache-Control": "no-store"})

    async def _metrics_page(self, request: Request) -> Response:
        metrics = self._metrics
        assert metrics is not None  # noqa: S101 - there is no such route otherwise
        metrics.collect()
        body, content_type = metrics.render()
        return Response(body, headers={"Content-Type": content_type, "Cache-Control": "no-store"})


async def _livez(request: Request) -> Response:
    return JSONResponse({"alive": True})

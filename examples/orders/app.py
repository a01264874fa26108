"""A FastAPI application that contains the gateway, and a page that uses both.

By default the service runs in this process. With ``NUROPB_GATEWAY_MESH_URL`` the application calls the service that
``service.py`` hosts on RabbitMQ. All other settings may also come from the environment.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
from pathlib import Path
from typing import Annotated

import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, StringConstraints

from examples.orders.service import Orders
from nuropb_gateway_asgi import CallError, Gateway, Settings
from nuropb_gateway_asgi.authentication import issue_token, new_secret
from nuropb_gateway_asgi.mesh.embedded import EmbeddedMesh

#: Without ``--port`` the application listens at the first of these that is free.
PORTS = range(8000, 8020)
#: The development server of the React example has the last origin.
ORIGINS = [f"http://{host}:{port}" for host in ("127.0.0.1", "localhost") for port in PORTS] + ["http://localhost:5173"]

#: Defaults, which the environment overrides.
DEFAULTS = {
    "NUROPB_GATEWAY_JWT_KEY": new_secret(),
    "NUROPB_GATEWAY_EXPOSE": "orders.create,orders.mine,orders.ship",
    "NUROPB_GATEWAY_EXPOSE_TOPICS": "orders.created",
    "NUROPB_GATEWAY_ALLOWED_ORIGINS": ",".join(ORIGINS),
}

settings = Settings.from_env(DEFAULTS | os.environ)
mesh = EmbeddedMesh({"orders": Orders()}, service_name=settings.service_name) if settings.embedded else None
gateway = Gateway(settings, mesh=mesh)
app = FastAPI(title="Orders", lifespan=gateway.lifespan)
app.mount("/gateway", gateway.app)


class SignIn(BaseModel):
    """The body of a request to sign in."""

    name: Annotated[str, StringConstraints(pattern=r"^[\w.-]{1,40}$")]


@app.post("/sign-in")
async def sign_in(who: SignIn) -> dict[str, str]:
    """Issue a token for any name. A real application would also ask for a password."""
    return {"token": issue_token(settings.jwt_key, who.name, username=who.name, lifetime=900)}


@app.get("/statistics")
async def statistics() -> dict[str, int]:
    """Count orders and connections: the application's own code calls the service, too."""
    try:
        orders = await gateway.service_mesh_manager.request("orders", "count", timeout=5)
    except CallError as error:
        raise HTTPException(503 if error.retryable else 502, error.code) from error
    return {"orders": orders, "connections": len(gateway.handler_manager)}


app.mount("/", StaticFiles(directory=Path(__file__).parents[1] / "page", html=True))


def free_port() -> int:
    """Return the first port of PORTS at which no other program listens, such as another gateway."""
    for port in PORTS:
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of an earlier run do not count
            probe.bind(("127.0.0.1", port))
            return port
    raise SystemExit(f"all ports from {PORTS[0]} to {PORTS[-1]} are in use; name one: --port 9000")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Run the application.")
    parser.add_argument("--port", type=int, help="default: the first free port from 8000 on")
    port = parser.parse_args().port or free_port()
    print(
        f"Open http://127.0.0.1:{port}; the other examples find it there by: export ORDERS_URL=http://127.0.0.1:{port}"
    )
    uvicorn.run(app, port=port)

"""Revocations across restarts, on a real broker: many records, and clients that return while they are being read."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Final

import anyio
import httpx
import pytest
from websockets.exceptions import InvalidStatus

from nuropb_gateway_asgi import Gateway, JWTAuthenticator
from nuropb_gateway_asgi.authentication import issue_token
from nuropb_gateway_asgi.authentication.revocation import Revocation, encode_record
from nuropb_gateway_asgi.mesh.rabbitmq import RabbitMQMesh
from tests.integration.scene import delete_shared
from tests.kit.clients import connect, refusal
from tests.kit.gateways import DEADLINE, RunningGateway, eventually, make_gateway, run_gateway

SECRET: Final = secrets.token_urlsafe(48)
#: Revocations of other users before the one that counts.
RECORDS: Final = 20_000
#: Records that are written without a wait for the broker's confirms.
AT_ONCE: Final = 500
#: Clients with each token that return at once, each over WebSocket and HTTP.
CLIENTS: Final = 3


def gateway_at(url: str, name: str) -> Gateway:
    """Make one process of the gateway ``name``, which refuses no client because of its address."""
    return make_gateway(
        authenticator=JWTAuthenticator(SECRET),
        mesh_url=url,
        service_name=name,
        http="on",
        handshake_rate="off",
        handshake_rate_per_address="off",
    )


def mesh_of(running: RunningGateway) -> RabbitMQMesh:
    mesh = running.gateway.service_mesh_manager.mesh
    assert isinstance(mesh, RabbitMQMesh)
    return mesh


async def write_records(mesh: RabbitMQMesh, count: int) -> None:
    """Write revocations of users and of single tokens."""
    now = time.time()
    for start in range(0, count, AT_ONCE):
        records = [
            Revocation(token_id=f"other-{number}", until=now + 3600)
            if number % 2
            else Revocation(user_id=f"other-{number}", issued_before=now, until=now + 3600)
            for number in range(start, start + AT_ONCE)
        ]
        await asyncio.gather(*(mesh.record(encode_record(record)) for record in records))


@pytest.fixture
async def name(amqp_url: str) -> AsyncIterator[str]:
    """The name of a gateway, whose stream is removed at the end."""
    name = f"gateway-{secrets.token_hex(4)}"
    yield name
    await delete_shared(amqp_url, name)


async def handshake(url: str, token: str) -> int:
    """Return the status of a WebSocket handshake."""
    try:
        async with connect(url, token):
            return 101
    except InvalidStatus as error:
        return error.response.status_code


async def test_no_revoked_token_is_accepted_after_a_restart(amqp_url: str, name: str) -> None:
    revoked, valid = issue_token(SECRET, "mallory", jti="stolen"), issue_token(SECRET, "alice")
    async with run_gateway(gateway_at(amqp_url, name)) as first:
        await eventually(lambda: mesh_of(first).connected)
        await write_records(mesh_of(first), RECORDS)
        await first.gateway.service_mesh_manager.revoke(token_id="stolen")
    seen = {revoked: Counter[int](), valid: Counter[int]()}
    reasons = set[str]()
    async with run_gateway(gateway_at(amqp_url, name), is_open=False) as second:
        revoker = second.gateway.service_mesh_manager.revoker
        async with (
            httpx.AsyncClient(base_url=second.site.http(), trust_env=False, timeout=DEADLINE) as http,
            anyio.create_task_group() as tasks,
        ):

            async def return_(token: str) -> None:
                """Come back for as long as the gateway reads, and once more."""
                is_open = False
                while not is_open:
                    is_open = revoker.problem is None
                    seen[token][await handshake(second.url, token)] += 1
                    authorization = {"Authorization": f"Bearer {token}"}
                    call = await http.post("/rpc/demo/add", json={}, headers=authorization)
                    seen[token][call.status_code] += 1

            for token in (revoked, valid) * CLIENTS:
                tasks.start_soon(return_, token)
            while revoker.problem is not None:
                response = await http.get("/readyz")
                if response.status_code == 503:
                    reasons.update(response.json()["reasons"])
        assert len(second.gateway.handler_manager.revocations) == RECORDS + 1
    assert set(seen[revoked]) == {503, 401}
    assert set(seen[valid]) == {503, 101, 403}
    assert any(reason.startswith("revocations are being read (") for reason in reasons), reasons


async def test_a_revocation_is_taken_back_across_restarts(amqp_url: str, name: str) -> None:
    alice, mallory = issue_token(SECRET, "alice", iat=int(time.time()) - 10), issue_token(SECRET, "mallory")
    async with run_gateway(gateway_at(amqp_url, name)) as first:
        await eventually(lambda: mesh_of(first).connected)
        manager = first.gateway.service_mesh_manager
        async with connect(first.url, mallory) as client:
            session_id = client.hello["session_id"]
            await manager.revoke(session_id=session_id)
            assert (await client.closed()).code == 4511
        await manager.revoke(user_id="alice")
        # The markers of both transports, two revocations, and the token of the session.
        await eventually(lambda: mesh_of(first).peers.offset == 4)
    async with run_gateway(gateway_at(amqp_url, name)) as second:
        for token in (alice, mallory):
            assert (await refusal(second.url, token)).status == 401
        await eventually(lambda: mesh_of(second).connected)
        await second.gateway.service_mesh_manager.unrevoke(user_id="alice")
        await second.gateway.service_mesh_manager.unrevoke(session_id=session_id)
        for token in (alice, mallory):
            assert await handshake(second.url, token) == 101
    async with run_gateway(gateway_at(amqp_url, name)) as third:
        for token in (alice, mallory):
            assert await handshake(third.url, token) == 101

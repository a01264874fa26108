"""Encrypted calls on the wire, and the end of their keys."""

from __future__ import annotations

import json
import secrets
from base64 import b64decode, b64encode
from typing import Any, Final

import anyio
import pytest
from aiormq.abc import DeliveredMessage
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from nuropb_gateway_asgi import HandlerManager, ServiceMeshManager, Settings
from nuropb_gateway_asgi.authorization import ExposePolicy
from nuropb_gateway_asgi.exceptions import MeshUnavailable
from nuropb_gateway_asgi.mesh.rabbitmq import RabbitMQMesh, _lane
from tests.kit.amqp import (
    Gateway,
    Peer,
    encode,
    present,
    reply_properties,
    response,
)
from tests.kit.gate_proxy import Proxy
from tests.kit.gateways import eventually
from tests.unit.fakes import FakeAuthenticator, FakeHandler


@pytest.fixture(scope="module")
def private_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(scope="module")
def public_key(private_key: rsa.RSAPrivateKey) -> str:
    encoding, format_ = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return private_key.public_key().public_bytes(encoding, format_).decode()


OAEP: Final = padding.OAEP(mgf=padding.MGF1(algorithm=hashes.SHA256()), algorithm=hashes.SHA256(), label=None)


def decrypt(body: bytes, private_key: rsa.RSAPrivateKey) -> tuple[bytes, dict[str, Any]]:
    """Decrypt a call as its service would; return its K and its content."""
    encrypted_key, _, encrypted = body.partition(b".")
    key = private_key.decrypt(b64decode(encrypted_key, validate=True), OAEP)
    content: dict[str, Any] = json.loads(Fernet(key).decrypt(b64decode(encrypted, validate=True)))
    return key, content


def encrypt(content: Any, key: bytes, private_key: rsa.RSAPrivateKey) -> bytes:
    """Encrypt a response as a service would."""
    head = private_key.public_key().encrypt(key, OAEP)
    return b64encode(head) + b"." + b64encode(Fernet(key).encrypt(encode(content)))


async def test_an_encrypted_call_says_nothing_in_clear(
    gateway: Gateway, peer: Peer, private_key: rsa.RSAPrivateKey, public_key: str
) -> None:
    service = await peer.service()
    message = gateway.send(service, params=b'{"secret":"hunter2"}', public_key=public_key)
    arrived = await peer.take(service)
    headers = arrived.header.properties.headers
    assert headers is not None
    assert headers["encrypted"] == "yes"
    assert b"hunter2" not in arrived.body
    key, content = decrypt(arrived.body, private_key)
    assert content["params"] == {"secret": "hunter2"}
    assert (content["tag"], content["correlation_id"]) == ("request", message.correlation_id)

    body = encrypt(response({"kept": True}), key, private_key)
    properties = reply_properties(message.correlation_id, encrypted="yes")
    await peer.publish("", gateway.mesh.reply_queue, body, properties)
    await gateway.told("reply", message)
    assert gateway.receiver.result(message) == {"kept": True}
    assert gateway.mesh.keys == set()


async def test_only_the_reply_under_the_key_of_the_call_answers_it(
    gateway: Gateway, peer: Peer, private_key: rsa.RSAPrivateKey, public_key: str
) -> None:
    service = await peer.service()
    message = gateway.send(service, public_key=public_key)
    key, _ = decrypt((await peer.take(service)).body, private_key)
    queue = gateway.mesh.reply_queue
    forged = {**response("forged"), "correlation_id": message.correlation_id}
    yes = reply_properties(message.correlation_id, encrypted="yes")
    right = encrypt(response("right"), key, private_key)
    poison = [
        (encode(forged), reply_properties(message.correlation_id)),
        (encode(forged), yes),
        (encrypt(forged, Fernet.generate_key(), private_key), yes),
        (right[:-10], yes),
        (right.partition(b".")[0], yes),
        (b"", yes),
        (b".", yes),
        (b"\xff\xfe.\xff", yes),
        (right, reply_properties(message.correlation_id)),
        (encrypt([1], key, private_key), yes),
    ]
    for body, properties in poison:
        await peer.publish("", queue, body, properties)
    await peer.publish("", queue, right, yes)
    await gateway.told("reply", message)
    assert gateway.receiver.result(message) == "right"
    assert gateway.mesh.statistics.dropped_replies == len(poison)
    assert gateway.mesh.keys == set()


async def test_no_key_outlives_its_call(
    gateway: Gateway, peer: Peer, public_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await peer.service()
    mesh = gateway.mesh

    returned = gateway.send("nobody-at-all", public_key=public_key)
    await gateway.told("returned", returned)
    assert mesh.keys == set()

    gateway.send(service, kind="command", public_key=public_key)
    assert mesh.keys == set()

    forgotten = gateway.send(service, public_key=public_key)
    assert mesh.keys == {forgotten.correlation_id}
    mesh.forget(forgotten.correlation_id)
    assert mesh.keys == set()

    for name in ("x" * 256, "x"):
        with pytest.raises(ValueError, match="more than"):
            gateway.send(name, trace_id="t" * 140_000, public_key=public_key)
    assert mesh.keys == set()

    with pytest.raises(ValueError, match="key"):
        gateway.send(service, public_key="no key")
    assert mesh.keys == set()

    monkeypatch.setattr(_lane, "MAX_BUFFERED", 1000)
    with pytest.raises(MeshUnavailable):
        gateway.send(service, params=b'{"x":"%b"}' % (b"x" * 1000), public_key=public_key)
    assert mesh.keys == set()


async def test_no_key_of_a_call_that_was_not_sent_outlives_the_connection(
    proxied: Gateway, proxy: Proxy, public_key: str
) -> None:
    proxy.link("publish").to_broker.clear()
    published = proxied.mesh.statistics.published
    # More bytes than all buffers on the way hold, so that the next message has to wait.
    proxied.send("anybody", params=b'{"x":"%b"}' % (b"x" * 16_000_000))
    await eventually(lambda: proxied.mesh.statistics.published > published)
    message = proxied.send("anybody", public_key=public_key)
    assert proxied.mesh.keys == {message.correlation_id}
    proxy.cut("publish")
    await proxied.told("failed", message)
    assert proxied.mesh.keys == set()


@pytest.mark.parametrize(
    ("end", "code"),
    [("reply", None), ("timeout", "timeout"), ("cancel", "cancelled"), ("disconnect", None), ("shutdown", None)],
)
async def test_no_key_of_a_client_outlives_its_call(
    amqp_url: str,
    remover: list[str],
    peer: Peer,
    private_key: rsa.RSAPrivateKey,
    public_key: str,
    end: str,
    code: str | None,
) -> None:
    name, service = f"gateway-{secrets.token_hex(4)}", await peer.service()
    settings, policy = Settings(service_name=name), ExposePolicy(["*.*"], ["#"])
    mesh = RabbitMQMesh(amqp_url, service_name=name)
    remover += [mesh.reply_queue, mesh.event_queue, mesh.service_queue]
    handlers = HandlerManager(settings, FakeAuthenticator(), policy)
    client = FakeHandler()
    calls: list[DeliveredMessage] = []
    description = {"methods": {"secret": {"requires_encryption": True}}, "public_key": public_key}

    async def serve() -> None:
        while True:
            request = await peer.take(service)
            if present(request.header.properties)["headers"]["encrypted"]:
                calls.append(request)
            else:
                await peer.reply(request, description)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve)
        async with ServiceMeshManager(settings, handlers, mesh, policy) as manager:
            await eventually(lambda: mesh.connected and handlers.revocations.complete)
            await handlers.register(client, "alice")
            timeout = {"timeout": {"timeout": 1.0, "cancel": 3.0, "disconnect": 3.0}.get(end, 30.0)}
            payload = {"id": "1", "service": service, "method": "secret", **timeout}
            handlers.on_handler_message(client, json.dumps({"type": "request", "payload": payload}))
            if end == "timeout":
                await eventually(lambda: client.frames)
            else:
                await eventually(lambda: calls)
                assert len(mesh.keys) == 1
            if end == "reply":
                request = calls[0].header.properties
                key, _ = decrypt(calls[0].body, private_key)
                yes = reply_properties(request.correlation_id, encrypted="yes")
                await peer.publish("", mesh.reply_queue, encrypt(response(1), key, private_key), yes)
                await eventually(lambda: client.frames)
            elif end == "cancel":
                handlers.on_handler_message(client, json.dumps({"type": "cancel", "payload": {"id": "1"}}))
            elif end == "disconnect":
                handlers.unregister(client)
            if end in ("cancel", "disconnect"):
                assert len(mesh.keys) == 1  # whether the call fails counts for its user
                await eventually(lambda: not mesh.keys)  # its deadline
            if end != "shutdown":
                assert mesh.keys == set()
                assert manager.in_flight == 0
        tasks.cancel_scope.cancel()
    assert mesh.keys == set()
    if end != "disconnect":
        assert client.codes == ["mesh_unavailable" if end == "shutdown" else code]

"""Encryption, compared with the code of nuropb itself. Skipped without nuropb (Python 3.12 and later)."""

from __future__ import annotations

import functools
import importlib.util
from uuid import uuid4

import pytest
from cryptography.fernet import InvalidToken
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from nuropb_gateway_asgi.wire.encryption import (
    UndecryptableMessage,
    decrypt_call,
    decrypt_reply,
    encrypt,
    load_public_key,
)

__test__ = importlib.util.find_spec("nuropb") is not None
if __test__:
    from nuropb.encodings.encryption import Encryptor

BODIES = [b"", b"{}", '{"tag":"request","params":{"é":"\u2028"}}'.encode(), b"." * 100, bytes(range(256)) * 1000]


@functools.cache
def private_key(name: str) -> rsa.RSAPrivateKey:
    """Make a key, once for each name, as that takes long."""
    return rsa.generate_private_key(65537, 2048)


def described_key(name: str = "service") -> rsa.RSAPublicKey:
    """Return the public key as in a description."""
    pem = private_key(name).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return load_public_key(pem.decode())


@pytest.mark.parametrize("body", BODIES)
def test_a_nuropb_service_reads_our_call_and_we_read_its_response(body: bytes) -> None:
    service = Encryptor("service", private_key("service"))
    correlation_id = uuid4().hex
    key, call = encrypt(body, described_key())
    assert service.decrypt_payload(call, correlation_id) == body
    assert decrypt_reply(service.encrypt_payload(body[::-1], correlation_id), key) == body[::-1]


@pytest.mark.parametrize("body", BODIES)
def test_we_read_the_call_of_a_nuropb_client_and_it_reads_our_response(body: bytes) -> None:
    client = Encryptor()
    client.add_public_key("gateway", described_key())
    correlation_id = uuid4().hex
    key, received = decrypt_call(client.encrypt_payload(body, correlation_id, "gateway"), private_key("service"))
    assert received == body
    _, response = encrypt(body[::-1], described_key(), key)
    assert client.decrypt_payload(response, correlation_id) == body[::-1]


def test_the_second_response_of_a_nuropb_service_cannot_be_read() -> None:
    service = Encryptor("service", private_key("service"))
    correlation_id = uuid4().hex
    key, call = encrypt(b"{}", described_key())
    service.decrypt_payload(call, correlation_id)
    first, second = (service.encrypt_payload(b"{}", correlation_id) for _ in range(2))
    assert decrypt_reply(first, key) == b"{}"
    with pytest.raises(UndecryptableMessage):
        decrypt_reply(second, key)


def test_neither_side_reads_a_call_under_a_stale_key() -> None:
    _, call = encrypt(b"{}", described_key("before"))
    with pytest.raises(ValueError, match="cryption"):
        Encryptor("service", private_key("service")).decrypt_payload(call, uuid4().hex)
    client = Encryptor()
    client.add_public_key("gateway", described_key("before"))
    with pytest.raises(UndecryptableMessage):
        decrypt_call(client.encrypt_payload(b"{}", uuid4().hex, "gateway"), private_key("service"))


def test_neither_side_reads_a_response_under_another_key() -> None:
    client = Encryptor()
    client.add_public_key("gateway", described_key())
    correlation_id = uuid4().hex
    client.encrypt_payload(b"{}", correlation_id, "gateway")
    _, response = encrypt(b"{}", described_key())
    with pytest.raises(InvalidToken):
        client.decrypt_payload(response, correlation_id)
    service = Encryptor("service", private_key("service"))
    with pytest.raises(UndecryptableMessage):
        decrypt_reply(service.encrypt_payload(b"{}", correlation_id), encrypt(b"{}", described_key())[0])


@pytest.mark.parametrize("garbage", [b"", b".", b"canary", b"Y2FuYXJ5.Y2FuYXJ5", b"\xff.\xff", b"a.b.c"])
def test_what_nuropb_cannot_read_is_refused_here(garbage: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of any kind
        Encryptor("service", private_key("service")).decrypt_payload(garbage, uuid4().hex)
    with pytest.raises(UndecryptableMessage):
        decrypt_call(garbage, private_key("service"))

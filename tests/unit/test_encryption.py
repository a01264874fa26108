from __future__ import annotations

import contextlib
import functools
from base64 import b64decode, b64encode

import pytest
from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from nuropb_gateway_asgi.wire.encryption import (
    UndecryptableMessage,
    decrypt_call,
    decrypt_reply,
    encrypt,
    load_public_key,
)

OAEP = padding.OAEP(mgf=padding.MGF1(algorithm=hashes.SHA256()), algorithm=hashes.SHA256(), label=None)
BODY = '{"tag":"request","params":{"é":1}}'.encode()
#: cryptography no longer makes keys as short as this.
SHORT_KEY = """\
-----BEGIN PUBLIC KEY-----
MFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBAK8M5YbSeZbJawipafvWidVvoN38hySX
xABT7TzkkF5ymzamKaIM7zPQO7HZuudx0Ncxc7d697/YpMCz032OgccCAwEAAQ==
-----END PUBLIC KEY-----
"""


@functools.cache
def private_key(name: str = "service", size: int = 2048) -> rsa.RSAPrivateKey:
    """Make a key, once for each name, as that takes long."""
    return rsa.generate_private_key(65537, size)


def pem(key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey) -> str:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


# --- keys -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1024, 2048])
def test_an_rsa_key_is_read_once(size: int) -> None:
    text = pem(private_key("service", size).public_key())
    key = load_public_key(text)
    assert pem(key) == text
    assert load_public_key(text) is key


def test_a_key_in_the_older_form_is_read_too() -> None:
    public_key = private_key().public_key()
    assert load_public_key(public_key.public_bytes(Encoding.PEM, PublicFormat.PKCS1).decode()) == public_key


UNREADABLE = "the service's public key cannot be read"
NO_RSA = "the service's public key is not an RSA key"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", UNREADABLE),
        ("canary", UNREADABLE),
        ("é", UNREADABLE),
        ("\ud800", UNREADABLE),
        ("\0", UNREADABLE),
        ("-----BEGIN PUBLIC KEY-----\nY2FuYXJ5\n-----END PUBLIC KEY-----\n", UNREADABLE),
        ("-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n", UNREADABLE),
        (SHORT_KEY[:90], UNREADABLE),
        (pem(ec.generate_private_key(ec.SECP256R1()).public_key()), NO_RSA),
        (pem(ed25519.Ed25519PrivateKey.generate().public_key()), NO_RSA),
        (SHORT_KEY, "the service's public key is too short"),
    ],
)
def test_what_is_no_key_for_encryption_is_refused(text: str, message: str) -> None:
    for _ in range(2):  # a refusal is not kept either
        with pytest.raises(UndecryptableMessage) as caught:
            load_public_key(text)
        assert str(caught.value) == message


@pytest.mark.parametrize("password", [None, b"pw"])
def test_a_private_key_is_no_public_key(password: bytes | None) -> None:
    protection = NoEncryption() if password is None else BestAvailableEncryption(password)
    text = private_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection).decode()
    with pytest.raises(UndecryptableMessage, match=UNREADABLE):
        load_public_key(text)


# --- the form ---------------------------------------------------------------------------------------------------


def test_a_body_is_the_key_under_rsa_and_then_the_text_under_the_key() -> None:
    key, encrypted = encrypt(BODY, private_key().public_key())
    encrypted_key, _, encrypted_body = encrypted.partition(b".")
    assert private_key().decrypt(b64decode(encrypted_key, validate=True), OAEP) == key
    assert len(key) == 44
    assert Fernet(key).decrypt(b64decode(encrypted_body, validate=True)) == BODY


def test_a_body_in_that_form_is_read() -> None:
    key = Fernet.generate_key()
    encrypted_key = private_key().public_key().encrypt(key, OAEP)
    message = b64encode(encrypted_key) + b"." + b64encode(Fernet(key).encrypt(BODY))
    assert decrypt_call(message, private_key()) == (key, BODY)
    assert decrypt_reply(message, key) == BODY


def test_a_call_and_its_reply_share_the_key() -> None:
    key, call = encrypt(BODY, private_key().public_key())
    received_key, received = decrypt_call(call, private_key())
    assert (received_key, received) == (key, BODY)
    reply_key, reply = encrypt(b'{"result":1}', private_key().public_key(), received_key)
    assert reply_key == key
    assert decrypt_reply(reply, key) == b'{"result":1}'


def test_the_first_part_of_a_reply_does_not_matter() -> None:
    key, message = encrypt(BODY, private_key().public_key())
    _, _, encrypted = message.partition(b".")
    for first in (b"", b"canary", b"\xff"):
        assert decrypt_reply(first + b"." + encrypted, key) == BODY


def test_every_call_has_a_key_of_its_own() -> None:
    one, other = (encrypt(BODY, private_key().public_key()) for _ in range(2))
    assert one[0] != other[0]
    assert one[1] != other[1]


@given(st.binary(max_size=2000))
@settings(max_examples=20)
def test_any_body_comes_out_as_it_went_in(body: bytes) -> None:
    key, message = encrypt(body, private_key("service", 1024).public_key())
    assert decrypt_call(message, private_key("service", 1024)) == (key, body)
    assert decrypt_reply(message, key) == body


# --- undecodable messages --------------------------------------------------------------------------------------


def test_a_call_under_a_stale_key_is_not_for_this_one() -> None:
    _, call = encrypt(BODY, private_key("before").public_key())
    with pytest.raises(UndecryptableMessage, match=r"^the message is not for this key$"):
        decrypt_call(call, private_key())


def test_a_call_under_a_key_of_another_size_is_not_for_this_one() -> None:
    for sender, owner in ((1024, 2048), (2048, 1024)):
        _, call = encrypt(BODY, private_key("service", sender).public_key())
        with pytest.raises(UndecryptableMessage, match=r"^the message is not for this key$"):
            decrypt_call(call, private_key("service", owner))


def test_a_reply_under_another_key_cannot_be_decrypted() -> None:
    # The second response of nuropb 0.1.8 to a failed encrypted call is encrypted with a key that no caller has.
    _, reply = encrypt(BODY, private_key().public_key())
    with pytest.raises(UndecryptableMessage, match=r"^the message cannot be decrypted$") as caught:
        decrypt_reply(reply, Fernet.generate_key())
    assert isinstance(caught.value.__cause__, InvalidToken)


GARBAGE = [
    b"",
    b".",
    b"..",
    BODY,
    b"canary",
    b"canary.canary",
    b"\xff.\xff",
    b"Y2FuYXJ5.Y2FuYXJ5",
    b"Y2FuYXJ5.\nY2FuYXJ5",
    "é.é".encode(),
]


@pytest.mark.parametrize("message", GARBAGE)
def test_garbage_cannot_be_decrypted(message: bytes) -> None:
    with pytest.raises(UndecryptableMessage, match=r"^the message cannot be decrypted$"):
        decrypt_reply(message, Fernet.generate_key())
    with pytest.raises(UndecryptableMessage, match=r"^the message is not for this key$"):
        decrypt_call(message, private_key())


@pytest.mark.parametrize("key", [b"", b"short", b"\xff" * 44, b"a" * 45, b"YWJj" * 10])
def test_a_call_with_a_key_that_is_none_cannot_be_decrypted(key: bytes) -> None:
    encrypted_key = b64encode(private_key().public_key().encrypt(key, OAEP))
    with pytest.raises(UndecryptableMessage, match=r"^the message cannot be decrypted$"):
        decrypt_call(encrypted_key + b".Y2FuYXJ5", private_key())


@pytest.mark.parametrize("character", [b"\n", b" ", b"-", b"_", b"\xff"])
def test_characters_that_base64_does_not_have_are_not_passed_over(character: bytes) -> None:
    key, message = encrypt(BODY, private_key().public_key())
    encrypted_key, _, encrypted = message.partition(b".")
    with pytest.raises(UndecryptableMessage):
        decrypt_reply(encrypted_key + b"." + character + encrypted, key)
    with pytest.raises(UndecryptableMessage):
        decrypt_call(character + message, private_key())


@given(st.data())
@settings(max_examples=50)
def test_no_change_to_a_message_changes_what_is_read(data: st.DataObject) -> None:
    key, message = encrypt(BODY, private_key("service", 1024).public_key())
    position = data.draw(st.integers(message.index(b".") + 1, len(message) - 1))
    character = data.draw(st.integers(0, 255))
    body = BODY  # a changed bit may be one that base64 does not use
    with contextlib.suppress(UndecryptableMessage):
        body = decrypt_reply(message[:position] + bytes((character,)) + message[position + 1 :], key)
    assert body == BODY


@given(st.binary(max_size=300), st.binary(max_size=300))
@settings(max_examples=50)
def test_no_message_gets_further_than_the_decryption(first: bytes, second: bytes) -> None:
    for message in (first, first + b"." + second, b64encode(first) + b"." + b64encode(second)):
        with pytest.raises(UndecryptableMessage):
            decrypt_call(message, private_key("service", 1024))
        with pytest.raises(UndecryptableMessage):
            decrypt_reply(message, Fernet.generate_key())

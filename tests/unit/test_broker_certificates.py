"""Refused certificates of a broker, in words for an operator; on Python 3.13 and newer, those of its strict mode."""

from __future__ import annotations

import datetime as dt
import ssl
import sys
from pathlib import Path
from typing import Final

import pytest
from aiormq.exceptions import AMQPConnectionError
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from nuropb_gateway_asgi.mesh.rabbitmq._errors import explain

#: Python's default context is strict (ssl.VERIFY_X509_STRICT).
IS_STRICT: Final = sys.version_info >= (3, 13)
REFUSED: Final = "the broker's certificate is refused: certificate verify failed: "
REMEDY: Final = (
    "; Python 3.13 and newer verify strictly (RFC 5280): issue the certificate, or that of its authority, with the "
    "named extension, or run the gateway on Python 3.12"
)


def build(name: str, issuer: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An authority's certificate, and a certificate of its without an authority key identifier, with its key."""
    directory = tmp_path_factory.mktemp("certificates")
    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    usage = {
        name: name in ("key_cert_sign", "crl_sign")
        for name in (
            *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
            *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
        )
    }
    of_authority = (
        build("authority", "authority", authority)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .add_extension(x509.KeyUsage(**usage), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority.public_key()), False)
        .sign(authority, hashes.SHA256())
    )
    of_broker = (
        build("broker", "authority", key)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
        .sign(authority, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    cafile, certfile = directory / "authority.pem", directory / "broker.pem"
    cafile.write_bytes(of_authority.public_bytes(serialization.Encoding.PEM))
    certfile.write_bytes(of_broker.public_bytes(serialization.Encoding.PEM) + secret)
    return cafile, certfile


def shake_hands(context: ssl.SSLContext, certfile: Path) -> None:
    """Make a connection in memory to a broker with a certificate. Raises SSLError."""
    broker = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    broker.load_cert_chain(certfile)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        context.wrap_bio(back, there, server_hostname="localhost"),
        broker.wrap_bio(there, back, server_side=True),
    ]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "by default"])
def test_a_certificate_without_authority_key_identifier_is_refused_with_the_remedy_where_python_is_strict(
    files: tuple[Path, Path], strict: bool
) -> None:
    cafile, certfile = files
    context = ssl.create_default_context(cafile=str(cafile))
    if strict:
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    if not strict and not IS_STRICT:
        shake_hands(context, certfile)
        return
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        shake_hands(context, certfile)
    assert explain(caught.value) == f"{REFUSED}Missing Authority Key Identifier{REMEDY}"


@pytest.mark.parametrize(
    ("code", "message", "remedy"),
    [
        (85, "Missing Authority Key Identifier", REMEDY),
        (92, "CA cert does not include key usage extension", REMEDY),
        (10, "certificate has expired", ""),
    ],
)
def test_a_refused_certificate_is_named_whatever_the_library_has_raised(code: int, message: str, remedy: str) -> None:
    error = ssl.SSLCertVerificationError(1, message)
    error.verify_code, error.verify_message = code, message
    raised = AMQPConnectionError("Connection failed")
    raised.__cause__ = error
    assert explain(raised) == f"{REFUSED}{message}{remedy}"

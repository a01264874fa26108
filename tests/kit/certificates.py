"""A certificate for this machine, made for one test session, and the TLS context of a client that trusts it."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

__all__ = ["Certificate"]


@dataclass(frozen=True)
class Certificate:
    """PEM files: a self-signed certificate, its key, and both in one file."""

    certificate: Path
    key: Path
    both: Path

    @classmethod
    def make(cls, directory: Path, *names: str) -> Certificate:
        """Make a certificate for 127.0.0.1, localhost and ``names``, valid for a day."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gateway")])
        now = dt.datetime.now(dt.UTC)
        hosts = [x509.DNSName(name) for name in ("localhost", *names)]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1")), *hosts]), False
            )
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
            .sign(key, hashes.SHA256())
        )
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        made = cls(directory / "gateway.pem", directory / "gateway.key", directory / "gateway-both.pem")
        for path, data in ((made.certificate, pem), (made.key, secret), (made.both, pem + secret)):
            path.write_bytes(data)
        return made

    def client(self) -> ssl.SSLContext:
        """Return the TLS context of a client that trusts this certificate and no other."""
        return ssl.create_default_context(cafile=str(self.certificate))

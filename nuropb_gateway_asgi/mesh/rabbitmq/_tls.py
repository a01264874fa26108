"""The files that an ``amqps`` URL names, and refused certificates, in words for an operator."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs

__all__ = ["check_files", "explain_certificate", "is_verified"]

#: OpenSSL's codes (X509_V_ERR_*, x509_vfy.h) of certificates that only its strict mode refuses. Python 3.13 switched
#: that mode on (ssl.VERIFY_X509_STRICT).
_STRICT_CODES: Final = range(80, 95)
#: Errors on the way to the cause of a failed connection.
_CAUSES: Final = 10


def is_verified(url: str) -> bool:
    """Return whether the broker's certificate is verified, if it has one. aiormq takes all values but 0 for 1."""
    return parse_qs(url.partition("#")[0].partition("?")[2]).get("no_verify_ssl", ["0"])[0] == "0"


def check_files(url: str) -> None:
    """Read the files that the query of ``url`` names. Raises ConnectionError, which names the parameter and the file.

    aiormq's own errors name neither, and a key with a password would make OpenSSL ask for it at the terminal.
    """
    if not url.lower().startswith("amqps:"):
        return
    query = parse_qs(url.partition("#")[0].partition("?")[2])
    files = {name: query[name][0] for name in ("cafile", "certfile", "keyfile") if name in query}
    for name, path in files.items():
        try:
            with Path(path).open("rb") as file:
                file.read(1)
        except OSError as error:
            raise ConnectionError(f"{name}: {path} cannot be read ({error.strerror})") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if "cafile" in files:
            context.load_verify_locations(files["cafile"])
    except ssl.SSLError as error:
        raise ConnectionError(f"cafile: {files['cafile']} holds no certificate; expected a PEM file") from error
    try:
        if "certfile" in files:
            context.load_cert_chain(files["certfile"], files.get("keyfile"), password="")
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        raise ConnectionError(
            f"certfile: {files['certfile']} cannot be used with its key ({reason}); expected PEM files of a "
            "certificate and its key, without a password"
        ) from error


def explain_certificate(error: BaseException) -> str | None:
    """Describe the refusal of a certificate that caused ``error``, or return None if none did."""
    cause: BaseException | None = error
    for _ in range(_CAUSES):  # aiormq raises errors that are, over some others, causes of their own
        if cause is None or isinstance(cause, ssl.SSLCertVerificationError):
            break
        cause = cause.__cause__ or cause.__context__
    if not isinstance(cause, ssl.SSLCertVerificationError):
        return None
    text = f"the broker's certificate is refused: certificate verify failed: {cause.verify_message}"
    if cause.verify_code in _STRICT_CODES:
        return (
            f"{text}; Python 3.13 and newer verify strictly (RFC 5280): issue the certificate, or that of its "
            "authority, with the named extension, or run the gateway on Python 3.12"
        )
    return text

"""Credentials, addresses, heartbeats and TLS."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import gc
import logging
import re
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pamqp.frame
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pamqp import commands

from nuropb_gateway_asgi.exceptions import MeshUnavailable
from nuropb_gateway_asgi.mesh.rabbitmq import _addresses
from tests.kit.amqp import (
    Peer,
    changed_url,
    queues_of,
    reconnected,
    running,
)
from tests.kit.gate_proxy import Proxy
from tests.kit.gateways import eventually


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"password": "hunter2"}, "credentials"),
        ({"username": "hunter", "password": "hunter2%40%2F%3A"}, "credentials"),
        ({"password": "hunter2", "path": "/no-such-vhost"}, "credentials"),
        ({"path": "/no-such-vhost"}, "refuses the vhost"),
        ({"password": "hunter2", "port": 1}, "[Cc]onne"),
        ({"password": "hunter2", "host": "no-such-host.invalid"}, "not known|resolution"),
    ],
    ids=["password", "user", "password and vhost", "vhost", "port", "host"],
)
async def test_why_there_is_no_connection_is_told_without_the_password(
    amqp_url: str, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], said: str
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.handler.setLevel(logging.DEBUG)
    async with running(changed_url(amqp_url, **changes), wait=False) as gateway:
        await eventually(lambda: gateway.mesh.problem not in (None, "publishing connection: not connected yet"))
        problem = gateway.mesh.problem
        assert problem is not None
        assert re.search(said, problem), problem
        assert "hunter2" not in problem
        with pytest.raises(MeshUnavailable) as caught:
            gateway.send("anybody")
        assert "hunter2" not in str(caught.value)
        assert gateway.receiver.connections == []
    assert "hunter2" not in caplog.text


async def test_an_attempt_that_failed_leaves_nothing_that_closes_itself_later(amqp_url: str) -> None:
    before = asyncio.all_tasks()
    async with running(changed_url(amqp_url, port=1), wait=False) as gateway:
        await eventually(lambda: gateway.mesh.problem not in (None, "publishing connection: not connected yet"))
    gc.collect()
    assert asyncio.all_tasks() <= before


async def test_a_mesh_comes_up_when_its_broker_does(amqp_url: str, remover: list[str]) -> None:
    async with Proxy(amqp_url) as proxy:
        proxy.refuses = True
        async with running(proxy.url(), wait=False) as gateway:
            remover += queues_of(gateway)
            await eventually(lambda: gateway.mesh.problem not in (None, "publishing connection: not connected yet"))
            assert not gateway.mesh.connected
            proxy.refuses = False
            await gateway.connected()
            assert gateway.receiver.connections == [True]


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """A port that takes connections and never says a word, like a node that stands still."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def with_hosts(url: str, *hosts: str) -> str:
    """Return ``url`` with these hosts in front of its own one."""
    head, at, rest = url.rpartition("@")
    return f"{head}{at}{','.join((*hosts, rest))}"


async def test_hosts_that_are_away_or_silent_or_unknown_leave_the_one_that_works(
    amqp_url: str, remover: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_addresses, "EACH_CONNECT_TIMEOUT", 1.0)
    with silent_port() as port:
        url = with_hosts(amqp_url, "127.0.0.1:1", f"127.0.0.1:{port}", "no-such-host.invalid")
        async with running(url) as gateway:
            remover += queues_of(gateway)
            assert gateway.mesh.connected


async def test_what_is_wrong_with_each_host_is_told_without_the_password(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_addresses, "EACH_CONNECT_TIMEOUT", 1.0)
    url = changed_url(amqp_url, password="hunter2")
    with silent_port() as port:
        async with running(with_hosts(url, "127.0.0.1:1", f"127.0.0.1:{port}"), wait=False) as gateway:
            await eventually(lambda: "none of 3 addresses" in (gateway.mesh.problem or ""))
            problem = gateway.mesh.problem or ""
            assert re.search("127.0.0.1:1: [^;]*[Cc]onne", problem), problem
            assert f"127.0.0.1:{port}: no answer from the broker in time" in problem
            assert "refuses the credentials" in problem
            assert "hunter2" not in problem


@pytest.mark.parametrize(("query", "heartbeat"), [({}, 10), ({"heartbeat": "7"}, 7), ({"heartbeat": "23"}, 23)])
async def test_the_heartbeat_of_the_url_is_kept(
    proxy: Proxy, remover: list[str], query: dict[str, str], heartbeat: int
) -> None:
    async with running(proxy.url(**query)) as gateway:
        remover += queues_of(gateway)
        for purpose in ("publish", "consume"):
            assert tune_of(bytes(proxy.link(purpose).sent)).heartbeat == heartbeat


def tune_of(sent: bytes) -> commands.Connection.TuneOk:
    """Return the tuning that a client agreed to."""
    sent = sent.removeprefix(b"AMQP\x00\x00\x09\x01")
    while sent:
        size, _, frame = pamqp.frame.unmarshal(sent)
        if isinstance(frame, commands.Connection.TuneOk):
            return frame
        sent = sent[size:]
    raise AssertionError("nothing was agreed to")


KEY_USAGES: Final = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
    *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)


@dataclass(frozen=True)
class Certificates:
    """Certificates in one directory: of an authority, of its server and its client, and of a second authority."""

    directory: Path

    def context(self, name: str = "server") -> ssl.SSLContext:
        """Make the context of a server that asks for a client certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.directory / f"{name}.pem", self.directory / f"{name}.key")
        context.load_verify_locations(self.directory / "authority.pem")
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def query(self, *, authority: str = "authority", client: str | None = "client") -> dict[str, str]:
        """Return the query parameters of an AMQP URL for the files."""
        files = {"cafile": f"{authority}.pem"}
        if client is not None:
            files.update(certfile=f"{client}.pem", keyfile=f"{client}.key")
        return {name: str(self.directory / file) for name, file in files.items()}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    directory = tmp_path_factory.mktemp("certificates")
    keys = {
        name: ec.generate_private_key(ec.SECP256R1())
        for name in ("authority", "stranger", "server", "client", "forger", "plain")
    }
    now = dt.datetime.now(dt.UTC)
    for name, key in keys.items():
        issuers = {"server": "authority", "client": "authority", "plain": "authority", "forger": "stranger"}
        issuer = issuers.get(name, name)
        names = {each: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)]) for each in (name, issuer)}
        builder = (
            x509.CertificateBuilder()
            .subject_name(names[name])
            .issuer_name(names[issuer])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=issuer == name, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        )
        if name != "plain":  # Python 3.13 refuses a certificate without these extensions
            signer = keys[issuer].public_key()
            identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer)
            builder = builder.add_extension(identifier, critical=False).add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
        if issuer == name:
            usage = dict.fromkeys(KEY_USAGES, False) | {"key_cert_sign": True, "crl_sign": True}
            builder = builder.add_extension(x509.KeyUsage(**usage), critical=True)
        certificate = builder.sign(keys[issuer], hashes.SHA256())
        (directory / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (directory / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
    for name in ("no.pem", "no.key"):
        (directory / name).write_text("no certificate")
    (directory / "locked.pem").write_bytes((directory / "client.pem").read_bytes())
    (directory / "locked.key").write_bytes(
        keys["client"].private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        )
    )
    return Certificates(directory)


async def test_tls_with_an_authority_and_a_client_certificate(
    amqp_url: str, certificates: Certificates, remover: list[str], peer: Peer
) -> None:
    async with (
        Proxy(amqp_url, tls=certificates.context()) as proxy,
        running(proxy.url(**certificates.query())) as gateway,
    ):
        remover += queues_of(gateway)
        service = await peer.service()
        message = gateway.send(service, params=b'{"x":"%b"}' % (b"x" * 300_000))
        await peer.reply(await peer.take(service), "y" * 300_000)
        await gateway.told("reply", message)
        proxy.cut()
        await reconnected(gateway, 2)


async def test_tls_compares_the_certificate_with_the_name_of_each_host(
    amqp_url: str, certificates: Certificates, remover: list[str]
) -> None:
    async with (
        Proxy(amqp_url, tls=certificates.context()) as one,
        Proxy(amqp_url, tls=certificates.context()) as two,
    ):
        url = one.url(**certificates.query()).replace("@localhost:", f"@127.0.0.1:{two.port},localhost:")
        async with running(url) as gateway:
            remover += queues_of(gateway)
            assert len(one.links("publish")) == len(one.links("consume")) == 1
            assert two.links("publish") == two.links("consume") == []


@pytest.mark.parametrize(
    ("files", "host", "said"),
    [
        ({"authority": "stranger"}, "localhost", "certificate verify failed"),
        ({}, "127.0.0.1", "certificate verify failed|IP address mismatch"),
        ({"client": None}, "localhost", "SSL|closed"),
        ({"client": "forger"}, "localhost", "SSL|closed"),
        ({"authority": "missing"}, "localhost", r"cafile: .*missing\.pem cannot be read \(No such file"),
        ({"client": "missing"}, "localhost", r"certfile: .*missing\.pem cannot be read \(No such file"),
        ({"authority": "no"}, "localhost", r"cafile: .*no\.pem holds no certificate"),
        ({"client": "no"}, "localhost", r"certfile: .*no\.pem cannot be used with its key"),
        ({"client": "locked"}, "localhost", r"certfile: .*locked\.pem cannot be used with its key"),
    ],
    ids=[
        *("authority", "name", "no certificate", "certificate", "no authority file", "no certificate file"),
        *("authority that is none", "certificate that is none", "key with a password"),
    ],
)
async def test_tls_that_does_not_hold_is_refused_and_explained(
    amqp_url: str, certificates: Certificates, files: dict[str, str | None], host: str, said: str
) -> None:
    async with Proxy(amqp_url, tls=certificates.context()) as proxy:
        query: Any = certificates.query(**files)  # type: ignore[arg-type]
        url = proxy.url(**query).replace("@localhost:", f"@{host}:")
        async with running(url, wait=False) as gateway:
            await eventually(lambda: gateway.mesh.problem not in (None, "publishing connection: not connected yet"))
            problem = gateway.mesh.problem
            assert problem is not None
            assert re.search(said, problem), problem
            assert not gateway.mesh.connected


async def test_a_certificate_that_newer_pythons_refuse_is_explained(
    amqp_url: str, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = ssl.create_default_context

    def strict(*args: Any, **more: Any) -> ssl.SSLContext:
        context = make(*args, **more)
        context.verify_flags |= ssl.VERIFY_X509_STRICT  # as by default since Python 3.13
        return context

    monkeypatch.setattr(ssl, "create_default_context", strict)
    async with (
        Proxy(amqp_url, tls=certificates.context("plain")) as proxy,
        running(proxy.url(**certificates.query()), wait=False) as gateway,
    ):
        await gateway.says("Missing Authority Key Identifier; Python 3.13 and newer verify strictly")
        assert not gateway.mesh.connected


async def test_a_certificate_that_is_not_verified_is_a_warning_at_every_start(
    amqp_url: str, certificates: Certificates, remover: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    query = certificates.query(authority="stranger") | {"no_verify_ssl": "1"}
    async with Proxy(amqp_url, tls=certificates.context()) as proxy, running(proxy.url(**query)) as gateway:
        remover += queues_of(gateway)
        async with running(proxy.url(**query)) as second:
            remover += queues_of(second)
    assert caplog.text.count("the broker's certificate is not verified (no_verify_ssl in the URL)") == 2

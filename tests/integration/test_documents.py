"""Documents from servers that are honest, hostile or broken."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from nuropb_gateway_asgi import AuthenticationUnavailable, Gateway, JWTAuthenticator, KeySet, Settings, SettingsError
from nuropb_gateway_asgi.authentication import key_sets
from nuropb_gateway_asgi.authentication.fetching import MAX_SIZE, Fetcher
from nuropb_gateway_asgi.authentication.strict_json import Unacceptable
from tests.kit.clients import connect, refusal
from tests.kit.gateways import DEADLINE, eventually, run_gateway
from tests.kit.tokens import NOW, RSA_KEY, RSA_OTHER, as_json, claims, jwk, key_set, make
from tests.servers.rabbitmq import free_port
from tests.servers.web import Answer, WebServer, page

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"


async def hold(writer: asyncio.StreamWriter) -> None:
    """Send nothing."""
    await asyncio.Event().wait()


def drip(text: bytes) -> Answer:
    """Send a byte now and then, each after a short wait."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        for byte in text * 1000:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.02)

    return answer


def say(text: bytes) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(text)

    return answer


async def endless(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"1000\r\n" + b" " * 0x1000 + b"\r\n")
        await writer.drain()


# --- accepted ----------------------------------------------------------------------------------------------


async def test_a_document_comes_as_it_is_with_the_time_that_it_may_be_kept() -> None:
    async with WebServer.run(page(b'{"a": 1}', "Cache-Control: public, max-age=600")) as server:
        document = await Fetcher()(server.url("/keys?x=1"))
        assert (document.body, document.max_age) == (b'{"a": 1}', 600)


async def test_a_request_tells_no_more_than_it_must(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password hunter2\n")
    monkeypatch.setenv("NETRC", str(netrc))
    async with WebServer.run(page(b"{}", "Set-Cookie: a=b")) as server:
        fetch = Fetcher()
        for _ in range(2):
            await fetch(server.url())
        for request in server.requests:
            names = {line.partition(":")[0].lower() for line in request.splitlines()[1:] if line}
            assert names == {"host", "accept", "accept-encoding", "connection", "user-agent"}
            assert "accept-encoding: identity" in request.lower()


async def test_the_way_to_this_machine_goes_by_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    async with WebServer.run(page(b"{}")) as server:
        assert (await Fetcher()(server.url())).body == b"{}"


async def test_the_way_to_others_goes_by_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    async with WebServer.run(page(b"", status="502 Bad Gateway")) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url())
        with pytest.raises(Unacceptable, match="ProxyError: 502"):
            await Fetcher()("https://issuer.example/keys")
        (request,) = proxy.requests
        assert request.startswith("CONNECT issuer.example:443 ")  # and nothing of the request to the server


async def test_as_much_as_is_allowed_is_taken() -> None:
    async with WebServer.run(page(b" " * MAX_SIZE)) as server:
        assert len((await Fetcher()(server.url())).body) == MAX_SIZE


# --- refused ------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Answer, str]] = {
    "a byte too much": (page(b" " * (MAX_SIZE + 1)), f"longer than {MAX_SIZE} bytes"),
    "without an end": (endless, f"longer than {MAX_SIZE} bytes"),
    "packed": (page(b"\x1f\x8b", "Content-Encoding: gzip"), "the answer is compressed"),
    "not found": (page(b"{}", status="404 Not Found"), "the status is 404"),
    "nothing to show": (page(b"", status="204 No Content"), "the status is 204"),
    "a part": (page(b"{}", status="206 Partial Content"), "the status is 206"),
    "an error": (page(b"{}", status="503 Service Unavailable"), "the status is 503"),
    "cut short": (say(HEAD + b"{}"), "RemoteProtocolError"),
    "no answer": (say(b""), "RemoteProtocolError|ReadError"),
    "no HTTP": (say(b"SSH-2.0-OpenSSH_9.2\r\n"), "RemoteProtocolError"),
    "headers without an end": (say(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000), "RemoteProtocolError"),
}


@pytest.mark.parametrize(("answer", "reason"), REFUSED.values(), ids=REFUSED)
async def test_an_answer_that_is_no_document_is_refused(answer: Answer, reason: str) -> None:
    async with WebServer.run(answer) as server:
        with pytest.raises(Unacceptable, match=reason):
            await Fetcher()(server.url())
        await eventually(lambda: server.closed == len(server.requests) == 1)


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
async def test_a_redirect_is_not_followed(status: str) -> None:
    async with (
        WebServer.run(page(b"{}")) as other,
        WebServer.run(page(b"", f"Location: {other.url()}", status=status)) as server,
    ):
        with pytest.raises(Unacceptable, match=f"the status is {status[:3]} and redirects are not followed"):
            await Fetcher()(server.url())
        assert other.requests == []


@pytest.mark.parametrize("name", ["silent", "head", "body", "second"])
async def test_a_server_that_takes_its_time_is_given_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def drip_body(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        await drip(b" ")(writer)

    async def discover(writer: asyncio.StreamWriter) -> None:
        """Send the first document at once, and the second never."""
        if len(server.requests) > 1:
            await hold(writer)
        await page(as_json({"issuer": server.url(), "jwks_uri": server.url("/keys")}))(writer)

    answer = {"silent": hold, "head": drip(b"HTTP/1.1 200 OK\r\nX: "), "body": drip_body, "second": discover}[name]
    monkeypatch.setattr(key_sets, "FETCH_TIMEOUT", 0.3)
    async with asyncio.timeout(DEADLINE), WebServer.run(answer) as server:
        keys = KeySet(issuer=server.url()) if name == "second" else KeySet(server.url())
        async with keys:
            with pytest.raises(AuthenticationUnavailable, match=r"keys: no complete answer within 0\.3 s"):
                await keys.ring()
        await eventually(lambda: server.closed == server.opened)


async def test_nobody_there() -> None:
    with pytest.raises(Unacceptable, match="ConnectError"):
        await Fetcher()(f"http://127.0.0.1:{free_port()}/")


async def test_cancelling_closes_the_connection() -> None:
    async with WebServer.run(hold) as server:
        task = asyncio.create_task(Fetcher()(server.url()))
        await eventually(lambda: server.requests)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await eventually(lambda: server.closed == 1)


# --- TLS --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificate and key of a server named localhost, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - dt.timedelta(days=1))
    builder = builder.not_valid_after(now + dt.timedelta(days=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM) + private)
    return path


@pytest.fixture
def tls(authority: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority)
    return context


async def test_https_with_an_authority_that_is_trusted(
    authority: Path, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    async with WebServer.run(page(b"{}"), tls=tls) as server:
        fetch = Fetcher()
        assert (await fetch(server.url(host="localhost"))).body == b"{}"
        with pytest.raises(Unacceptable, match="CERTIFICATE_VERIFY_FAILED"):
            await fetch(server.url(host="127.0.0.1"))  # the certificate is for another name


async def test_https_with_an_authority_that_nobody_knows(tls: ssl.SSLContext) -> None:
    async with WebServer.run(page(b"{}"), tls=tls) as server:
        with pytest.raises(Unacceptable, match="CERTIFICATE_VERIFY_FAILED"):
            await Fetcher()(server.url(host="localhost"))


# --- in a gateway -----------------------------------------------------------------------------------------------


async def test_a_gateway_starts_and_stops_while_its_provider_is_silent() -> None:
    async with WebServer.run(hold) as server:
        gateway = Gateway(Settings(jwt_jwks_url=server.url("/keys"), jwt_audience="gateway"))
        async with run_gateway(gateway) as running:
            await eventually(lambda: server.requests)
            assert gateway.not_ready() == ["keys: not fetched yet"]
            waiting = asyncio.create_task(refusal(running.url, "a.b.c"))
            assert (await waiting).status == 401  # nonsense needs no keys
        await eventually(lambda: server.closed == 1)


async def test_a_large_key_set_with_a_faulty_key_serves_the_others() -> None:
    keys = [as_json(jwk(RSA_OTHER, f"key {position}", x5t="t" * 50)) for position in range(498)]
    keys += [b'{"kid":"twice","kid":"twice"}', as_json(jwk(RSA_KEY, "ours", alg="PS256"))]
    body = b'{"keys":[' + b",".join(keys) + b"]}"
    assert 200_000 < len(body) <= MAX_SIZE
    async with WebServer.run(page(body)) as server, JWTAuthenticator(KeySet(server.url("/keys"))) as authenticator:
        identity = await authenticator(make(claims(iat=1), alg="PS256", key=RSA_KEY, kid="ours"))
        assert identity is not None
        assert authenticator.key_set is not None
        assert authenticator.key_set.size == 499


async def test_access_tokens_of_amazon_cognito() -> None:
    issuer = "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_Abc"
    shape = {"iss": issuer, "exp": NOW, "iat": 1, "sub": "7c0e"}
    access = shape | {"client_id": "spa", "token_use": "access", "scope": "openid", "username": "alice"}
    async with WebServer.run(page(key_set(jwk(RSA_KEY, "k", alg="RS256", use="sig")))) as server:
        gateway = Gateway(
            Settings(
                jwt_jwks_url=server.url("/keys"),
                jwt_issuer=issuer,
                jwt_client_id="other,spa",
                jwt_user_claim="username",
                allowed_origins=[],
            )
        )
        async with run_gateway(gateway) as running:
            for form in (access, {name: value for name, value in access.items() if name != "sub"}):
                async with connect(running.url, make(form, alg="RS256", key=RSA_KEY, kid="k")) as client:
                    assert client.hello["user_id"] == "alice"
            for strange in (
                access | {"client_id": "evil"},
                shape | {"aud": "spa", "token_use": "id", "username": "alice"},
                {name: value for name, value in access.items() if name != "username"},
            ):
                assert (await refusal(running.url, make(strange, alg="RS256", key=RSA_KEY, kid="k"))).status == 401


async def test_keys_by_http_inside_a_cluster_have_to_be_allowed(caplog: pytest.LogCaptureFixture) -> None:
    async with WebServer.run(page(key_set(jwk(RSA_KEY, "k")))) as server:
        url = server.url("/keys", host="127.1")  # a name that is not known to be this machine's
        with pytest.raises(SettingsError, match="NUROPB_GATEWAY_JWT_ALLOW_HTTP=on"):
            Gateway(Settings(jwt_jwks_url=url))
        token = make(claims(iat=1), alg="RS256", key=RSA_KEY, kid="k")
        gateway = Gateway(Settings(jwt_jwks_url=url, jwt_allow_http="on"))
        async with run_gateway(gateway) as running, connect(running.url, token) as client:
            assert client.hello["user_id"] == "alice"
    assert "NUROPB_GATEWAY_JWT_ALLOW_HTTP is on: every machine" in caplog.text

"""The recipes of docs/issuing-tokens.md and docs/migration.md, as they are written there."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import HTTPException
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute

from nuropb_gateway_asgi import FunctionAuthenticator, Gateway, Settings
from nuropb_gateway_asgi.authentication import JWTAuthenticator, new_secret
from nuropb_gateway_asgi.authentication.credentials import find_credentials
from tests.kit.gateways import serve
from tests.kit.javascript import node
from tests.kit.processes import ROOT, run_process
from tests.kit.walk import blocks_of
from tests.servers.processes import unavailable

DOCS: Final = ROOT / "docs"
SECRET: Final = new_secret()


def recipe(page: str, title: str) -> str:
    """Return the text of the block with this title."""
    (text,) = (block.text for block in blocks_of(DOCS / page) if block.title == title)
    return text


def run(page: str, title: str, **names: Any) -> dict[str, Any]:
    """Run a Python recipe among ``names``, which its reader has already, and return all names."""
    exec(compile(recipe(page, title), title, "exec", dont_inherit=True), names)
    return names


@dataclass
class User:
    id: str
    name: str
    roles: list[str] = field(default_factory=list)


async def test_a_session_is_exchanged_for_a_token() -> None:
    def current_user(request: Request) -> User:
        if request.cookies.get("session") != "s1":
            raise HTTPException(401)
        return User("17", "Alice", ["clerk"])

    current_user.__annotations__["request"] = Request
    app = run("issuing-tokens.md", "FastAPI", User=User, current_user=current_user, JWT_KEY=SECRET)["app"]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as http:
        assert (await http.get("/token")).status_code == 401
        response = await http.get("/token", headers={"Cookie": "session=s1"})
    assert response.headers["Cache-Control"] == "no-store"
    identity = await JWTAuthenticator(key=SECRET)(response.json()["token"])
    assert identity is not None
    assert (identity.user_id, identity.username, identity.claims["roles"]) == ("17", "Alice", ["clerk"])


async def test_a_token_is_signed_with_a_private_key() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    encoding, no_password = serialization.Encoding.PEM, serialization.NoEncryption()
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, no_password).decode()
    public = key.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
    token = run("issuing-tokens.md", "ES256, with python-jose")["token_for"]("alice", private)
    identity = await JWTAuthenticator(key=public)(token)
    assert identity is not None
    assert identity.user_id == "alice"


async def test_a_program_gets_its_token_by_client_credentials() -> None:
    async def answer(request: Request) -> JSONResponse:
        return JSONResponse({"access_token": (await request.body()).decode()})

    async with serve(Starlette(routes=[Route("/oauth/token", answer, methods=["POST"])])) as site:
        names = {"CLIENT_ID": "report", "CLIENT_SECRET": "s", "TOKEN_URL": site.http("/oauth/token")}
        sent = await run("issuing-tokens.md", "client credentials, with httpx", **names)["fetch_token"]()
    assert sent == "grant_type=client_credentials&client_id=report&client_secret=s&audience=gateway"


PROVIDERS: Final = """
const told = [];
{
  const answers = [[200, { token: "t" }], [401], [500]];
  const fetch = async (...asked) => {
    const [status, body] = answers.shift();
    return { ok: status === 200, status, json: async () => body };
  };
  SESSION
  told.push(await getToken("connect"), await getToken("expired"), await getToken("connect").catch(String));
}
{
  const keycloak = { token: "k1", async updateToken(seconds) {
    if (seconds === -1) this.token = "k2";
    if (this.over) throw new Error("over");
  } };
  KEYCLOAK
  told.push(await getToken("connect"), await getToken("rejected"));
  keycloak.over = true;
  told.push(await getToken("expired"));
}
{
  let fault;
  const auth0 = { async getTokenSilently({ cacheMode }) {
    if (fault) throw fault;
    return cacheMode;
  } };
  AUTH0
  told.push(await getToken("connect"), await getToken("rejected"));
  fault = Object.assign(new Error("sign in"), { error: "login_required" });
  told.push(await getToken("connect"));
  fault = new Error("offline");
  told.push(await getToken("connect").catch(String));
}
console.log(JSON.stringify(told));
"""


async def test_pages_get_their_tokens_from_a_session_and_from_providers(tmp_path: Path) -> None:
    script = PROVIDERS
    for name, title in (
        ("SESSION", "getToken with a session"),
        ("KEYCLOAK", "getToken with keycloak-js"),
        ("AUTH0", "getToken with auth0-spa-js"),
    ):
        script = script.replace(name, recipe("issuing-tokens.md", title))
    file = tmp_path / "tokens.mjs"
    file.write_text(script)
    async with run_process(*node(), str(file)) as process:
        assert await process.wait() == 0, process.output
    session = '"t",null,"Error: no token: 500"'
    assert process.stdout == [f'[{session},"k1","k2",null,"on","off",null,"Error: offline"]']


async def test_a_session_cookie_of_tornado_signs_in() -> None:
    try:
        from tornado.web import create_signed_value
    except ImportError:
        unavailable("tornado is not installed; nuropb brings it")
    names = run("migration.md", "gateway.py, with session cookies")
    assert isinstance(names["gateway"], Gateway)
    user = b'{"user_id": "17", "username": "alice", "session_id": "x", "kmsi": "0"}'
    for clock, valid in ((time.time, True), (lambda: time.time() - 2 * 86400, False)):
        cookie = create_signed_value(names["SECRET"], "session", user, clock=clock).decode()
        # Tornado's cookies come back in quotes.
        found = find_credentials(Headers({"Cookie": f'a=b; session="{cookie}"'}), (), "session")
        assert found.token == cookie
        identity = await FunctionAuthenticator(names["authorise_from_session"])(cookie)
        assert (identity is not None) == valid
        if identity is not None:
            assert (identity.user_id, identity.username) == ("17", "alice")
            assert identity.expires_at is not None
    assert await FunctionAuthenticator(names["authorise_from_session"])("forged") is None


@pytest.mark.parametrize("expires_at", [4102444800, "2100-01-01T00:00:00Z", "2100-01-01T00:00:00"])
async def test_expires_at_is_read_in_every_form_that_the_page_names(expires_at: Any) -> None:
    authenticator = FunctionAuthenticator(lambda token: {"user_id": "alice", "expires_at": expires_at})
    identity = await authenticator("t")
    assert identity is not None
    assert identity.expires_at == 4102444800


def test_the_settings_for_the_clients_of_nuropb_gw_are_accepted_without_a_key() -> None:
    lines = recipe("migration.md", "gateway.env").splitlines()
    settings = Settings.from_env(dict(line.split("=", 1) for line in lines))
    gateway = Gateway(settings, authenticator=FunctionAuthenticator(lambda token: None))
    assert [route.path for route in gateway.app.routes if isinstance(route, WebSocketRoute)] == ["/websocket"]

"""Tokens: valid ones are accepted, hostile ones refused, none is logged. The table is in tests/kit/token_table.py."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nuropb_gateway_asgi.authentication import Authenticator, Identity, JWTAuthenticator, jwt_authenticator
from nuropb_gateway_asgi.exceptions import TokenExpired
from tests.kit.token_table import HONEST, HOSTILE, Row, clock_of_the_table, verifiers
from tests.kit.tokens import AUDIENCE, CLAIMS, ISSUER, SECRET, make

TOKEN = make()
HEAD, BODY, SIGNATURE = TOKEN.split(".")
HS = JWTAuthenticator(SECRET, ["HS256"], ISSUER, AUDIENCE)


@pytest.fixture(scope="module", autouse=True)
def _stopped_clock() -> Iterator[None]:
    with clock_of_the_table():
        yield


@pytest.fixture(scope="module")
async def judges() -> AsyncIterator[Mapping[str, Authenticator]]:
    async with verifiers() as all_of_them:
        yield all_of_them


def _name(row: Row) -> str:
    return f"{row.verifier}: {row.name}"


@pytest.mark.parametrize("row", HONEST, ids=_name)
async def test_an_honest_token_identifies_its_user(judges: Mapping[str, Authenticator], row: Row) -> None:
    for _ in range(2):  # the second time its signature is remembered
        identity = await judges[row.verifier](row.token)
        assert identity is not None
        assert (identity.user_id, identity.username, identity.token) == ("alice", "Alice", row.token)
        assert identity.expires_at == identity.claims["exp"]


async def judged(authenticator: Authenticator, token: str) -> Identity | None:
    """Return the identity that a token proves; an expired token proves none either, but is told apart."""
    try:
        return await authenticator(token)
    except TokenExpired:
        return None


@pytest.mark.parametrize("row", HOSTILE, ids=_name)
async def test_a_hostile_token_identifies_nobody_and_is_not_logged(
    judges: Mapping[str, Authenticator], row: Row, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="nuropb_gateway_asgi")
    assert await judged(judges[row.verifier], row.token) is None
    # A refusal with a reason, not an unexpected exception; an expired token is reported by its exception.
    assert [record.levelno for record in caplog.records] in ([logging.DEBUG], [])
    assert not any(part in caplog.text for part in row.token.split(".") if len(part) > 6)


def test_the_table_is_what_it_says() -> None:
    assert len(HONEST) >= 15
    assert len(HOSTILE) >= 60
    for rows in (HONEST, HOSTILE):
        names = [_name(row) for row in rows]
        assert len(set(names)) == len(names)
    tokens = {row.name: row.token for row in HONEST + HOSTILE}
    assert len(tokens["exactly 16384 characters"]) == 16384
    assert len(tokens["16385 characters"]) == 16385


@given(st.text() | st.text("abc.-_=", max_size=40).map(lambda text: f"{HEAD}.{text}"))
@settings(database=None, deadline=None)
async def test_any_text_as_a_token_identifies_nobody(text: str) -> None:
    assert await HS(text) is None


@given(st.integers(0, len(TOKEN) - 1), st.characters(min_codepoint=32, max_codepoint=127))
@settings(database=None, deadline=None)
async def test_token_with_one_character_changed_identifies_nobody(index: int, character: str) -> None:
    changed = TOKEN[:index] + character + TOKEN[index + 1 :]
    assert (await HS(changed) is None) == (changed != TOKEN)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda children: st.lists(children) | st.dictionaries(st.sampled_from([*CLAIMS, "nbf"]), children),
        max_leaves=8,
    )
)
@settings(database=None, deadline=None)
async def test_any_signed_json_is_judged_without_an_exception(value: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jwt_authenticator.logger, "error", lambda *args: pytest.fail(str(args)))
        await judged(HS, make(json.dumps(value).encode("utf-8", "surrogatepass")))
        if isinstance(value, dict):
            await judged(HS, make(CLAIMS | value))

from __future__ import annotations

import inspect

import pytest

from nuropb_gateway_asgi import exceptions
from nuropb_gateway_asgi.exceptions import (
    AuthenticationFailed,
    AuthenticationUnavailable,
    CallError,
    ConnectionLimitReached,
    GatewayError,
    HandshakeRefused,
    MeshUnavailable,
    MessageTooLarge,
    NotStartedError,
    PolicyError,
    ProtocolError,
    SettingsError,
    TokenExpired,
    UnknownKey,
)

TREE = [
    (GatewayError, (Exception,)),
    (SettingsError, (GatewayError, ValueError)),
    (PolicyError, (SettingsError,)),
    (NotStartedError, (GatewayError, RuntimeError)),
    (ProtocolError, (GatewayError,)),
    (HandshakeRefused, (GatewayError,)),
    (AuthenticationFailed, (HandshakeRefused,)),
    (TokenExpired, (AuthenticationFailed,)),
    (ConnectionLimitReached, (HandshakeRefused,)),
    (AuthenticationUnavailable, (GatewayError,)),
    (UnknownKey, (AuthenticationUnavailable,)),
    (MeshUnavailable, (GatewayError,)),
    (MessageTooLarge, (GatewayError, ValueError)),
    (CallError, (GatewayError,)),
]


@pytest.mark.parametrize(("exception", "bases"), TREE)
def test_the_exceptions_are_a_tree(exception: type[Exception], bases: tuple[type[Exception], ...]) -> None:
    assert exception.__bases__ == bases
    assert exception.__doc__


def test_every_exception_is_in_the_tree_that_is_drawn() -> None:
    names = [exception.__name__ for exception, _ in TREE]
    assert sorted(names) == exceptions.__all__
    assert sorted(names) == sorted(name for name, _ in inspect.getmembers(exceptions, inspect.isclass))
    assert exceptions.__doc__ is not None
    assert [word for word in exceptions.__doc__.split() if word in names] == names


def test_a_protocol_error_has_the_ids_of_its_frame() -> None:
    error = ProtocolError("payload.id: expected str", id="7", trace_id="t")
    assert (str(error), error.description, error.id, error.trace_id) == (
        "payload.id: expected str",
        "payload.id: expected str",
        "7",
        "t",
    )
    assert (ProtocolError("x").id, ProtocolError("x").trace_id) == (None, None)


@pytest.mark.parametrize("per_user", [True, False])
def test_a_reached_limit_tells_whether_it_is_the_users(per_user: bool) -> None:
    error = ConnectionLimitReached("too many", per_user=per_user)
    assert (str(error), error.per_user) == ("too many", per_user)


def test_an_error_of_a_call_has_the_members_that_a_client_gets() -> None:
    error = CallError("timeout", "NuropbTimeoutError", "no reply in time", retryable=False)
    assert str(error) == "timeout: no reply in time"
    assert (error.code, error.error, error.description, error.retryable) == (
        "timeout",
        "NuropbTimeoutError",
        "no reply in time",
        False,
    )

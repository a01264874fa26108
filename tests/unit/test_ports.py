"""The port that ``serve`` listens at."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from nuropb_gateway_asgi.cli.serve import listener
from nuropb_gateway_asgi.cli.serve.listener import choose_port
from nuropb_gateway_asgi.cli.serve.options import Options


def options(port: int | None = None, host: str = "127.0.0.1", uds: str | None = None) -> Options:
    return Options(
        host=host,
        port=port,
        uds=uds,
        fd=None,
        workers=1,
        reload=False,
        proxy_headers=True,
        forwarded_allow_ips=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        deflate=False,
        root_path="",
        shutdown_delay=None,
        log_level=None,
        log_config=None,
        record=None,
        redact=(),
    )


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A port that another program listens at; it is the default."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setattr(listener, "DEFAULT_PORT", port)
        yield port


def test_in_development_the_next_free_port_takes_the_place_of_the_default(
    taken: int, capsys: pytest.CaptureFixture[str]
) -> None:
    port = choose_port(options(), may_move=True)
    assert taken < port < taken + listener.PORTS
    assert f"port {taken} is in use, so this gateway is at port {port}" in capsys.readouterr().err


def test_a_port_that_the_user_named_is_no_other(taken: int) -> None:
    with pytest.raises(
        OSError, match=f"port {taken} of 127.0.0.1 is in use by another program: stop it, or name another"
    ):
        choose_port(options(taken), may_move=True)


def test_a_gateway_of_a_broker_does_not_move(taken: int) -> None:
    with pytest.raises(OSError, match="is in use"):
        choose_port(options(), may_move=False)


def test_a_host_that_this_machine_does_not_have_is_named() -> None:
    with pytest.raises(OSError, match=r"192\.0\.2\.1 is no address of this machine: name one"):
        choose_port(options(0, "192.0.2.1"), may_move=True)


def test_a_unix_socket_needs_no_port(taken: int) -> None:
    assert choose_port(options(uds="socket"), may_move=False) == taken

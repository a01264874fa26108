from __future__ import annotations

import pytest

from nuropb_gateway_asgi.authentication import OriginPolicy
from nuropb_gateway_asgi.cli._target import parse_url
from nuropb_gateway_asgi.loopback import is_loopback_host


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("LocalHost", True),
        ("127.0.0.1", True),
        ("127.0.0.2", True),
        ("127.255.255.255", True),
        ("::1", True),
        ("[::1]", True),
        ("0:0:0:0:0:0:0:1", True),
        ("::ffff:127.0.0.1", True),
        ("[::FFFF:7F00:1]", True),
        # names that resemble loopback hosts
        ("localhost.evil.example", False),
        ("127.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("evil-localhost", False),
        ("localhost.", False),
        ("app.localhost", False),  # this machine by RFC 6761, but many resolvers ask the DNS
        # forms of addresses that parsers read differently
        ("127.1", False),
        ("127", False),
        ("2130706433", False),
        ("0x7f.0.0.1", False),
        ("127.0.0.01", False),
        ("127.0.0.1:8000", False),
        # other addresses
        ("0.0.0.0", False),
        ("::", False),
        ("[::]", False),
        ("::ffff:0.0.0.0", False),
        ("::ffff:10.0.0.1", False),
        ("10.0.0.1", False),
        ("128.0.0.1", False),
        ("::2", False),
        ("fe80::1", False),
        # no host
        ("", False),
        ("[]", False),
        ("[::1", False),
        ("::1]", False),
        ("[[::1]]", False),
        (" 127.0.0.1", False),
        ("127.0.0.1\n", False),
        ("١٢٧.0.0.1", False),
    ],
)
def test_loopback_hosts(host: str, expected: bool) -> None:
    assert is_loopback_host(host) is expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("ws://localhost:8000/ws", True),
        ("ws://LOCALHOST/ws", True),
        ("ws://127.0.0.1/ws", True),
        ("ws://[::1]:8000/ws", True),
        ("ws://localhost.evil.example/ws", False),
        ("ws://127.evil.example/ws", False),
        ("ws://[::1:2]/ws", False),
        ("ws://10.0.0.1/ws", False),
    ],
)
def test_the_command_line_takes_a_gateway_for_local_by_its_whole_host(url: str, expected: bool) -> None:
    assert parse_url(url).is_local is expected


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "127.0.0.2", "[::ffff:127.0.0.1]", "0.0.0.0"])
def test_the_origins_of_development_are_loopback_hosts(host: str) -> None:
    assert is_loopback_host(host) or not OriginPolicy.loopback().allows(f"http://{host}:5173")

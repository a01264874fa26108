"""Attacks of hostile clients, as tables: invalid handshakes, invalid frames, and floods.

Every place in which a client could put a secret has one, so that the same tables show whether secrets leak.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from .clients import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, RawClient, bearer_subprotocol

__all__ = ["COSTLY", "FLOODS", "Flood", "bomb", "frames", "handshakes"]

KEY: Final = ("Sec-WebSocket-Key", base64.b64encode(bytes(16)).decode())
VERSION: Final = ("Sec-WebSocket-Version", "13")
UPGRADE: Final = (("Upgrade", "websocket"), ("Connection", "Upgrade"))


def head(first: str, *headers: tuple[str, str]) -> bytes:
    """Return the head of a request with these headers and no others."""
    lines = [first, *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode("latin-1")


def handshakes(secret: str) -> dict[str, tuple[bytes, int]]:
    """Return requests by their fault, each with the status of its answer. ``secret`` is not a valid token."""
    bearer = ("Authorization", f"Bearer {secret}")
    query = f"/ws?token={secret}"
    host = ("Host", "gateway")
    whole = RawClient.upgrade(query, bearer)
    inner = f"GET /metrics?{secret} HTTP/1.1\r\nHost: gateway\r\n\r\n".encode()

    def upgrade(*headers: tuple[str, str]) -> bytes:
        return RawClient.upgrade(query, *headers)

    def only(*headers: tuple[str, str], first: str = f"GET {query} HTTP/1.1") -> bytes:
        return head(first, *headers, bearer)

    def length(value: str) -> bytes:
        return upgrade(bearer, ("Content-Length", value))

    def chunked(chunk: bytes, count: int, extension: bytes = b"") -> bytes:
        chunks = b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk) * count
        return only(host, ("Transfer-Encoding", "chunked"), first="POST /livez HTTP/1.1") + chunks + b"0\r\n\r\n"

    return {
        "token that is nobody's": (whole, 401),
        "token in the query only": (upgrade(), 101),
        "token in a subprotocol": (
            upgrade(("Sec-WebSocket-Protocol", f"nuropb.v1, {bearer_subprotocol(secret)}")),
            401,
        ),
        "token in a cookie": (upgrade(("Cookie", f"Authorization={secret}")), 403),
        "two tokens": (upgrade(bearer, ("Authorization", f"Bearer {secret}2")), 401),
        "basic": (upgrade(("Authorization", f"Basic {secret}")), 401),
        # The log and the answer name a refused origin, if it is one: what is none is not shown.
        "foreign origin": (upgrade(bearer, ("Origin", "https://foreign.example.com")), 403),
        "origin with a secret": (upgrade(bearer, ("Origin", f"https://foreign.example.com/?token={secret}")), 403),
        "unknown subprotocol": (upgrade(bearer, ("Sec-WebSocket-Protocol", secret)), 400),
        # Not HTTP.
        "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + secret.encode() + b"\r\n\r\n", 400),
        "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        "HTTP/3.0": (only(host, *UPGRADE, KEY, VERSION, first=f"GET {query} HTTP/3.0"), 505),
        "HTTP/1.0": (only(host, *UPGRADE, KEY, VERSION, first=f"GET {query} HTTP/1.0"), 505),
        "HTTP/0.9": (f"GET {query}\r\n\r\n".encode(), 400),
        "no method": (f"{query} HTTP/1.1\r\n\r\n".encode(), 400),
        "POST": (whole.replace(b"GET", b"POST"), 400),
        "CONNECT": (only(host, first="CONNECT gateway:443 HTTP/1.1"), 404),
        "absolute target": (only(host, *UPGRADE, KEY, VERSION, first=f"GET http://gateway{query} HTTP/1.1"), 403),
        "asterisk": (only(host, *UPGRADE, KEY, VERSION, first="GET * HTTP/1.1"), 403),
        "line break in the target": (whole.replace(b"/ws?", b"/ws%0d%0aX-Evil:%20?"), 403),
        "escape in the target": (whole.replace(b"/ws?", b"/\x1b[31m?"), 400),
        "dots": (whole.replace(b"/ws?", b"/ws/../ws?"), 403),
        "two slashes": (whole.replace(b"/ws?", b"//ws?"), 403),
        # Request smuggling.
        "body": (length("5") + b"hello", 400),
        "body that is a request": (length(str(len(inner))) + inner, 400),
        "chunked": (upgrade(bearer, ("Transfer-Encoding", "chunked")) + b"0\r\n\r\n" + inner, 400),
        "chunked and length": (upgrade(bearer, ("Transfer-Encoding", "chunked"), ("Content-Length", "4")) + inner, 400),
        "identity": (upgrade(bearer, ("Transfer-Encoding", "identity")), 501),
        "two lengths": (upgrade(bearer, ("Content-Length", "0"), ("Content-Length", "5")) + inner, 400),
        "negative length": (length("-1"), 400),
        "length as text": (length(secret), 400),
        "pipelined": (whole + whole, 400),
        "followed by a request": (whole + inner, 400),
        "followed by a frame": (whole + RawClient.frame(secret.encode()), 400),
        "bad chunk": (
            only(host, ("Transfer-Encoding", "chunked"), first="POST /livez HTTP/1.1") + f"{secret}\r\n".encode(),
            400,
        ),
        "chunks of a byte": (chunked(b"x", 1000), 413),
        "chunks of a byte with extensions": (chunked(b"x", 1000, b';a="b"'), 413),
        "empty chunk, and chunks of a byte": (chunked(b"x", 1000).replace(b"1\r\nx", b"0\r\n\r\n1\r\nx", 1), 405),
        "as many chunks of a byte as are read": (chunked(b"x", 256), 405),
        "chunks of 64 bytes": (chunked(b"x" * 64, 1000), 405),
        # Headers.
        "no host": (only(*UPGRADE, KEY, VERSION), 400),
        "two hosts": (upgrade(bearer, ("Host", secret)), 400),
        "space before the colon": (whole.replace(b"Authorization:", b"Authorization :"), 400),
        "no colon": (whole.replace(b"Authorization:", b"Authorization"), 400),
        "folded": (whole.replace(b"Bearer ", b"Bearer\r\n "), 401),
        "line feeds": (whole.replace(b"\r\n", b"\n"), 401),
        "carriage return": (whole.replace(b"Bearer ", b"Bearer \rX: "), 400),
        "NUL": (whole.replace(b"Bearer ", b"Bearer \x00"), 400),
        "escape": (upgrade(("Authorization", f"Bearer \x1b[2J{secret}")), 400),
        "not ASCII": (upgrade(("Authorization", f"Bearer \xff{secret}")), 401),
        "subprotocol that is not ASCII": (upgrade(bearer, ("Sec-WebSocket-Protocol", f"nuropb.v1, \xe9{secret}")), 400),
        "empty subprotocols": (upgrade(bearer, ("Sec-WebSocket-Protocol", ",,,")), 400),
        "subprotocol with a space": (upgrade(bearer, ("Sec-WebSocket-Protocol", f"nuropb {secret}")), 400),
        "cookie of garbage": (upgrade(("Cookie", f"=; ;;; Authorization=\xff{secret}; x")), 401),
        "line that is too long": (upgrade(bearer, ("X", secret + "x" * 24576)), 431),
        "line without an end": (whole[:-2] + b"X: " + secret.encode() + b"x" * 70000, 431),
        "too many lines": (upgrade(bearer, *((f"X-{number}", secret) for number in range(101))), 431),
        "far too many lines": (upgrade(bearer, *(("X", "") for _ in range(12_000))), 431),
        "head that is too large": (
            upgrade(bearer, *((f"X-{number}", secret + "x" * 8000) for number in range(99))),
            431,
        ),
        "target that is too long": (whole.replace(b"/ws?", b"/ws?" + b"x" * 24576), 414),
        # The handshake itself.
        "no key": (only(host, *UPGRADE, VERSION), 400),
        "short key": (only(host, *UPGRADE, VERSION, ("Sec-WebSocket-Key", "c2hvcnQ=")), 400),
        "key that is none": (only(host, *UPGRADE, VERSION, ("Sec-WebSocket-Key", secret)), 400),
        "two keys": (only(host, *UPGRADE, VERSION, KEY, KEY), 400),
        "no version": (only(host, *UPGRADE, KEY), 400),
        "version 12": (only(host, *UPGRADE, KEY, ("Sec-WebSocket-Version", "12")), 400),
        "two versions": (only(host, *UPGRADE, KEY, VERSION, ("Sec-WebSocket-Version", "8")), 400),
        "no upgrade": (only(host, KEY, VERSION), 404),
        "upgrade without connection": (only(host, UPGRADE[0], KEY, VERSION), 404),
        "upgrade to two": (only(host, ("Upgrade", "websocket, h2c"), UPGRADE[1], KEY, VERSION), 404),
        "two upgrades": (only(host, ("Upgrade", "h2c"), *UPGRADE, KEY, VERSION), 426),
        "capitals": (only(host, ("Upgrade", "WEBSOCKET"), ("Connection", "keep-alive, UPGRADE"), KEY, VERSION), 401),
        "extension that is none": (
            upgrade(bearer, ("Sec-WebSocket-Extensions", f'permessage-deflate; x="{secret}')),
            400,
        ),
        "forwarded address": (upgrade(bearer, ("X-Forwarded-For", "\x9b31m")), 401),
    }


def frames(secret: str) -> dict[str, tuple[bytes, int | None]]:
    """Return data after a handshake by its fault, each with the close code of the answer, if there is one."""
    frame = RawClient.frame
    text = f'{{"type":"ping","payload":"{secret}"}}'.encode()
    masked = b"\x81\x85\x00\x00\x00\x00"

    def close(code: int, reason: bytes = b"") -> bytes:
        return frame(code.to_bytes(2, "big") + reason, CLOSE)

    return {
        "not masked": (b"\x81" + bytes((len(text),)) + text, 1002),
        "reserved bit 1": (b"\xc1" + frame(text)[1:], 1002),
        "reserved bit 2": (b"\xa1" + frame(text)[1:], 1002),
        "reserved bit 3": (b"\x91" + frame(text)[1:], 1002),
        "reserved opcode": (frame(text, 3), 1002),
        "reserved control opcode": (frame(text, 11), 1002),
        "long ping": (frame(text + b"x" * 126, PING), 1002),
        "long pong": (frame(text + b"x" * 126, PONG), 1002),
        "long close": (frame(b"\x03\xe8" + text + b"x" * 126, CLOSE), 1002),
        "ping in fragments": (frame(text, PING, fin=False), 1002),
        "continuation of nothing": (frame(text, CONTINUATION), 1002),
        "message within a message": (frame(text, fin=False) + frame(text), 1002),
        "close within a message": (frame(text, fin=False) + close(1000), 1002),
        "close of one byte": (frame(b"\x03", CLOSE), 1002),
        **{f"close with {code}": (close(code, text), 1002) for code in (0, 999, 1004, 1005, 1006, 1015, 2999, 5000)},
        "reason that is not UTF-8": (close(1000, b"\xff" + text), 1007),
        "not UTF-8": (frame(text + b"\xff"), 1007),
        "a surrogate": (frame(text + b"\xed\xa0\x80"), 1007),
        "too long for its character": (frame(text + b"\xc0\xaf"), 1007),
        "half a character": (frame(text + b"\xe2\x82"), 1007),
        "not UTF-8 across fragments": (
            frame(text + b"\xe2", fin=False) + frame(b"", CONTINUATION, fin=False) + frame(b"\x28\xa1", CONTINUATION),
            1007,
        ),
        "binary": (frame(text, BINARY), 1003),
        "too big": (frame(text + b"x" * 70000), 1009),
        "far too big": (frame(text + b"x" * 300000), 1009),
        "too big in fragments": (
            b"".join(frame(b"x" * 60000, CONTINUATION if n else TEXT, fin=False) for n in range(6)),
            1009,
        ),
        "length of 2 to the 63": (b"\x81\xff\x80" + bytes(7) + bytes(4) + text, 1009),
        "length in 8 bytes": (b"\x81\xff" + bytes(7) + b"\x05" + bytes(4) + b"hello", None),
        "HTTP": (f"GET /metrics?{secret} HTTP/1.1\r\n\r\n".encode(), 1002),
        "half a header": (b"\x81", None),
        "half a frame": (masked + b"hel", None),
        "half a message": (frame(text, fin=False), None),
        "nonsense": (frame(secret.encode()), None),
    }


@dataclass(frozen=True)
class Flood:
    """A million of something small. ``closed_with`` is the expected close code."""

    closed_with: int
    pieces: Callable[[], Iterator[bytes]]


def _many(first: bytes, each: bytes, count: int = 1_000_000) -> Callable[[], Iterator[bytes]]:
    def pieces() -> Iterator[bytes]:
        yield first
        for _ in range(0, count, 10_000):
            yield each * 10_000

    return pieces


_FRAME = RawClient.frame

FLOODS: Final[dict[str, Flood]] = {
    "empty fragments": Flood(1009, _many(_FRAME(b"{", fin=False), _FRAME(b"", CONTINUATION, fin=False))),
    "fragments of a byte": Flood(1009, _many(_FRAME(b"{", fin=False), _FRAME(b" ", CONTINUATION, fin=False))),
    "pings": Flood(4029, _many(b"", _FRAME(b"x" * 125, PING), 100_000)),
    "pongs": Flood(4029, _many(b"", _FRAME(b"", PONG))),
    "empty messages": Flood(4501, _many(b"", _FRAME(b""))),
    "messages of a byte": Flood(4501, _many(b"", _FRAME(b"7"))),
}


def _frame(kind: str, **payload: object) -> Callable[[str], str]:
    return lambda id_: json.dumps({"type": kind, "payload": {"id": id_, **payload}})


def _topics(kind: str) -> Callable[[str], str]:
    """Return frames about 99 topics, which are others with each pair of frames."""
    return lambda id_: _frame(kind, topics=[f"demo.{int(id_) // 2}.{number}" for number in range(99)])(id_)


#: Frames that are valid and take long, by their fault: each is made with an id, a number.
COSTLY: Final[dict[str, Callable[[str], str]]] = {
    "99 topics": _topics("subscribe"),
    "99 topics less": _topics("unsubscribe"),
    "topics of 32 wildcards": _frame("subscribe", topics=["demo" + ".*" * 31] * 100),
    "all descriptions": _frame("describe"),
    "nested JSON": _frame(
        "request", service="demo", method="no", params={"a": [json.loads("[" * 20 + "]" * 20)] * 500}
    ),
    "60 kB": _frame("request", service="demo", method="no", params={"a": "x" * 60_000}),
    "made-up method": lambda id_: _frame("request", service="demo", method=f"m{id_}")(id_),
    "made-up service": lambda id_: _frame("describe", service=f"s{id_}")(id_),
}


def bomb(size: int, *, fragment: int | None = None) -> bytes:
    """Return a text message of ``size`` bytes, deflated to a thousandth, in fragments of a given size if any."""
    deflate = zlib.compressobj(9, wbits=-12)
    data = deflate.compress(b'{"type":"ping","payload":"') + deflate.flush(zlib.Z_FULL_FLUSH)
    # After a full flush nothing refers to what was before, so that the same bytes can follow again and again.
    data += (deflate.compress(b"x" * 2**20) + deflate.flush(zlib.Z_FULL_FLUSH)) * (size >> 20)
    data += deflate.compress(b'"}') + deflate.flush(zlib.Z_SYNC_FLUSH).removesuffix(b"\x00\x00\xff\xff")
    step = fragment or len(data)
    pieces = [data[start : start + step] for start in range(0, len(data), step)]
    frames = bytearray()
    for number, piece in enumerate(pieces):
        frame = RawClient.frame(piece, CONTINUATION if number else TEXT, fin=number == len(pieces) - 1)
        compressed = 0 if number else 0x40
        frames += bytes((frame[0] | compressed,)) + frame[1:]
    return bytes(frames)

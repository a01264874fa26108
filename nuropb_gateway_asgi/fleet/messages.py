"""The messages between the peer processes of a gateway, in JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

import msgspec
from msgspec import Raw, Struct

__all__ = [
    "UNREADABLE",
    "VERSION",
    "Alive",
    "Answer",
    "Ask",
    "Leaving",
    "Message",
    "News",
    "Roster",
    "decode",
    "encode",
]

#: The version of these messages: 0 knows no roster, and expects signs of life from every process. With 1, a process
#: expects that every new one greets it.
VERSION: Final = 2


class Alive(Struct, tag="alive", gc=False, omit_defaults=True):
    """A sign of life. A ``new`` process is answered at once, and so is one that wants the whole roster (``sync``)."""

    sender: str
    instance_id: str
    new: bool = False
    version: int = 0
    sync: bool = False


class Leaving(Struct, tag="leaving", gc=False):
    """The end of a process."""

    sender: str


class Ask(Struct, tag="ask", gc=False, omit_defaults=True):
    """A question to all peer processes, or to one. ``question`` is JSON; ``subject`` says which part answers it."""

    sender: str
    id: str
    question: Raw
    subject: str = ""


class Answer(Struct, tag="answer", gc=False):
    """The answer of one peer process. ``answer`` is JSON."""

    sender: str
    id: str
    answer: Raw


class News(Struct, tag="news", gc=False):
    """News for an observer in the peer processes. ``news`` is JSON."""

    sender: str
    topic: str
    news: Raw


class Roster(Struct, tag="roster", omit_defaults=True):
    """The leader's sign of life, with the changes since its last one; with ``members``, the whole roster.

    A leader with a higher ``term`` follows one with a lower term. ``digest`` is that of the roster after the changes.
    """

    sender: str
    instance_id: str
    term: int
    digest: int
    #: Instance ids by address.
    joined: dict[str, str] = {}
    left: list[str] = []
    members: dict[str, str] | None = None
    #: Addresses of registrars by partition; with ``members`` all of them, else the changed ones.
    registrars: dict[int, str] = {}
    #: Whether a new process needs to tell the leader alone, as all processes take note of ``joined``.
    tells_all: bool = False


Message: TypeAlias = Alive | Leaving | Ask | Answer | News | Roster

encode: Final = msgspec.json.encode
decode: Final[Callable[[bytes], Message]] = msgspec.json.Decoder(Message).decode
#: Every error of decoding bytes of any kind.
UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

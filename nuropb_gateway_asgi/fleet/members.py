"""The processes of one gateway, and what they ask each other.

Every process serves its own connections. What is for a user, or about one, concerns all of them: it is done here and
asked of the siblings, who answer with what they did. Who is there is known from what each says of itself, every few
seconds and when it comes and goes.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import Raw, Struct

from ..exceptions import MeshUnavailable
from ..identifiers import new_id
from ..wire.interface import Mesh

__all__ = ["ANSWER_TIMEOUT", "Fleet", "Member", "Question"]

logger = logging.getLogger(__name__)

#: Seconds between two signs of life, and without one until a sibling is taken for gone.
ALIVE_INTERVAL: Final = 3.0
SILENCE: Final = 10.0
#: Seconds for the siblings to answer; whoever does not is named.
ANSWER_TIMEOUT: Final = 1.0


class Alive(Struct, tag="alive", gc=False):
    """A process is there. Whoever is new wants to hear of the others at once."""

    sender: str
    instance_id: str
    new: bool = False


class Leaving(Struct, tag="leaving", gc=False):
    """A process goes."""

    sender: str


class Ask(Struct, tag="ask", gc=False):
    """A question to all siblings. ``question`` is JSON."""

    sender: str
    id: str
    question: Raw


class Answer(Struct, tag="answer", gc=False):
    """What one of them says to it. ``answer`` is JSON."""

    sender: str
    id: str
    answer: Raw


class News(Struct, tag="news", gc=False):
    """Something that concerns another part of the siblings. ``news`` is JSON."""

    sender: str
    topic: str
    news: Raw


Message: TypeAlias = Alive | Leaving | Ask | Answer | News
#: Answers a question of a sibling: JSON in, JSON out.
Question: TypeAlias = Callable[[Raw], bytes]

_encode = msgspec.json.encode
_decode: Final[Callable[[bytes], Message]] = msgspec.json.Decoder(Message).decode


class Member(Struct):
    """A sibling."""

    instance_id: str
    heard_at: float


class _Asked:
    """A question that waits for its answers."""

    __slots__ = ("answers", "done", "missing", "others")

    def __init__(self, missing: set[str], *, others: bool) -> None:
        self.missing = missing
        #: There may be more than those.
        self.others = others
        self.answers: dict[str, Raw] = {}
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def settle(self, address: str) -> None:
        """This one has answered, or will not."""
        self.missing.discard(address)
        if not self.missing and not self.others and not self.done.done():
            self.done.set_result(None)


class Fleet:
    """The siblings of this process: who they are, and what is asked of them.

    ``answer`` answers their questions; ``on_news`` is told what they tell, ``on_member`` who comes, with whether that
    sibling is new and did not know of this process before, and ``on_gone`` who goes.
    """

    def __init__(self, mesh: Mesh, instance_id: str, clock: Callable[[], float], answer: Question) -> None:
        self._mesh = mesh
        self._instance_id = instance_id
        self._clock = clock
        self._answer = answer
        self._members: dict[str, Member] = {}
        self._asked: dict[str, _Asked] = {}
        #: Until then there may be siblings that have not been heard of yet.
        self._settled_at = 0.0
        self.on_news: Callable[[str, str, Raw], None] = _ignore
        self.on_member: Callable[[str, bool], None] = _ignore
        self.on_gone: Callable[[str], None] = _ignore
        #: Messages of siblings that could not be read.
        self.unreadable = 0

    @property
    def members(self) -> Mapping[str, Member]:
        """The siblings, by address."""
        return self._members

    # --- who is there -----------------------------------------------------------------------------------------

    def on_connection_change(self, *, connected: bool) -> None:
        """The mesh came or went: tell the others, and hear who they are."""
        if connected:
            self._settled_at = self._clock() + ANSWER_TIMEOUT
            self._say(new=True)

    async def run(self) -> None:
        """Give signs of life and notice whose have stopped, until cancelled."""
        while True:
            await asyncio.sleep(ALIVE_INTERVAL * random.uniform(0.8, 1.0))  # noqa: S311 - jitter
            self._say(new=False)
            self.sweep()

    def sweep(self) -> None:
        """Forget siblings that have not been heard of for long."""
        now = self._clock()
        for address, member in tuple(self._members.items()):
            if now - member.heard_at > SILENCE:
                logger.info("process %s has not been heard of for %g s", member.instance_id, SILENCE)
                self._forget(address)

    def leave(self) -> None:
        """Tell the others that this process goes."""
        self._send(Leaving(self._mesh.address))

    def _say(self, *, new: bool) -> None:
        self._send(Alive(self._mesh.address, self._instance_id, new))

    def _send(self, message: Message) -> None:
        try:
            self._mesh.broadcast(_encode(message))
        except MeshUnavailable:
            logger.debug("the siblings cannot be told anything now")

    def _forget(self, address: str) -> None:
        if self._members.pop(address, None) is not None:
            self.on_gone(address)
            for asked in self._asked.values():
                asked.settle(address)

    # --- questions and news -----------------------------------------------------------------------------------

    async def ask(self, question: bytes) -> tuple[list[Raw], list[str]]:
        """Ask all siblings; the answers, and the instance ids of those who did not answer in ANSWER_TIMEOUT.

        Raises nothing: without a mesh nobody answers. When it is cancelled nobody waits for the answers any more.
        """
        id_ = new_id()
        asked = self._asked[id_] = _Asked(set(self._members), others=self._clock() < self._settled_at)
        try:
            self._mesh.broadcast(_encode(Ask(self._mesh.address, id_, Raw(question))))
            if asked.missing or asked.others:
                async with asyncio.timeout(ANSWER_TIMEOUT):
                    await asked.done
        except (TimeoutError, MeshUnavailable):
            pass  # those who are missing are named
        finally:
            del self._asked[id_]
        missing = [self._members[address].instance_id for address in asked.missing if address in self._members]
        return list(asked.answers.values()), sorted(missing)

    def tell(self, topic: str, news: bytes, address: str | None = None) -> None:
        """Tell one sibling, or all. Who cannot be reached misses it."""
        message = _encode(News(self._mesh.address, topic, Raw(news)))
        try:
            if address is None:
                self._mesh.broadcast(message)
            else:
                self._mesh.tell(address, message)
        except MeshUnavailable:
            logger.debug("the siblings cannot be told of %s now", topic)

    # --- from siblings ----------------------------------------------------------------------------------------

    def on_message(self, data: bytes) -> None:
        """A sibling says something."""
        try:
            message = _decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self.unreadable += 1
            logger.debug("a message of a sibling could not be read")
            return
        if message.sender == self._mesh.address:
            return
        if isinstance(message, Alive):
            self._on_alive(message)
        elif isinstance(message, Leaving):
            self._forget(message.sender)
        elif isinstance(message, Ask):
            self._on_ask(message)
        elif isinstance(message, Answer):
            asked = self._asked.get(message.id)
            if asked is not None:
                asked.answers.setdefault(message.sender, message.answer)
                asked.settle(message.sender)
        elif message.sender in self._members:
            self.on_news(message.sender, message.topic, message.news)

    def _on_alive(self, message: Alive) -> None:
        known = self._members.get(message.sender)
        self._members[message.sender] = Member(message.instance_id, self._clock())
        if message.new:
            try:
                self._mesh.tell(message.sender, _encode(Alive(self._mesh.address, self._instance_id)))
            except MeshUnavailable:
                logger.debug("process %s cannot be told that this one is there", message.instance_id)
        if known is None or message.new:
            self.on_member(message.sender, message.new)

    def _on_ask(self, message: Ask) -> None:
        try:
            answer = self._answer(message.question)
        except (msgspec.MsgspecError, ValueError, TypeError) as error:
            # It comes of another version; whoever asked names this process as one that did not answer.
            logger.warning("a question of another process cannot be answered: %s", type(error).__name__)
            return
        try:
            self._mesh.tell(message.sender, _encode(Answer(self._mesh.address, message.id, Raw(answer))))
        except MeshUnavailable:
            logger.debug("an answer to another process is lost")


def _ignore(*_: Any) -> None:
    """Nobody wants to know."""

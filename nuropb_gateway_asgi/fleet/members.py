"""The peer processes of a gateway: their signs of life, and the questions and news between them.

Every process serves its own connections. A message to a user concerns all processes: each does its part and answers
with the number of connections. Processes know each other by signs of life, sent every few seconds and at their start
and end.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from typing import Final, Protocol, TypeAlias, TypeVar

import msgspec
from msgspec import Raw, Struct

from ..exceptions import MeshUnavailable, MessageTooLarge
from ..identifiers import new_id
from ..wire.interface import Mesh

__all__ = ["ANSWER_TIMEOUT", "Fleet", "FleetObserver", "Member"]

logger = logging.getLogger(__name__)

#: Seconds between two signs of life of a process.
ALIVE_INTERVAL: Final = 3.0
#: Seconds without a sign of life after which a peer process counts as gone.
SILENCE: Final = 10.0
#: Seconds for the peer processes to answer; the others are named as missing.
ANSWER_TIMEOUT: Final = 1.0


class Alive(Struct, tag="alive", gc=False):
    """A sign of life. The peer processes answer a new process at once with theirs."""

    sender: str
    instance_id: str
    new: bool = False


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


Message: TypeAlias = Alive | Leaving | Ask | Answer | News
#: Answers a question of a peer process: JSON in, JSON out.
Answerer: TypeAlias = Callable[[Raw], bytes]
#: Answers a question of a peer process, now or later: the second argument takes the answer.
LateAnswerer: TypeAlias = Callable[[Raw, Callable[[bytes], None]], None]

T = TypeVar("T")

_encode = msgspec.json.encode
#: Every error of decoding bytes of any kind.
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_decode: Final[Callable[[bytes], Message]] = msgspec.json.Decoder(Message).decode


class Member(Struct):
    """A peer process."""

    instance_id: str
    heard_at: float


class _Asked:
    """A question that waits for its answers."""

    __slots__ = ("answers", "done", "missing", "others")

    def __init__(self, missing: set[str], *, others: bool) -> None:
        self.missing = missing
        #: Whether unknown peer processes may answer, too.
        self.others = others
        self.answers: dict[str, Raw] = {}
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def settle(self, address: str) -> None:
        """Note that a peer process has answered, or is gone."""
        self.missing.discard(address)
        if not self.missing and not self.others and not self.done.done():
            self.done.set_result(None)


class FleetObserver(Protocol):
    """A part of the gateway that follows the peer processes. ``address`` is theirs on the mesh."""

    def on_news(self, address: str, topic: str, news: Raw) -> None:
        """Take news (JSON) of a peer process."""

    def on_member(self, address: str, new: bool) -> None:
        """Note a peer process; a ``new`` one did not know of this process before."""

    def on_gone(self, address: str) -> None:
        """Note the end of a peer process."""

    def on_moved(self) -> None:
        """Note that this process has another address, which its peers know by now."""


class Fleet:
    """The peer processes of this process.

    ``answer`` answers their questions. ``clock`` is a monotonic clock, in seconds.
    """

    def __init__(self, mesh: Mesh, instance_id: str, clock: Callable[[], float], answer: Answerer) -> None:
        self._mesh = mesh
        self.instance_id = instance_id
        self._clock = clock
        self._answer = answer
        self._members: dict[str, Member] = {}
        self._asked: dict[str, _Asked] = {}
        #: The address by which the peer processes know this one; "" before the first message.
        self._known_as = ""
        #: The time until which there may be peer processes that this one does not know yet.
        self._settled_at = 0.0
        self._observers: list[FleetObserver] = []
        self._late_answerers: dict[str, LateAnswerer] = {}
        #: Messages of peer processes that could not be read.
        self.unreadable = 0

    def bind_observer(self, observer: FleetObserver) -> None:
        """Add an observer of the peer processes."""
        self._observers.append(observer)

    def bind_answerer(self, subject: str, answerer: LateAnswerer) -> None:
        """Set the part that answers the questions on a subject. It may raise as ``answer`` may."""
        self._late_answerers[subject] = answerer

    def address_of(self, instance_id: str) -> str | None:
        """Return the address of a peer process, or None for one that is not known."""
        return next((address for address, each in self._members.items() if each.instance_id == instance_id), None)

    @property
    def members(self) -> Mapping[str, Member]:
        """The peer processes, by address."""
        return self._members

    @property
    def questions(self) -> tuple[str, ...]:
        """The ids of the questions that wait for answers."""
        return tuple(self._asked)

    # --- members ---------------------------------------------------------------------------------------------

    def on_connection_change(self, *, connected: bool) -> None:
        """Announce this process when the mesh came back, and hear of the peer processes."""
        if connected:
            self._settled_at = self._clock() + ANSWER_TIMEOUT
            former, self._known_as = self._known_as, self._mesh.address
            moved = former not in ("", self._known_as)
            if moved:
                self._send(Leaving(former))
            self._say(new=True)
            if moved:
                for observer in self._observers:
                    observer.on_moved()

    async def run(self) -> None:
        """Give signs of life, and forget peer processes without any, until cancelled."""
        while True:
            await asyncio.sleep(ALIVE_INTERVAL * random.uniform(0.8, 1.0))  # noqa: S311 - jitter
            self._say(new=False)
            self.sweep()

    def sweep(self) -> None:
        """Forget the peer processes without a sign of life for SILENCE seconds."""
        now = self._clock()
        for address, member in tuple(self._members.items()):
            if now - member.heard_at > SILENCE:
                logger.info("process %s gave no sign of life for %g s", member.instance_id, SILENCE)
                self._forget(address)

    def leave(self) -> None:
        """Tell the peer processes that this process ends."""
        self._send(Leaving(self._mesh.address))

    def _say(self, *, new: bool) -> None:
        self._send(Alive(self._mesh.address, self.instance_id, new))

    def _send(self, message: Message) -> None:
        try:
            self._mesh.broadcast(_encode(message))
        except MeshUnavailable:
            logger.debug("no mesh: the peer processes were not told")

    def _forget(self, address: str) -> None:
        if self._members.pop(address, None) is not None:
            for observer in self._observers:
                observer.on_gone(address)
            for asked in self._asked.values():
                asked.settle(address)

    # --- questions and news -----------------------------------------------------------------------------------

    async def ask(self, question: bytes, decode: Callable[[Raw], T], *, subject: str = "") -> tuple[list[T], list[str]]:
        """Ask all peer processes; return their answers, and the instance ids of those silent for ANSWER_TIMEOUT.

        ``subject`` says which part of them answers; by default the one for users.

        A process whose answer ``decode`` cannot read counts as silent, too. Raises nothing: without a mesh there are no
        answers. After a cancellation late answers are dropped.
        """
        id_ = new_id()
        asked = self._asked[id_] = _Asked(set(self._members), others=self._clock() < self._settled_at)
        try:
            self._mesh.broadcast(_encode(Ask(self._mesh.address, id_, Raw(question), subject)))
            if asked.missing or asked.others:
                async with asyncio.timeout(ANSWER_TIMEOUT):
                    await asked.done
        except (TimeoutError, MeshUnavailable):
            pass  # the silent processes are named
        except MessageTooLarge as error:
            logger.warning("the peer processes were not asked: %s", error)
        finally:
            del self._asked[id_]
        answers = []
        for address, answer in asked.answers.items():
            try:
                answers.append(decode(answer))
            except _UNREADABLE:
                self._on_unreadable()
                asked.missing.add(address)
        missing = [self._members[address].instance_id for address in asked.missing if address in self._members]
        return answers, sorted(missing)

    async def ask_one(self, address: str, subject: str, question: bytes) -> Raw | None:
        """Ask one peer process; return its answer, or None if it is silent for ANSWER_TIMEOUT or gone.

        Raises nothing. After a cancellation a late answer is dropped.
        """
        id_ = new_id()
        asked = self._asked[id_] = _Asked({address}, others=False)
        try:
            self._mesh.tell(address, _encode(Ask(self._mesh.address, id_, Raw(question), subject)))
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await asked.done
        except (TimeoutError, MeshUnavailable):
            pass  # there is no answer
        except MessageTooLarge as error:
            logger.warning("a peer process was not asked: %s", error)
        finally:
            del self._asked[id_]
        return asked.answers.get(address)

    def tell(self, topic: str, news: bytes, address: str | None = None) -> None:
        """Tell news to one peer process, or to all. A process that cannot be reached misses them."""
        message = _encode(News(self._mesh.address, topic, Raw(news)))
        try:
            if address is None:
                self._mesh.broadcast(message)
            else:
                self._mesh.tell(address, message)
        except MeshUnavailable:
            logger.debug("no mesh: the peer processes were not told of %s", topic)
        except MessageTooLarge as error:
            logger.warning("the peer processes were not told of %s: %s", topic, error)

    # --- from peer processes ----------------------------------------------------------------------------------------

    def on_message(self, data: bytes) -> None:
        """Take a message of a peer process."""
        try:
            message = _decode(data)
        except _UNREADABLE:
            self._on_unreadable()
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
            for observer in self._observers:
                observer.on_news(message.sender, message.topic, message.news)

    def _on_unreadable(self) -> None:
        self.unreadable += 1
        logger.debug("a message of a peer process could not be read")

    def _on_alive(self, message: Alive) -> None:
        known = self._members.get(message.sender)
        self._members[message.sender] = Member(message.instance_id, self._clock())
        if message.new:
            try:
                self._mesh.tell(message.sender, _encode(Alive(self._mesh.address, self.instance_id)))
            except MeshUnavailable:
                logger.debug("no mesh: process %s was not greeted", message.instance_id)
        if known is None or message.new:
            for observer in self._observers:
                observer.on_member(message.sender, message.new)

    def _on_ask(self, message: Ask) -> None:
        def reply(answer: bytes) -> None:
            try:
                self._mesh.tell(message.sender, _encode(Answer(self._mesh.address, message.id, Raw(answer))))
            except MeshUnavailable:
                logger.debug("no mesh: an answer to another process is lost")
            except MessageTooLarge as error:
                logger.warning("an answer to another process is lost: %s", error)

        try:
            if message.subject:
                self._late_answerers[message.subject](message.question, reply)
            else:
                reply(self._answer(message.question))
        except (msgspec.MsgspecError, RecursionError, LookupError, ValueError, TypeError) as error:
            # The question is one of another version. The process that asked names this one as missing.
            logger.warning("a question of another process cannot be answered: %s", type(error).__name__)

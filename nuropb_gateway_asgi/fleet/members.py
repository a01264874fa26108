"""The peer processes of a gateway: their signs of life, and the questions and news between them.

Every process serves its own connections. A message to a user concerns all processes: each does its part and answers
with the number of connections. Processes know each other by signs of life, sent every few seconds and at their start
and end.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol, TypeAlias, TypeVar

import msgspec
from msgspec import Raw

from ..exceptions import MeshUnavailable, MessageTooLarge
from ..identifiers import new_id
from ..wire.interface import Mesh
from .messages import UNREADABLE, VERSION, Alive, Answer, Ask, Leaving, Message, News, decode, encode
from .messages import Roster as RosterMessage
from .roster import SMALL_FLEET, Member, Roster

__all__ = ["ANSWER_TIMEOUT", "Fleet", "FleetObserver", "Member"]

logger = logging.getLogger(__name__)

#: Seconds between two signs of life of a process.
ALIVE_INTERVAL: Final = 3.0
#: Seconds without a sign of life after which a peer process counts as gone.
SILENCE: Final = 10.0
#: Seconds for the peer processes to answer; the others are named as missing.
ANSWER_TIMEOUT: Final = 1.0

#: Answers a question of a peer process: JSON in, JSON out.
Answerer: TypeAlias = Callable[[Raw], bytes]
#: Answers a question of a peer process, now or later: the second argument takes the answer.
LateAnswerer: TypeAlias = Callable[[Raw, Callable[[bytes], None]], None]

T = TypeVar("T")


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
        #: The members, and who leads them.
        self.roster = Roster()
        self._members = self.roster.members
        self._roster_observers: list[Callable[[bool], None]] = []
        self._asked: dict[str, _Asked] = {}
        #: The address by which the peer processes know this one; "" before the first message.
        self._known_as = ""
        #: The time until which there may be peer processes that this one does not know yet.
        self._settled_at = 0.0
        self._observers: list[FleetObserver] = []
        self._late_answerers: dict[str, LateAnswerer] = {}
        self._listeners: dict[str, Callable[[str, Raw], None]] = {}
        #: Messages of peer processes that could not be read.
        self.unreadable = 0

    def bind_observer(self, observer: FleetObserver) -> None:
        """Add an observer of the peer processes."""
        self._observers.append(observer)

    def bind_answerer(self, subject: str, answerer: LateAnswerer) -> None:
        """Set the part that answers the questions on a subject. It may raise as ``answer`` may."""
        self._late_answerers[subject] = answerer

    def bind_listener(self, topic: str, listener: Callable[[str, Raw], None]) -> None:
        """Set the function that takes news of ``topic`` with their sender's address, also of unknown processes."""
        self._listeners[topic] = listener

    def bind_roster(self, on_roster: Callable[[bool], None]) -> None:
        """Add a function to call when registrars change, or, with True, when they have forgotten this process."""
        self._roster_observers.append(on_roster)

    @property
    def address(self) -> str:
        """The address of this process."""
        return self._mesh.address

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
            self.roster.move(self._known_as)
            self.roster.refresh(self._clock())
            if moved:
                self._send(Leaving(former))
            if moved or self.roster.leads or self.roster.leader not in self._members or self.roster.has_older:
                self._send(self._alive(new=True))
            else:  # the leader tells what the others have to know
                self._send(self._alive(sync=True), self.roster.leader)
            if moved:
                for observer in self._observers:
                    observer.on_moved()
            else:
                self._on_roster(True)

    async def run(self) -> None:
        """Give signs of life, and forget peer processes without any, until cancelled."""
        while True:
            await asyncio.sleep(ALIVE_INTERVAL * random.uniform(0.8, 1.0))  # noqa: S311 - jitter
            self.sweep()
            self._give_sign()

    def sweep(self) -> None:
        """Forget the peer processes that this process should have heard in the last SILENCE seconds."""
        for address in self.roster.silent(self._clock(), SILENCE):
            logger.info("process %s gave no sign of life for %g s", self._members[address].instance_id, SILENCE)
            self._forget(address)

    def leave(self) -> None:
        """Tell the peer processes that this process ends."""
        self._send(Leaving(self._mesh.address))

    def _alive(self, *, new: bool = False, sync: bool = False) -> Alive:
        return Alive(self._mesh.address, self.instance_id, new, VERSION, sync)

    def _give_sign(self) -> None:
        """Tell the leader that this process is alive; or tell all, if this process leads, or an older one is there."""
        roster, now = self.roster, self._clock()
        if not roster.own or not self._mesh.connected:
            return
        if roster.has_older:
            self._send(self._alive())
        elif roster.leader and not roster.leads:
            self._send(self._alive(), roster.leader)
        if now >= self._settled_at and roster.claim(now):
            logger.info("process %s leads the %d others", self.instance_id, len(self._members))
        if roster.leads:
            self._tell_roster()

    def _tell_roster(self) -> None:
        before = self.roster.registrars
        self._send(self.roster.tell(self.instance_id))
        if before != self.roster.registrars:
            self._on_roster(False)

    def _on_roster(self, anew: bool) -> None:
        for on_roster in self._roster_observers:
            on_roster(anew)

    def _send(self, message: Message, address: str | None = None) -> None:
        try:
            if address is None:
                self._mesh.broadcast(encode(message))
            else:
                self._mesh.tell(address, encode(message))
        except MeshUnavailable:
            logger.debug("no mesh: the peer processes were not told")
        except MessageTooLarge as error:
            logger.warning("the peer processes were not told: %s", error)

    def _forget(self, address: str) -> None:
        if self.roster.forget(address):
            self._on_forgotten(address)

    def _on_forgotten(self, address: str) -> None:
        for observer in self._observers:
            observer.on_gone(address)
        for asked in self._asked.values():
            asked.settle(address)
        if self.roster.leads and address in self.roster.registrars.values():
            self._tell_roster()  # at once: until then, questions about its users go to all

    # --- questions and news -----------------------------------------------------------------------------------

    async def ask(self, question: bytes, decode: Callable[[Raw], T]) -> tuple[list[T], list[str]]:
        """Ask all peer processes; return their answers, and the instance ids of those silent for ANSWER_TIMEOUT.

        A process whose answer ``decode`` cannot read counts as silent, too. Raises nothing: without a mesh there are no
        answers. After a cancellation late answers are dropped.
        """
        id_ = new_id()
        asked = self._asked[id_] = _Asked(set(self._members), others=self._clock() < self._settled_at)
        try:
            self._mesh.broadcast(encode(Ask(self._mesh.address, id_, Raw(question))))
            if asked.missing or asked.others:
                async with asyncio.timeout(ANSWER_TIMEOUT):
                    await asked.done
        except (TimeoutError, MeshUnavailable):
            pass  # the silent processes are named
        except MessageTooLarge as error:
            logger.warning("the peer processes were not asked: %s", error)
        finally:
            del self._asked[id_]
        return self.read(asked.missing | asked.answers.keys(), asked.answers, decode)

    def read(
        self, asked: Iterable[str], answers: Mapping[str, Raw], decode: Callable[[Raw], T]
    ) -> tuple[list[T], list[str]]:
        """Decode answers; return them, and the instance ids of the asked processes without one that can be read."""
        found, missing = [], set(asked) - answers.keys()
        for address, answer in answers.items():
            try:
                found.append(decode(answer))
            except UNREADABLE:
                self._on_unreadable()
                missing.add(address)
        return found, sorted(self._members[address].instance_id for address in missing if address in self._members)

    async def ask_one(self, address: str, subject: str, question: bytes) -> Raw | None:
        """Ask one peer process; return its answer, or None if it is silent for ANSWER_TIMEOUT or gone.

        Raises nothing. After a cancellation a late answer is dropped.
        """
        return (await self.ask_each({address: question}, subject)).get(address)

    async def ask_each(self, questions: Mapping[str, bytes], subject: str = "") -> dict[str, Raw]:
        """Ask some peer processes, each its own question; return the answers that come within ANSWER_TIMEOUT.

        Raises nothing. After a cancellation late answers are dropped.
        """
        if not questions:
            return {}
        id_ = new_id()
        asked = self._asked[id_] = _Asked(set(questions), others=False)
        try:
            for address, question in questions.items():
                self._mesh.tell(address, encode(Ask(self._mesh.address, id_, Raw(question), subject)))
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await asked.done
        except (TimeoutError, MeshUnavailable):
            pass  # the silent processes have no answer
        except MessageTooLarge as error:
            logger.warning("a peer process was not asked: %s", error)
        finally:
            del self._asked[id_]
        return asked.answers

    def tell(self, topic: str, news: bytes, address: str | None = None, *, expires: float | None = None) -> None:
        """Tell news to one peer process, or to all. A process that cannot be reached misses them.

        News to one process may wait for it for ``expires`` seconds.
        """
        message = encode(News(self._mesh.address, topic, Raw(news)))
        try:
            if address is None:
                self._mesh.broadcast(message)
            elif expires is None:
                self._mesh.tell(address, message)
            else:
                self._mesh.tell(address, message, expires=expires)
        except MeshUnavailable:
            logger.debug("no mesh: the peer processes were not told of %s", topic)
        except MessageTooLarge as error:
            logger.warning("the peer processes were not told of %s: %s", topic, error)

    # --- from peer processes ----------------------------------------------------------------------------------------

    def on_message(self, data: bytes) -> None:
        """Take a message of a peer process."""
        try:
            message = decode(data)
        except UNREADABLE:
            self._on_unreadable()
            return
        if message.sender == self._mesh.address:
            return
        if isinstance(message, Alive):
            self._on_alive(message)
        elif isinstance(message, RosterMessage):
            self._take_roster(message)
        elif isinstance(message, Leaving):
            self._forget(message.sender)
        elif isinstance(message, Ask):
            self._on_ask(message)
        elif isinstance(message, Answer):
            asked = self._asked.get(message.id)
            if asked is not None:
                asked.answers.setdefault(message.sender, message.answer)
                asked.settle(message.sender)
        elif (listener := self._listeners.get(message.topic)) is not None:
            listener(message.sender, message.news)
        elif message.sender in self._members:
            for observer in self._observers:
                observer.on_news(message.sender, message.topic, message.news)

    def _on_unreadable(self) -> None:
        self.unreadable += 1
        logger.debug("a message of a peer process could not be read")

    def _on_alive(self, message: Alive) -> None:
        is_new = self.roster.hear(message.sender, message.instance_id, message.version, self._clock())
        if self.roster.leads and message.version:
            if message.new or message.sync:
                self._send(self.roster.tell_all(self.instance_id), message.sender)
        elif message.new and (
            message.version == 0 or (not self.roster.leader and len(self._members) <= SMALL_FLEET)
        ):  # nobody else greets it: it does not know the roster, or there is no leader yet
            self._send(self._alive(), message.sender)
        if is_new or message.new:
            for observer in self._observers:
                observer.on_member(message.sender, message.new)

    def _take_roster(self, message: RosterMessage) -> None:
        """Follow a leader."""
        if not self.roster.prefers(message):
            return
        registrars = self.roster.registrars
        new, gone = self.roster.take(message, self._clock())
        for address in new:
            for observer in self._observers:
                observer.on_member(address, False)
        for address in gone:
            self._on_forgotten(address)
        if not self.roster.is_in_step(message):
            self._send(self._alive(sync=True), message.sender)
        anew = self._mesh.address in message.joined
        if anew or registrars != self.roster.registrars:
            self._on_roster(anew)

    def _on_ask(self, message: Ask) -> None:
        def reply(answer: bytes) -> None:
            try:
                self._mesh.tell(message.sender, encode(Answer(self._mesh.address, message.id, Raw(answer))))
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

"""Questions and news between the peer processes of a gateway."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Final, TypeAlias, TypeVar

import msgspec
from msgspec import Raw

from ..exceptions import MeshUnavailable, MessageTooLarge
from ..identifiers import new_id
from ..wire.interface import Mesh
from .messages import UNREADABLE, Answer, Ask, News, encode
from .roster import Roster

__all__ = ["ANSWER_TIMEOUT", "Answerer", "LateAnswerer", "Talk"]

logger = logging.getLogger(__name__)

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


class Talk:
    """The questions and news of this process. ``answer`` answers those of its peer processes.

    ``clock`` is a monotonic clock, in seconds.
    """

    def __init__(self, mesh: Mesh, clock: Callable[[], float], answer: Answerer) -> None:
        self._mesh = mesh
        self._clock = clock
        self._answer = answer
        #: The members, and who leads them.
        self.roster = Roster()
        self._asked: dict[str, _Asked] = {}
        #: The time until which there may be peer processes that this one does not know yet.
        self._settled_at = 0.0
        self._late_answerers: dict[str, LateAnswerer] = {}
        #: Messages of peer processes that could not be read.
        self.unreadable = 0

    @property
    def questions(self) -> tuple[str, ...]:
        """The ids of the questions that wait for answers."""
        return tuple(self._asked)

    def bind_answerer(self, subject: str, answerer: LateAnswerer) -> None:
        """Set the part that answers the questions on a subject. It may raise as ``answer`` may."""
        self._late_answerers[subject] = answerer

    async def ask(self, question: bytes, decode: Callable[[Raw], T], *, subject: str = "") -> tuple[list[T], list[str]]:
        """Ask all peer processes; return their answers, and the instance ids of those silent for ANSWER_TIMEOUT.

        ``subject`` says which part of them answers; by default the one for users.

        A process whose answer ``decode`` cannot read counts as silent, too. Raises nothing: without a mesh there are no
        answers. After a cancellation late answers are dropped.
        """
        id_ = new_id()
        asked = self._asked[id_] = _Asked(set(self.roster.members), others=self._clock() < self._settled_at)
        try:
            self._mesh.broadcast(encode(Ask(self._mesh.address, id_, Raw(question), subject)))
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
        return found, sorted(
            self.roster.members[address].instance_id for address in missing if address in self.roster.members
        )

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

    def _on_answer(self, message: Answer) -> None:
        asked = self._asked.get(message.id)
        if asked is not None:
            asked.answers.setdefault(message.sender, message.answer)
            asked.settle(message.sender)

    def _on_unreadable(self) -> None:
        self.unreadable += 1
        logger.debug("a message of a peer process could not be read")

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
        except MeshUnavailable:
            logger.debug("no mesh: a question of another process cannot be answered")

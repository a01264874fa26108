"""The whereabouts of users: finds the processes that have them, without asking all.

In a large fleet each user belongs to a partition, and each partition has a registrar, one of the processes. Every
process tells the registrars of its users as they come and go. A registrar that has not heard every process yet, as in
the moments after a process has started or died, says so; then all processes are asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from typing import Final

import msgspec
from msgspec import Raw, Struct

from ..handler_manager import HandlerManager
from .directory import Directory, partition_of
from .members import Fleet

__all__ = ["Whereabouts"]

#: The subject of questions to registrars, and the topic of news to them.
SUBJECT: Final = "locate"
TOPIC: Final = "whereabouts"
#: The topic of a registrar's news that it has not heard of the users of a process.
WANTED: Final = "wanted"
#: Seconds that news wait for a busy registrar. One that takes longer counts as gone, and is told everything anew.
EXPIRES: Final = 60.0
#: Seconds from a change of registrars, or from the last time, until a registrar wants to hear of users.
WANTED_INTERVAL: Final = 5.0


class Told(Struct, gc=False, omit_defaults=True):
    """The users that came and left; with ``partitions``, all users that the sender has in these came."""

    came: list[str] = []
    left: list[str] = []
    partitions: list[int] = []


_encode = msgspec.json.encode
_decode_told = msgspec.json.Decoder(Told).decode
_decode_users = msgspec.json.Decoder(list[str]).decode
_decode_found = msgspec.json.Decoder(dict[str, list[str]] | None).decode
_ERRORS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Whereabouts:
    """Tells the registrars of this process's users, and is a registrar itself for some partitions.

    It is a :class:`~.members.FleetObserver` of ``fleet``. ``clock`` is a monotonic clock, in seconds.
    """

    def __init__(self, fleet: Fleet, handler_manager: HandlerManager, clock: Callable[[], float]) -> None:
        self._fleet = fleet
        self._clock = clock
        #: When this process, as a registrar, last wanted to hear of users.
        self._wanted_at = float("-inf")
        self._handlers = handler_manager
        self.directory = Directory()
        #: The registrars that were told, by partition.
        self._registrars: dict[int, str] = {}
        #: Arrivals and departures of users in this turn of the event loop.
        self._changed: dict[str, None] = {}
        fleet.bind_observer(self)
        fleet.bind_answerer(SUBJECT, self._on_question)
        fleet.bind_listener(TOPIC, self._on_told)
        fleet.bind_listener(WANTED, lambda registrar, _: self._on_wanted(registrar))
        fleet.bind_roster(self._on_roster)

    def look_at(self, user_id: str) -> None:
        """Have the user's registrar told, after a connection or a session came or went."""
        self._fleet.announce()
        if self._registrars:
            if not self._changed:
                asyncio.get_running_loop().call_soon(self._tell_changes)
            self._changed[user_id] = None

    async def find(self, user_ids: Iterable[str]) -> dict[str, list[str]] | None:
        """Return users by the addresses of the other processes that have them, or None if all have to be asked."""
        if not self._registrars or self._fleet.roster.has_older:
            return None
        found: dict[str, list[str]] = {}
        asked: dict[str, list[str]] = {}
        for user_id in user_ids:
            asked.setdefault(self._registrars[partition_of(user_id)], []).append(user_id)
        own = asked.pop(self._fleet.address, [])
        if not asked.keys() <= self._fleet.members.keys():
            return None
        answers = await self._fleet.ask_each({each: _encode(users) for each, users in asked.items()}, SUBJECT)
        if len(answers) < len(asked):
            return None
        parts = [self._locate(own)]
        try:
            parts += map(_decode_found, answers.values())
        except _ERRORS:
            self._fleet.unreadable += 1
            return None
        for part in parts:
            if part is None:
                return None
            for address, users in part.items():
                found.setdefault(address, []).extend(users)
        found.pop(self._fleet.address, None)
        # Beyond that, one message to all is cheaper.
        return found if 2 * len(found) < len(self._fleet.members) else None

    def is_settled(self) -> bool:
        """Whether this process knows the registrars, and as one of them, has heard every process; for measurements."""
        own = [each for each, address in self._registrars.items() if address == self._fleet.address]
        return bool(self._registrars) and all(self._is_complete(each) for each in own)

    # --- to registrars ----------------------------------------------------------------------------------------

    def _tell_changes(self) -> None:
        changed, self._changed = self._changed, {}
        told: dict[str, Told] = {}
        for user_id in changed:
            registrar = self._registrars.get(partition_of(user_id))
            if registrar is not None:
                news = told.setdefault(registrar, Told([], []))
                is_here = self._handlers.get_user_handlers([user_id])
                (news.came if is_here else news.left).append(user_id)
        for registrar, news in told.items():
            self._tell(registrar, news)

    def _on_roster(self, anew: bool) -> None:
        """Follow the roster; ``anew`` if the registrars do not know this process's users any more."""
        former, self._registrars = self._registrars, dict(self._fleet.roster.registrars)
        self._wanted_at = self._clock()
        for each, address in former.items():
            if address == self._fleet.address != self._registrars.get(each):
                self.directory.drop(each)
        self._tell_all({each for each, address in self._registrars.items() if anew or former.get(each) != address})

    def _tell_all(self, partitions: Collection[int]) -> None:
        """Tell the registrars of ``partitions`` all users of this process."""
        told: dict[str, Told] = {}
        for each in sorted(partitions):
            told.setdefault(self._registrars[each], Told([], [], [])).partitions.append(each)
        if told:
            for user_id in {each.identity.user_id for each in self._handlers.handlers if each.identity is not None}:
                partition = partition_of(user_id)
                if partition in partitions:
                    told[self._registrars[partition]].came.append(user_id)
        for registrar, news in told.items():
            self._tell(registrar, news)

    def _tell(self, registrar: str, news: Told) -> None:
        if registrar == self._fleet.address:
            self._take(registrar, news)
        else:
            self._fleet.tell(TOPIC, _encode(news), registrar, expires=EXPIRES)

    # --- as a registrar ---------------------------------------------------------------------------------------

    def _take(self, address: str, news: Told) -> None:
        if news.partitions:
            self.directory.replace(address, news.partitions, news.came)
        else:
            self.directory.change(address, news.came, news.left)

    def _on_told(self, address: str, news: Raw) -> None:
        try:
            self._take(address, _decode_told(news))
        except _ERRORS:
            self._fleet.unreadable += 1

    def _is_complete(self, partition: int) -> bool:
        return self._registrars.get(partition) == self._fleet.address and self.directory.is_complete(
            partition, (*self._fleet.members, self._fleet.address)
        )

    def _locate(self, user_ids: list[str]) -> dict[str, list[str]] | None:
        partitions = set(map(partition_of, user_ids))
        if all(self._is_complete(each) for each in partitions):
            found = self.directory.locate(user_ids)
            own, members = self._fleet.address, self._fleet.members
            return {address: users for address, users in found.items() if address == own or address in members}
        return None

    def sweep(self, now: float) -> None:
        """Ask the processes for their users of which this process, as a registrar, has not heard: news can be lost."""
        if not self._registrars or now - self._wanted_at < WANTED_INTERVAL:
            return
        self._wanted_at = now
        own = [each for each, address in self._registrars.items() if address == self._fleet.address]
        for address in (*self._fleet.members, self._fleet.address):
            if not all(self.directory.is_complete(each, (address,)) for each in own):
                self._want(address)

    def _want(self, address: str) -> None:
        if address == self._fleet.address:
            self._on_wanted(address)
        else:
            self._fleet.tell(WANTED, b"null", address)

    def _on_wanted(self, registrar: str) -> None:
        self._tell_all({each for each, address in self._registrars.items() if address == registrar})

    def _on_question(self, question: Raw, reply: Callable[[bytes], None]) -> None:
        reply(_encode(self._locate(_decode_users(question))))

    # --- a fleet observer -------------------------------------------------------------------------------------

    def on_news(self, address: str, topic: str, news: Raw) -> None:
        """Take no note: registrars listen to all processes, also to those that they do not know yet."""

    def on_member(self, address: str, new: bool) -> None:
        """Take no note: a process tells its users by itself."""

    def on_gone(self, address: str) -> None:
        """Forget the users of a process that is gone."""
        self.directory.gone(address)

    def on_moved(self) -> None:
        """Tell the registrars under the new address."""
        self.directory = Directory()
        self._registrars = {}
        self._on_roster(anew=True)

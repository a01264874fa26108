"""The peer processes of a gateway, and their signs of life.

Every process serves its own connections. A message to users concerns all processes that have them: each does its part
and answers with the number of connections. Processes know each other by the roster of their leader, to which they send
signs of life every few seconds; they tell all others of their start and end.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from typing import Final

from msgspec import Raw

from ..exceptions import MeshUnavailable, MessageTooLarge
from ..wire.interface import Mesh
from .arrival import FEW, LISTEN, POSTPONED, Arrival, Bulletin
from .messages import UNREADABLE, VERSION, Alive, Answer, Ask, Leaving, Message, decode, encode
from .messages import Roster as RosterMessage
from .observer import FleetObserver
from .roster import SMALL_FLEET, Member
from .talk import ANSWER_TIMEOUT, Answerer, Talk

__all__ = ["ANSWER_TIMEOUT", "Fleet", "FleetObserver", "Member"]

logger = logging.getLogger(__name__)

#: Seconds between two signs of life of a process.
ALIVE_INTERVAL: Final = 3.0
#: Seconds without a sign of life after which a peer process counts as gone.
SILENCE: Final = 10.0


class Fleet(Talk):
    """The peer processes of this process.

    ``answer`` answers their questions. ``clock`` is a monotonic clock, in seconds.
    """

    def __init__(self, mesh: Mesh, instance_id: str, clock: Callable[[], float], answer: Answerer) -> None:
        super().__init__(mesh, clock, answer)
        self.instance_id = instance_id
        self._members = self.roster.members
        self._roster_observers: list[Callable[[bool], None]] = []
        #: The address by which the peer processes know this one; "" before the first message.
        self._known_as = ""
        self._observers: list[FleetObserver] = []
        self._listeners: dict[str, Callable[[str, Raw], None]] = {}
        self._arrival = Arrival(self._greet, self._claim_first)
        self._bulletin = Bulletin(self._tell_newcomers)

    def bind_observer(self, observer: FleetObserver) -> None:
        """Add an observer of the peer processes."""
        self._observers.append(observer)

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
            self._arrive(moved)
            if moved:
                for observer in self._observers:
                    observer.on_moved()
            else:
                self._on_roster(True)
        else:
            self._stop_timers()

    def _arrive(self, moved: bool) -> None:
        roster = self.roster
        if not moved and not roster.leader and not self._members:
            self._arrival.begin()
        elif moved or roster.leads or roster.leader not in self._members or roster.has_older:
            self._greet()
        else:  # the leader tells what the others have to know
            self._send(self._alive(sync=True), roster.leader)

    def announce(self) -> None:
        """Have the other processes know of this one at once: it has users."""
        arrival = self._arrival
        if not arrival.is_wanted:
            arrival.is_wanted = True
            if not arrival.is_known and self._known_as and self._mesh.connected:
                self._greet()

    def _greet(self) -> None:
        """Tell all processes that this one is new; lead them, if no leader answers."""
        self._arrival.is_known = True
        self._settle()
        self._send(self._alive(new=True))
        if self.roster.leader or self.roster.term:
            self._arrival.stop()
        else:
            self._arrival.wait_for_answers(ANSWER_TIMEOUT)

    def _claim_first(self) -> None:
        is_crowd = len(self._members) >= FEW  # the others wait for this claim
        if is_crowd and self._mesh.connected and self.roster.claim_first(self._clock()):
            logger.info("process %s leads the %d others", self.instance_id, len(self._members))
            self._tell(self.roster.tell_first(self.instance_id), {})

    def _make_way(self, newcomer: str) -> None:
        """Let another new process become the first leader; of several that greet, the one with the smallest address."""
        if self._arrival.listens:
            if not self.roster.leader and self._arrival.hear_greeting():
                self._settled_at = self._clock() + POSTPONED + LISTEN + ANSWER_TIMEOUT
        elif newcomer < self._mesh.address:
            self._arrival.stop()

    def _stop_timers(self) -> None:
        self._arrival.stop()
        self._bulletin.stop()

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
        self._stop_timers()
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
        self._tell(self.roster.tell(self.instance_id), before)

    def _tell_newcomers(self) -> None:
        if self.roster.leads and self.roster.has_news:
            self._send(self.roster.tell(self.instance_id, assign=False))

    def _tell(self, message: RosterMessage, before: Mapping[int, str]) -> None:
        """Tell the roster, with new registrars after those ``before``."""
        self._send(message)
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
            self._on_answer(message)
        elif (listener := self._listeners.get(message.topic)) is not None:
            listener(message.sender, message.news)
        elif message.sender in self._members:
            for observer in self._observers:
                observer.on_news(message.sender, message.topic, message.news)

    def _on_alive(self, message: Alive) -> None:
        is_new = self.roster.hear(message.sender, message.instance_id, message.version, self._clock())
        if self.roster.leads and message.version:
            if message.new or message.sync:
                self._send(self.roster.tell_all(self.instance_id), message.sender)
            if self.roster.has_news:
                at_once = message.sync or not message.new or len(self._members) <= SMALL_FLEET
                self._bulletin.note(len(self._members), at_once=at_once)
        elif message.new and (
            message.version == 0 or (not self.roster.leader and len(self._members) <= SMALL_FLEET)
        ):  # nobody else greets it: it does not know the roster, or there is no leader yet
            self._send(self._alive(), message.sender)
        if message.new and message.version == VERSION:
            self._make_way(message.sender)
        if is_new or message.new:
            for observer in self._observers:
                observer.on_member(message.sender, message.new)

    def _take_roster(self, message: RosterMessage) -> None:
        """Follow a leader."""
        own = self._mesh.address
        if not self.roster.prefers(message):
            if self.roster.leads and message.members is not None:  # it did not hear this one
                self._send(self.roster.tell_all(self.instance_id), message.sender)
            return
        registrars = self.roster.registrars
        new, gone = self.roster.take(message, self._clock())
        for address in new:
            for observer in self._observers:
                observer.on_member(address, len(self._members) <= 2 * SMALL_FLEET)
        for address in gone:
            self._on_forgotten(address)
        self._take_note_of_arrival(message)
        # It is there by its answer to the leader's greeting, or else the leader does not know of it.
        is_there = message.members is None or own in message.members or own in message.joined
        if not is_there or not self.roster.is_in_step(message):
            self._send(self._alive(new=not self._arrival.is_known, sync=True), message.sender)
        anew = self.roster.takes_back(message)
        if anew or registrars != self.roster.registrars:
            self._on_roster(anew)

    def _take_note_of_arrival(self, message: RosterMessage) -> None:
        """Greet nobody, if the leader tells all others of this process."""
        if message.tells_all:
            self._arrival.stop()
        if self._mesh.address in (message.joined if message.members is None else message.members):
            self._arrival.is_known = True
            self._settle()

    def _settle(self) -> None:
        """End the longer time for unknown processes of one that has postponed its greeting."""
        self._settled_at = min(self._settled_at, self._clock() + ANSWER_TIMEOUT)

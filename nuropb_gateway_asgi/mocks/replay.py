"""Recorded traffic played again: the answer to a call is that of the most similar recorded call, and events come."""

from __future__ import annotations

import operator
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import anyio

from ..protocol import is_method, is_service
from ..topics import check_topic
from ..wire import errors
from ..wire.errors import NuropbException
from ..wire.services import PublishEvent
from .definition import ERRORS
from .nodes import MockFileError
from .service import MockMethod, MockService
from .traffic import CallRecord, EventRecord, Redaction, read_traffic

__all__ = ["Replay"]

#: Unanswered calls that are listed at the end.
MAX_LISTED: Final = 100
#: Seconds until the first event, at least: a subscription that starts the replay is in force by then.
FIRST_EVENT: Final = 0.1


class Replay:
    """The services and events of one recording, and the calls for which it had no answer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        head, records = read_traffic(path)
        self._redact = Redaction(head.redacted)
        self._calls: dict[tuple[str, str], list[CallRecord]] = defaultdict(list)
        #: The events, in the order of their times.
        self.events = sorted((each for each in records if isinstance(each, EventRecord)), key=operator.attrgetter("at"))
        self._began = min((each.at for each in records), default=0.0)
        for event in self.events:
            if (reason := check_topic(event.topic)) is not None:
                raise MockFileError(f"{path}: an event of no valid topic: {reason}")
        for record in records:
            if not isinstance(record, CallRecord):
                continue
            if not is_service(record.service) or not is_method(record.method) or record.method.startswith("_"):
                raise MockFileError(f"{path}: a call of no valid service and method; expected names of the protocol")
            self._calls[record.service, record.method].append(record)
        #: How often each recorded call was the answer.
        self._used: dict[int, int] = defaultdict(int)
        #: The calls without an answer that is equal or similar: name and number of calls.
        self.unmatched: dict[str, int] = defaultdict(int)
        #: The calls that were answered by a similar one.
        self.alike: dict[str, int] = defaultdict(int)

    def services(self) -> dict[str, MockService]:
        """Return the recorded services by name."""
        methods: dict[str, dict[str, MockMethod]] = defaultdict(dict)
        for service, method in self._calls:
            methods[service][method] = self._method(service, method)
        return {name: MockService(name, each, version="replay") for name, each in methods.items()}

    def methods(self, service: str) -> tuple[tuple[str, str], ...]:
        """Return each method of a service with the number of its recorded answers."""
        return tuple(
            (method, f"{len(calls)} recorded {'answer' if len(calls) == 1 else 'answers'}")
            for (name, method), calls in self._calls.items()
            if name == service
        )

    async def play(self, emit: PublishEvent) -> None:
        """Publish the events, in the distance that they have from the first record."""
        started = time.monotonic()
        for event in self.events:
            due = started + max(event.at - self._began, FIRST_EVENT)
            await anyio.sleep(max(due - time.monotonic(), 0.0))
            emit(event.topic, event.event, event.users)

    def _method(self, service: str, method: str) -> MockMethod:
        def answer(**params: Any) -> Any:
            found = self._find(service, method, self._redact(params))
            if found.error is not None:
                raise _exception(found.error)
            return found.result

        return MockMethod(answer, description="A recorded method")

    def _find(self, service: str, method: str, params: Mapping[str, Any]) -> CallRecord:
        calls, name = self._calls[service, method], f"{service}.{method}"
        # Equal calls answer in the order of the recording, and the last one answers from then on.
        if equal := [each for each in calls if each.params == params]:
            found = next((each for each in equal if not self._used[id(each)]), equal[-1])
            self._used[id(found)] += 1
            return found
        best = max(calls, key=lambda each: _likeness(each.params, params))
        if _likeness(best.params, params) > 0 or not params:
            self._note(self.alike, name)
            return best
        self._note(self.unmatched, name)
        raise errors.NuropbHandlingError(f"The recording has no call of {name} with such parameters")

    def _note(self, counts: dict[str, int], name: str) -> None:
        if name in counts or len(counts) < MAX_LISTED:
            counts[name] += 1

    def report(self) -> list[str]:
        """Return lines about the calls whose answers were not recorded as such."""
        lines = [f"no match for {name}: {_times(count)}" for name, count in sorted(self.unmatched.items())]
        return lines + [f"answered by a similar call: {name}: {_times(n)}" for name, n in sorted(self.alike.items())]


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _likeness(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Return the share of members that both have with equal values; half of it for a member with another value."""
    names = one.keys() | other.keys()
    if not names:
        return 1.0
    points = sum(1.0 if one[name] == other[name] else 0.5 for name in one.keys() & other.keys())
    return points / len(names)


def _exception(error: Mapping[str, Any]) -> Exception:
    name = ERRORS.get(str(error.get("code")), "NuropbHandlingError")
    kind = getattr(errors, name, None) or type(name, (NuropbException,), {})
    made: Exception = kind(str(error.get("description", "")))
    return made

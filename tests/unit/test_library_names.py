"""The check of a library's names, on a made-up library."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from nuropb_gateway_asgi.server._names import Fault, Reliance, describe, faults, parameters

SOURCE = """
import functools
from dataclasses import dataclass

LIMIT = 10
UNREAD = 10

def read_limit():
    return LIMIT

@dataclass
class Frame:
    opcode: int

class Base:
    def parse(self):
        self.on_frame(None)

class Connection(Base):
    def __init__(self, queue):
        self.queue = queue
        self.state = self.next_state = 0
        self.unread = None

    def on_frame(self, frame):
        self.queue.put(frame)
        return lambda: self.on_later

    def on_later(self):
        self.state += 1

    def on_nothing(self):
        self.queue.close()

    @property
    def both(self):
        return self.next_state

    @functools.cached_property
    def cached(self):
        return self.on_cached

    @staticmethod
    def on_cached():
        pass

class Server:
    def __init__(self):
        self.connection = Connection([])

    def run(self):
        self.connection.on_nothing()
"""


@pytest.fixture(autouse=True)
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "library.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("library", None)


def problems(owner: str = "library:Connection", **names: str) -> list[tuple[str, str]]:
    lends = {"queue": names.pop("queue")} if "queue" in names else {}
    return [fault[1:] for fault in faults(Reliance(owner=owner, lends=lends, **names))]


def test_a_library_with_all_names_has_no_fault() -> None:
    assert problems(overrides="on_frame(frame) on_later()", uses="queue both unread parse", sets="queue state") == []
    assert problems("library:Frame", documented="opcode") == []
    assert problems("library", uses="read_limit", sets="LIMIT") == []


def test_a_missing_name_is_a_fault() -> None:
    assert problems(overrides="on_text(text)", uses="gone", sets="lost", documented="unknown") == [
        ("has no", "Connection.on_text"),
        ("has no", "Connection.gone"),
        ("has no", "Connection.lost"),
        ("has no", "Connection.unknown"),
    ]
    assert problems("library:Gone", uses="name") == [("has no", "Gone")]
    assert problems("library.gone", uses="name") == [("has no", "library.gone")]
    assert problems("library.gone:Connection", uses="name") == [("has no", "library.gone")]
    assert problems("library", uses="GONE") == [("has no", "library.GONE")]


def test_a_method_that_the_library_no_longer_calls_is_a_fault() -> None:
    assert problems(overrides="on_nothing()") == [("no longer uses", "Connection.on_nothing")]


def test_a_method_may_be_called_by_another_class() -> None:
    through = "library:Server.connection"
    assert problems(overrides="on_nothing()", called_through=through) == []
    assert problems(overrides="on_later()", called_through=through) == [("no longer uses", "Connection.on_later")]
    # The missing class is reported for its own names.
    assert problems(overrides="on_nothing()", called_through="library:Gone.connection") == []


def test_the_library_of_the_caller_is_blamed() -> None:
    through = "uvicorn.server:Server.config"
    (fault,) = faults(Reliance(owner="library:Connection", overrides="on_later()", called_through=through))
    assert fault == ("uvicorn", "no longer uses", "Connection.on_later")


def test_a_call_in_a_replaced_method_does_not_count() -> None:
    assert problems(overrides="on_later()", replaces="on_frame") == [("no longer uses", "Connection.on_later")]


def test_an_attribute_that_the_library_no_longer_reads_is_a_fault() -> None:
    assert problems(sets="unread") == [("no longer uses", "Connection.unread")]
    assert problems("library", sets="UNREAD") == [("no longer uses", "library.UNREAD")]


@pytest.mark.parametrize("listed", ["on_frame()", "on_frame(frame, size)", "on_frame(message)"])
def test_other_parameters_are_a_fault(listed: str) -> None:
    assert problems(overrides=listed) == [("has other parameters for", "Connection.on_frame")]


def test_a_lent_object_must_have_the_members_that_the_library_uses() -> None:
    assert problems(queue="close get put") == []
    assert problems(queue="get") == [("now uses", "Connection.queue.close"), ("now uses", "Connection.queue.put")]
    assert problems(queue="put", replaces="on_nothing") == []


def test_the_code_of_properties_counts() -> None:
    assert problems(sets="next_state", overrides="on_cached(self)") == [
        ("has other parameters for", "Connection.on_cached")
    ]


@pytest.mark.parametrize("listed", ["state()", "both()"])
def test_an_attribute_in_place_of_a_method_is_a_fault(listed: str) -> None:
    assert len(problems(overrides=listed)) == 1


def test_parameters_are_parsed() -> None:
    assert parameters("fail(code, reason) receive()") == {"fail": ["code", "reason"], "receive": []}


def test_faults_are_described_by_library_and_problem() -> None:
    found = [
        Fault("websockets", "has no", "ServerProtocol.fail"),
        Fault("uvicorn", "no longer uses", "A.c"),
        Fault("uvicorn", "has no", "A.b"),
        Fault("uvicorn", "has no", "A.a"),
        Fault("uvicorn", "has no", "A.a"),
    ]
    uvicorn, websockets = version("uvicorn"), version("websockets")
    assert describe(found) == (
        f"uvicorn {uvicorn} has no A.a, A.b; uvicorn {uvicorn} no longer uses A.c; "
        f"websockets {websockets} has no ServerProtocol.fail"
    )
    assert describe([]) == ""

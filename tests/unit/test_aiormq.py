"""The table of names of aiormq and pamqp, compared with the names that the source of the mesh uses."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import logging
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import aio_pika
import aiormq
import aiormq.abc
import aiormq.channel
import aiormq.connection
import pytest
from pamqp import commands

from nuropb_gateway_asgi.exceptions import SettingsError
from nuropb_gateway_asgi.mesh import rabbitmq
from nuropb_gateway_asgi.mesh.rabbitmq import RabbitMQMesh, _aiormq, _plain, _sockets
from nuropb_gateway_asgi.mesh.rabbitmq._aiormq import REPLACEABLE, REQUIRED

ROOT = Path(rabbitmq.__path__[0])
#: Members of aiormq's classes that the mesh uses on other objects only: of asyncio, anyio, aio-pika or its own.
OWN = {
    "_connection",
    "_loop",
    "add",
    "cancel",
    "connect",
    "connected",
    "connection",
    "create_future",
    "create_task",
    "open",
    "send",
    "timeout",
}


# Read by the first test that asks, because every worker of a run collects all modules of tests.
@functools.cache
def source() -> list[ast.AST]:
    """Return all nodes of the mesh's source."""
    return [
        node for path in sorted(ROOT.glob("*.py")) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    ]


def of_module(owner: str) -> bool:
    try:
        importlib.import_module(owner)
    except ModuleNotFoundError:
        return False
    return True


def table(*, of_modules: bool) -> set[tuple[str, str]]:
    """Return all names of the table, of modules or of classes, with their owners."""
    names = {(owner, name) for owner, names in REQUIRED.items() for name in names}
    names |= {(each.owner, each.name) for each in REPLACEABLE if each.use == "attribute"}
    return {(owner, name) for owner, name in names if of_module(owner) is of_modules}


def imported() -> Iterator[tuple[str, str]]:
    """Yield the names that the mesh imports from modules of aiormq and pamqp, or reads from such a module."""
    for node in source():
        if isinstance(node, ast.ImportFrom) and node.level == 0 and is_of_library(node.module or ""):
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                owner, _, name = alias.name.rpartition(".")
                if owner and is_of_library(owner):
                    yield owner, name
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in (
            "aio_pika",
            "aiormq",
            "aiormq.exceptions",
            "pamqp.frame",
        ):
            yield ast.unparse(node.value), node.attr
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "commands":
            yield "pamqp.commands", node.attr


def is_of_library(module: str) -> bool:
    return module.split(".")[0] in ("aio_pika", "aiormq", "pamqp")


def members(*classes: type) -> set[str]:
    """Return the methods and attributes of classes and their base classes, including those that methods set."""
    found: set[str] = set()
    for class_ in (base for each in classes for base in each.__mro__ if is_of_library(base.__module__)):
        for node in ast.walk(ast.parse(inspect.getsource(inspect.getmodule(class_) or class_))):
            if not isinstance(node, ast.ClassDef) or node.name != class_.__name__:
                continue
            for part in ast.walk(node):
                if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
                    found.add(part.name)
                elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                    found.add(part.target.id)
                elif isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store):
                    found.add(part.attr)
    return {name for name in found if not name.startswith("__")}


def fields_of_frames() -> set[str]:
    """Return the names that AMQP itself gives to the fields of its frames."""
    groups = [value for value in vars(commands).values() if isinstance(value, type)]
    frames = [value for group in groups for value in vars(group).values() if isinstance(value, type)]
    return {name for frame in frames for name in vars(frame).get("__slots__", ())}


def used() -> Iterator[str]:
    """Yield the names of all attributes that the mesh reads, sets, calls, or implements for aiormq."""
    for node in source():
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
            yield ast.literal_eval(node.args[1]) if isinstance(node.args[1], ast.Constant) else ""
    yield from set(vars(_sockets.Socket)) & set(vars(aiormq.TransportFactory))


def test_the_table_has_every_imported_name_and_no_other() -> None:
    assert set(imported()) == table(of_modules=True)


def test_the_table_has_every_member_that_is_used_and_no_other() -> None:
    known = {name for owner, name in table(of_modules=False) if owner.startswith("aiormq.")}
    elsewhere = (fields_of_frames() - known) | {name for _, name in table(of_modules=True)}
    of_aiormq = members(
        *(aiormq.Connection, aiormq.Channel, aiormq.TransportFactory, aiormq.SSLContextProvider),
        aiormq.abc.DeliveredMessage,
    )
    assert set(used()) & of_aiormq - elsewhere - OWN == known


def test_the_table_has_every_member_of_aio_pika_that_is_used_and_no_other() -> None:
    owners = {"pika": "aio_pika.Connection", "self._pika": "aio_pika.Connection"}
    owners["transport"] = "aio_pika.abc.UnderlayConnection"
    nodes = ast.walk(ast.parse((ROOT / "_connection.py").read_text(encoding="utf-8")))
    found = {
        (owners[ast.unparse(node.value)], node.attr)
        for node in nodes
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in owners
    }
    assert found == {(owner, name) for owner, name in table(of_modules=False) if owner.startswith("aio_pika.")}


def test_the_table_has_every_frame_that_is_used_and_no_other() -> None:
    frames = {node.attr for node in source() if isinstance(node, ast.Attribute) and is_basic(node.value)}
    assert frames == set(REQUIRED["pamqp.commands.Basic"])


def is_basic(node: ast.AST) -> bool:
    return ast.unparse(node) == "commands.Basic"


def test_the_table_has_every_parameter_and_argument_that_is_used_and_no_other() -> None:
    texts = {node.value for node in source() if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    passed = texts & set(inspect.signature(aiormq.Connection).parameters)
    subscripts = [node for node in source() if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "kwargs"]
    taken = {ast.literal_eval(node.slice) for node in subscripts}
    assert passed == {each.name for each in REPLACEABLE if each.use == "parameter"}
    assert taken == {each.name for each in REPLACEABLE if each.use == "argument"}


def test_all_names_are_there() -> None:
    _aiormq.check()
    assert _aiormq.MISSING == ()
    assert _aiormq.OWN_SOCKETS
    assert _aiormq.FAST_LANE


@pytest.mark.parametrize("class_", [aiormq.Connection, aiormq.Channel])
def test_aiormq_exports_or_declares_every_required_name(class_: type) -> None:
    declared = members(*(base for base in class_.__mro__ if base.__module__ == "aiormq.abc"))
    assert set(REQUIRED[f"aiormq.{class_.__name__}"]) - declared == set()
    assert set(REQUIRED["aio_pika"]) - set(aio_pika.__all__) == set()
    assert set(REQUIRED["aiormq"]) == {"exceptions"}


def test_the_plain_lane_uses_required_names_only() -> None:
    source = ast.parse(inspect.getsource(_plain))
    used = {node.attr for node in ast.walk(source) if isinstance(node, ast.Attribute)}
    assert used & {each.name for each in REPLACEABLE} == set()


# --- missing names ----------------------------------------------------------------------------------------------


def test_without_a_required_name_a_mesh_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    for class_ in (aiormq.Channel, aiormq.abc.AbstractChannel):
        monkeypatch.delattr(class_, "basic_publish")
    with pytest.raises(SettingsError) as caught:
        RabbitMQMesh("amqp://localhost")
    (line,) = str(caught.value).splitlines()
    assert line.startswith("the installed aiormq ")
    assert line.endswith(" has no aiormq.Channel.basic_publish; install aiormq>=7.2,<8")


def test_one_warning_names_what_is_missing_and_what_happens(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_aiormq, "MISSING", REPLACEABLE[-2:])
    _aiormq.warn_of_missing_names.cache_clear()
    with caplog.at_level(logging.WARNING):
        _aiormq.warn_of_missing_names()
        _aiormq.warn_of_missing_names()
    _aiormq.warn_of_missing_names.cache_clear()
    (line,) = [record.getMessage() for record in caplog.records]
    assert (
        " has no aiormq.abc.AbstractChannel.number, aiormq.Channel.lock: the plain lane is used; on the plain" in line
    )
    assert line.endswith("; install aiormq>=7.2,<8")


# --- texts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "name"), list(zip((aiormq.connection, aiormq.channel), _aiormq.LIBRARY_LOGGERS, strict=True))
)
def test_aiormq_logs_under_these_names(module: ModuleType, name: str) -> None:
    assert module.log.name == name


def test_aiormq_reports_an_unexpected_close_in_these_words() -> None:
    said = f"got {commands.Connection.Close()!r}"
    assert _aiormq.REFUSED_VHOST_TEXT in said
    assert "got {frame!r}" in inspect.getsource(aiormq.Connection)

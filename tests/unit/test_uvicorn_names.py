"""The table of names in uvicorn, websockets and h11, compared with the source of the gateway and with the libraries."""

from __future__ import annotations

import ast
import asyncio
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
import uvicorn

import nuropb_gateway_asgi
from nuropb_gateway_asgi.server import _uvicorn, frame_limits, http, unprotected, unsupervised, websocket
from nuropb_gateway_asgi.server._names import Reliance, faults, parameters
from nuropb_gateway_asgi.server.message_queue import MessageQueue

ROOT: Final = Path(nuropb_gateway_asgi.__file__).parent
LIBRARIES: Final = ("uvicorn", "websockets", "h11")

H11: Final = "uvicorn.protocols.http.h11_impl:H11Protocol"
SANSIO: Final = "uvicorn.protocols.websockets.websockets_sansio_impl:WebSocketsSansIOProtocol"
CYCLE: Final = "uvicorn.protocols.http.h11_impl:RequestResponseCycle"
SERVER_PROTOCOL: Final = "websockets.server:ServerProtocol"
MULTIPROCESS: Final = "uvicorn.supervisors.multiprocess:Multiprocess"
PROCESS: Final = "uvicorn.supervisors.multiprocess:Process"

#: Owners of the classes from which the gateway's classes derive, by the name in the source.
BASES: Final = {
    "H11Protocol": H11,
    "WebSocketsSansIOProtocol": SANSIO,
    "ServerProtocol": SERVER_PROTOCOL,
    "h11.Connection": "h11:Connection",
    "Multiprocess": MULTIPROCESS,
}

#: Owners of objects, by class of the gateway and by expression. None stands for objects of Python, of asyncio and of
#: the gateway. An expression without an entry fails the test.
OBJECTS: Final[dict[str, dict[str, str | None]]] = {
    "_Requests": {
        "self": "h11:Connection",
        "request": "h11:Request",
        "error": "h11:RemoteProtocolError",
        "request.headers": None,
        "request.target": None,
        "data": "h11:Data",
        **dict.fromkeys(["http", "_END_OF_HEAD", "end", "unread"]),
    },
    "HTTPProtocol": {
        "self": H11,
        "self.cycle": CYCLE,
        "self._requests": "h11:Connection",
        "event": "h11:Request",
        "event.headers": None,
        **dict.fromkeys(["self.connections", "self.cycle.message_event", "self.loop", "self.transport"]),
        **dict.fromkeys(["_idle", "headers", "longest_idle", "self._deadline", "transport"]),
        **dict.fromkeys(["protocol", "self.ws_protocol_class"]),
        "self.config": "uvicorn.config:Config",
        "self.flow": "uvicorn.protocols.http.flow_control:FlowControl",
        **dict.fromkeys(["scope", "scope.get('extensions', {})", "self.scope", "self._watched", "watched"]),
    },
    "WebSocketProtocol": {
        "self": SANSIO,
        "self.config": "uvicorn.config:Config",
        "self.conn": SERVER_PROTOCOL,
        "self.response": "websockets.http11:Response",
        "plain": SERVER_PROTOCOL,
        "plain.parser": None,
        "event": "websockets.http11:Request",
        "event.headers": None,
        "failed": "websockets.frames:Close",
        **dict.fromkeys(["self.close_timer", "self.loop", "self.queue", "self.transport", "self.writable", "message"]),
        **dict.fromkeys(["b''", "b''.join(self.frames)", "self._limited", "self.response.headers"]),
        **dict.fromkeys(["self.app_state", "self.logger", "self.tasks", "opening", "opening.target", "path", "root"]),
        **dict.fromkeys(["limited", "made", "task", "vars(config)", "logging", "conn", "self.connections"]),
        "self._lateness": None,
        "Opcode": "websockets.frames:Opcode",
        "server_state": "uvicorn.server:ServerState",
        "State": "websockets.protocol:State",
    },
    "LimitedServerProtocol": {
        "self": SERVER_PROTOCOL,
        "frame": "websockets.frames:Frame",
        "frame.data": None,
        "Opcode": "websockets.frames:Opcode",
        "response": "websockets.http11:Response",
        "response.headers": None,
        "HTTPStatus(status)": None,
    },
    "Supervisor": {
        "self": MULTIPROCESS,
        "process": PROCESS,
        **dict.fromkeys(["process.process", "self.signal_queue"]),
    },
}
#: Python's modules, and the gateway's enumerations.
OTHERS: Final = {"asyncio", "contextlib", "h11", "math", "os", "signal", "time", "CloseCode", "HTTPStatus", "super()"}
#: Members of asyncio's contract.
OF_ASYNCIO: Final = {*dir(asyncio.Protocol)}
#: Modules with the same names; websockets.speedups is an optional C extension.
SAME: Final = {"websockets.speedups": "websockets.utils"}


@dataclass
class Names:
    """Names of one class or module of a library."""

    overrides: dict[str, list[str]] = field(default_factory=dict)
    replaces: set[str] = field(default_factory=set)
    uses: set[str] = field(default_factory=set)
    sets: set[str] = field(default_factory=set)


def parsed(room: str) -> dict[Path, ast.Module]:
    """Parse the modules of a room, without the table of names and its check."""
    listing = ("_uvicorn", "_names")
    paths = [path for path in (ROOT / room).rglob("*.py") if path.stem not in listing]
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(paths)}


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """Walk as ast.walk() does, without imports for types."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from walk(child)


def attributes(node: ast.AST) -> Iterator[tuple[str, str, bool]]:
    """Yield receiver, name and whether it is set, for every attribute."""
    for each in walk(node):
        if isinstance(each, ast.Attribute):
            yield ast.unparse(each.value), each.attr, isinstance(each.ctx, ast.Store)
        elif isinstance(each, ast.Call) and ast.unparse(each.func) == "getattr":
            receiver, name, *_ = each.args
            if isinstance(name, ast.Constant):
                yield ast.unparse(receiver), str(name.value), False


def of_imports(tree: ast.Module, found: dict[str, Names]) -> None:
    """Add the names that a module imports from the libraries, or reads from their modules."""
    modules = set()
    for node in walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names} & set(LIBRARIES)
        elif isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in LIBRARIES and not node.level:
            module = SAME.get(str(node.module), str(node.module))
            for alias in node.names:
                if f"{module}:{alias.name}" not in BASES.values() and alias.name != "Opcode":
                    found[module].uses.add(alias.name)
    for receiver, name, is_set in attributes(tree):
        if receiver.split(".")[0] in modules and not is_module(f"{receiver}.{name}"):
            (found[receiver].sets if is_set else found[receiver].uses).add(name)


def of_class(class_: ast.ClassDef, found: dict[str, Names]) -> None:
    """Add the names of the libraries in a class that derives from a class of theirs."""
    objects = OBJECTS[class_.name]
    base = load(BASES[ast.unparse(class_.bases[0])])
    methods = [each for each in class_.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
    known = known_of(base)
    own = {each.name for each in methods if not hasattr(base, each.name)}
    own |= {
        name for receiver, name, is_set in attributes(class_) if receiver == "self" and is_set and name not in known
    }
    own |= {
        target.id
        for each in class_.body
        if isinstance(each, ast.Assign)
        for target in each.targets
        if isinstance(target, ast.Name)
    }
    names = found[BASES[ast.unparse(class_.bases[0])]]
    for method in methods:
        if hasattr(base, method.name) and not method.name.startswith("__"):
            if f"super().{method.name}(" not in ast.unparse(class_):
                names.replaces.add(method.name)
            if method.name not in OF_ASYNCIO:
                names.overrides[method.name] = [argument.arg for argument in method.args.args[1:]]
    for receiver, name, is_set in attributes(class_):
        if receiver in OTHERS or (receiver == "self" and (name in own or name in names.overrides)):
            continue
        assert receiver in objects, f"{class_.name}: whose is {receiver}.{name}? Add it to OBJECTS"
        owner = objects[receiver]
        if owner is not None and name not in OF_ASYNCIO:
            (found[owner].sets if is_set else found[owner].uses).add(name)


def is_module(path: str) -> bool:
    try:
        return importlib.util.find_spec(path) is not None
    except ModuleNotFoundError:  # its parent is no package
        return False


def load(owner: str) -> Any:
    module, _, name = owner.partition(":")
    return getattr(importlib.import_module(module), name)


def known_of(base: type) -> set[str]:
    """Return the names of a class, and of all attributes in its methods."""
    functions = [each for class_ in base.__mro__ for each in vars(class_).values() if inspect.isfunction(each)]
    return {*dir(base), *(name for each in functions for name in each.__code__.co_names)} - {"__slots__"}


def derived(rooms: Iterable[str]) -> dict[str, Names]:
    found: dict[str, Names] = defaultdict(Names)
    for room in rooms:
        for tree in parsed(room).values():
            if room == "server":
                of_imports(tree, found)
            for node in walk(tree):
                if isinstance(node, ast.ClassDef) and node.bases and ast.unparse(node.bases[0]) in BASES:
                    of_class(node, found)
    for names in found.values():
        names.uses -= names.sets
    found["h11:Connection"].uses.discard("refusal")  # of the gateway's own class
    return {owner: names for owner, names in found.items() if names != Names()}


def listed(table: Iterable[Reliance], source: dict[str, Names]) -> dict[str, Names]:
    """Return the names of a table. Documented names count as overrides where the source overrides them."""
    found: dict[str, Names] = defaultdict(Names)
    for each in table:
        names, overridden = found[each.owner], source.get(each.owner, Names()).overrides
        names.overrides |= parameters(each.overrides)
        names.overrides |= {name: overridden[name] for name in each.documented.split() if name in overridden}
        names.replaces |= set(each.replaces.split())
        names.uses |= {name for name in f"{each.uses} {each.documented}".split() if name not in overridden}
        names.sets |= set(each.sets.split())
    return dict(found)


# Read by the first test that asks, because every worker of a run collects all modules of tests.
@functools.cache
def all_in_source() -> dict[str, Names]:
    return derived(["server", "cli"])


def in_source(*, of_supervision: bool) -> dict[str, Names]:
    """Return the names that the supervisor uses, or those that all other modules use."""
    found = all_in_source()
    return {owner: names for owner, names in found.items() if owner.startswith("uvicorn.supervisors") is of_supervision}


@pytest.mark.parametrize("owner", sorted({each.owner for each in _uvicorn.RELIED_ON}))
def test_the_table_has_the_names_that_the_protocols_use(owner: str) -> None:
    used = in_source(of_supervision=False)
    assert listed(_uvicorn.RELIED_ON, used).get(owner) == used.get(owner)


def test_the_table_has_every_owner_of_names_that_the_protocols_use() -> None:
    assert {*in_source(of_supervision=False)} <= {each.owner for each in _uvicorn.RELIED_ON}


def test_the_table_has_the_names_that_the_supervisor_uses() -> None:
    used = in_source(of_supervision=True)
    assert listed(_uvicorn.SUPERVISION, used) == used


def test_the_source_still_has_the_names_of_the_drain() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("*.py"))
    for each in _uvicorn.DRAIN:
        for name in f"{each.uses} {each.documented}".split():
            assert name in source


def test_the_source_still_has_the_names_of_the_placement() -> None:
    source = (ROOT / "server" / "placement.py").read_text(encoding="utf-8")
    listed = " ".join(f"{each.uses} {each.sets} {each.documented}" for each in _uvicorn.PLACEMENT)
    receivers = ("config", "lifespan", "lifespans.LifespanOn")
    used = {name for receiver, name, _ in attributes(ast.parse(source)) if receiver in receivers}
    assert used == {*listed.split()}


def test_the_installed_libraries_have_all_names() -> None:
    assert unprotected() is None
    assert unsupervised() is None
    assert _uvicorn.unplaced() is None
    assert [fault for each in _uvicorn.DRAIN for fault in faults(each)] == []


@pytest.mark.parametrize("path", _uvicorn.OWN_WAY)
def test_uvicorn_has_protocols_of_its_own(path: str) -> None:
    assert issubclass(load(path), asyncio.Protocol)


def test_an_object_lent_to_a_library_has_the_members_that_the_library_may_use() -> None:
    (lends,) = [each.lends for each in _uvicorn.RELIED_ON if each.lends]
    assert set(lends["queue"].split()) <= {*dir(MessageQueue)}
    assert set(lends["writable"].split()) <= {*dir(asyncio.Event)}


def test_the_gateway_overrides_nothing_by_accident() -> None:
    for class_ in (http.HTTPProtocol, websocket.WebSocketProtocol, frame_limits.LimitedServerProtocol):
        base = class_.__bases__[0]
        names = listed(_uvicorn.RELIED_ON, in_source(of_supervision=False))
        (table,) = [names[owner] for owner in BASES.values() if load(owner) is base]
        overridden = {name for name in vars(class_) if not name.startswith("__") and hasattr(base, name)}
        assert overridden - OF_ASYNCIO == set(table.overrides)


def trees_with(*texts: str) -> Iterator[tuple[Path, ast.Module]]:
    """Parse the modules of the package in which one of the texts is."""
    for path in sorted(ROOT.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        if any(text in source for text in texts):
            yield path, ast.parse(source)


def test_only_the_server_room_imports_the_insides_of_uvicorn() -> None:
    found = set()
    for path, tree in trees_with("uvicorn", "h11"):
        for node in ast.walk(tree):
            names = [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(str(name).split(".")[0] in ("uvicorn", "h11") for name in names):
                found |= {(path.relative_to(ROOT).parts[0], str(name)) for name in names}
    allowed = {("cli", "uvicorn"), ("cli", "uvicorn.supervisors"), ("testing", "uvicorn")}
    assert {each for each in found if each[0] != "server"} <= allowed


# --- log texts ----------------------------------------------------------------------------------------------------


def matched_texts() -> set[tuple[str, str]]:
    """Find the texts that the gateway compares with log records and with asyncio's reports, each with its room."""
    found = set()
    for path, tree in trees_with("record.msg", "context.get("):
        room = path.relative_to(ROOT).parts[0]
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn | ast.Eq | ast.NotEq):
                text, place = node.left, node.comparators[0]
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".startswith"):
                text, place = node.args[0], node.func
            else:
                continue
            if "context.get('message')" in ast.unparse(text):
                text, place = place, text
            if "record.msg" in ast.unparse(place) or "context.get('message')" in ast.unparse(place):
                for part in text.elts if isinstance(text, ast.Tuple) else [text]:
                    name = ast.unparse(part)
                    value = ast.literal_eval(part) if isinstance(part, ast.Constant) else getattr(_uvicorn, name)
                    found.add((room, value))
    return found


def test_the_table_has_the_log_texts_that_the_gateway_looks_for() -> None:
    assert {(each.room, each.text) for each in _uvicorn.LOG_TEXTS} == matched_texts()


@pytest.mark.parametrize("each", _uvicorn.LOG_TEXTS, ids=lambda each: each.text)
def test_a_library_still_logs_the_text(each: _uvicorn.LogText) -> None:
    module = importlib.import_module(each.source)
    constants = [
        node.value for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.Constant)
    ]
    logged = any(each.text in value for value in constants if isinstance(value, str))
    if each.since:
        version = importlib.metadata.version(each.source.partition(".")[0])
        assert logged is (int(version.partition(".")[0]) >= each.since)
    else:
        assert logged


def test_the_table_has_the_loggers_that_the_gateway_names() -> None:
    found = {
        node.value
        for path, tree in trees_with("uvicorn.")
        if path.stem != "_uvicorn"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and re.fullmatch(r"uvicorn\.[a-z]+", str(node.value))
    }
    assert found == set(_uvicorn.LOGGERS)


def test_uvicorn_still_has_the_loggers() -> None:
    source = inspect.getsource(uvicorn.config)
    assert [name for name in _uvicorn.LOGGERS if f'"{name}"' not in source] == []

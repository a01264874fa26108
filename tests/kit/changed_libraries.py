"""Copies of uvicorn, websockets and h11 with one name replaced throughout, so that each copy works by itself."""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from nuropb_gateway_asgi.server._names import Reliance, parameters

__all__ = ["CLASSES", "MODULES", "Rename", "renames", "renames_of_classes"]

_H11: Final = "uvicorn/protocols/http/h11_impl.py"
_SANSIO: Final = "uvicorn/protocols/websockets/websockets_sansio_impl.py"
_WORKERS: Final = "uvicorn/supervisors/multiprocess.py"


class _Place(NamedTuple):
    """A file that names members of an owner: on ``self`` within ``classes``, and on ``receivers``."""

    file: str
    classes: tuple[str, ...] = ()
    receivers: tuple[str, ...] = ()


#: Places by owner. All other names belong to modules, and are replaced wherever the word occurs.
_PLACES: Final = {
    "uvicorn.protocols.http.h11_impl:H11Protocol": [_Place(_H11, ("H11Protocol",))],
    "uvicorn.protocols.http.h11_impl:RequestResponseCycle": [_Place(_H11, ("RequestResponseCycle",), ("self.cycle",))],
    "uvicorn.protocols.websockets.websockets_sansio_impl:WebSocketsSansIOProtocol": [
        _Place(_SANSIO, ("WebSocketsSansIOProtocol",))
    ],
    "websockets.server:ServerProtocol": [
        _Place("websockets/server.py", ("ServerProtocol",)),
        _Place("websockets/protocol.py", ("Protocol",)),
        _Place(_SANSIO, (), ("self.conn",)),
    ],
    "uvicorn.lifespan.on:LifespanOn": [_Place("uvicorn/lifespan/on.py", ("LifespanOn",))],
    "uvicorn.config:Config": [
        _Place("uvicorn/config.py", ("Config",)),
        _Place("uvicorn/server.py", (), ("config",)),
        _Place(_H11, (), ("config",)),
    ],
    "uvicorn.supervisors.multiprocess:Multiprocess": [_Place(_WORKERS, ("Multiprocess",))],
    "uvicorn.supervisors.multiprocess:Process": [
        _Place(_WORKERS, ("Process",), ("process", "old_process", "new_process"))
    ],
    "h11:Connection": [_Place("h11/_connection.py", ("Connection",)), _Place(_H11, (), ("self.conn", "conn"))],
}

#: Classes that the gateway's protocols derive from or touch, and modules of such classes.
CLASSES: Final = ("H11Protocol", "RequestResponseCycle", "WebSocketsSansIOProtocol", "ServerProtocol")
MODULES: Final = ("h11_impl", "websockets_sansio_impl")


@dataclass(frozen=True)
class Rename:
    """A copy of a library without one name."""

    library: str
    name: str
    #: ``module:class`` for a member of a class, else the module or nothing.
    owner: str = ""

    def __str__(self) -> str:
        return f"{self.owner.rpartition(':')[2]}.{self.name}" if self.owner in _PLACES else self.name

    def apply(self, directory: Path) -> Path:
        """Make the copy, and return the directory to put first on Python's path."""
        directory = directory / str(self)
        for library in {self.library, "uvicorn"}:
            spec = importlib.util.find_spec(library)
            assert spec is not None
            assert spec.origin is not None
            shutil.copytree(Path(spec.origin).parent, directory / library)  # with its bytecode, which saves time
        changed = self._rename_member(directory) if self.owner in _PLACES else self._rename_word(directory)
        assert changed > 0
        return directory

    def _rename_member(self, directory: Path) -> int:
        changed = 0
        for place in _PLACES[self.owner]:
            path = directory / place.file
            renamer = _Renamer(place, self.name)
            tree = renamer.visit(ast.parse(path.read_text(encoding="utf-8")))
            if renamer.changed:
                path.write_text(ast.unparse(tree), encoding="utf-8")
                changed += renamer.changed
        return changed

    def _rename_word(self, directory: Path) -> int:
        changed = 0
        for path in [*directory.rglob("*.py")]:
            text, count = re.subn(rf"\b{self.name}\b", f"other_{self.name}", path.read_text(encoding="utf-8"))
            if count:
                path.write_text(text, encoding="utf-8")
            if path.stem == self.name:
                path.rename(path.with_stem(f"other_{self.name}"))
            changed += count
        return changed


class _Renamer(ast.NodeTransformer):
    """Replaces the name of a member in its definition and in each access."""

    def __init__(self, place: _Place, name: str) -> None:
        self._place = place
        self._name = name
        self._classes: list[str] = []
        self.changed = 0

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self._classes.append(node.name)
        self.generic_visit(node)
        self._classes.pop()
        if node.name in self._place.classes:
            for each in node.body:
                if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) and each.name == self._name:
                    each.name = f"other_{self._name}"
                    self.changed += 1
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.Attribute:
        self.generic_visit(node)
        receiver = ast.unparse(node.value)
        of_self = receiver in ("self", "super()") and bool({*self._classes} & {*self._place.classes})
        if node.attr == self._name and (of_self or receiver in self._place.receivers):
            node.attr = f"other_{self._name}"
            self.changed += 1
        return node


def renames(table: Iterable[Reliance]) -> Iterator[Rename]:
    """Yield a rename for every name in a table, documented names excepted: uvicorn itself needs these."""
    for each in table:
        for name in [*parameters(each.overrides), *f"{each.uses} {each.sets}".split()]:
            yield Rename(each.library, name, each.owner)


def renames_of_classes() -> Iterator[Rename]:
    """Yield a rename for every class of ``CLASSES``, and for every module of ``MODULES``."""
    for name in CLASSES:
        yield Rename("websockets" if name == "ServerProtocol" else "uvicorn", name)
    for name in MODULES:
        yield Rename("uvicorn", name)

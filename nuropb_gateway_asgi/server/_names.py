"""Check of the names that a library must have, and must go on using."""

from __future__ import annotations

import dis
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import groupby
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

__all__ = ["Fault", "Reliance", "describe", "faults", "parameters"]


@dataclass(frozen=True, kw_only=True)
class Reliance:
    """Names of one class or module of a library. Each field is a list of words."""

    #: ``module:class``, or ``module``.
    owner: str
    #: Methods that the gateway overrides and the library calls, with their parameters: ``handle_connect(event)``.
    overrides: str = ""
    #: The attribute through which the library calls ``overrides``, as ``module:class.attribute``; else ``self``.
    called_through: str = ""
    #: Overridden methods, asyncio's included, whose code in the library never runs.
    replaces: str = ""
    #: Methods that the gateway calls, and attributes that it reads.
    uses: str = ""
    #: Attributes that the gateway sets and the library reads.
    sets: str = ""
    #: Names of the library's documented interface.
    documented: str = ""
    #: Objects that the gateway puts in place of the library's: the attribute, and the members that they have.
    lends: Mapping[str, str] = field(default_factory=dict)

    @property
    def library(self) -> str:
        """The name of the package."""
        return _package(self.owner)


class Fault(NamedTuple):
    """A difference between a library and the names that the gateway relies on."""

    library: str
    #: A verb phrase for which ``name`` is the object.
    problem: str
    name: str


class _Access(NamedTuple):
    receiver: str
    name: str
    is_store: bool


def parameters(overrides: str) -> dict[str, list[str]]:
    """Parse the words of :attr:`Reliance.overrides`."""
    return {name: re.findall(r"\w+", listed) for name, listed in re.findall(r"(\w+)\(([^)]*)\)", overrides)}


def faults(reliance: Reliance) -> Iterator[Fault]:
    """Compare a library with the names of one class or module."""
    try:
        owner = _find(reliance.owner)
    except _Missing as missing:
        yield Fault(reliance.library, "has no", str(missing))
        return
    is_module = isinstance(owner, ModuleType)
    prefix = owner.__name__
    codes = list(_codes_of_module(owner) if is_module else _codes_of_class(owner))
    running = [code for name, code in codes if name not in reliance.replaces.split()]
    own = [access for _, code in codes for access in _accesses(code) if access.receiver == "self"]
    fields = getattr(owner, "__dataclass_fields__", ())
    known = {*dir(owner), *fields, *(access.name for access in own if access.is_store)}
    user, used = reliance.library, {*_globals(running)} if is_module else {*_loads(running, "self")}
    overrides = parameters(reliance.overrides)
    if reliance.called_through:
        caller, _, attribute = reliance.called_through.rpartition(".")
        user = _package(caller)
        try:
            used = {*_loads((code for _, code in _codes_of_class(_find(caller))), attribute)}
        except _Missing:  # reported for the caller's own names
            used = {*overrides}

    for name in [*overrides, *f"{reliance.uses} {reliance.sets} {reliance.documented}".split()]:
        if name not in known:
            yield Fault(reliance.library, "has no", f"{prefix}.{name}")
        elif name not in used and (name in overrides or name in reliance.sets.split()):
            yield Fault(user, "no longer uses", f"{prefix}.{name}")
        elif name in overrides and _parameters_of(getattr(owner, name, None)) != overrides[name]:
            yield Fault(reliance.library, "has other parameters for", f"{prefix}.{name}")
    for attribute, members in reliance.lends.items():
        for name in sorted({*_loads(running, attribute)} - {*members.split()}):
            yield Fault(reliance.library, "now uses", f"{prefix}.{attribute}.{name}")


def describe(found: Iterable[Fault]) -> str:
    """Write faults as a phrase: ``uvicorn 0.54.0 has no A.b, A.c; websockets 17.4 no longer uses D.e``."""
    phrases = []
    for (library, problem), names in groupby(sorted(set(found)), lambda fault: fault[:2]):
        phrases.append(f"{library} {version(library)} {problem} {', '.join(fault.name for fault in names)}")
    return "; ".join(phrases)


def _package(path: str) -> str:
    return path.partition(":")[0].partition(".")[0]


class _Missing(Exception):
    """A class or module that a library lacks, by its name."""


def _find(path: str) -> Any:
    """Import a module or class. Raises _Missing."""
    module, _, name = path.partition(":")
    try:
        found = importlib.import_module(module)
    except ImportError:
        raise _Missing(module) from None
    if not name:
        return found
    try:
        return getattr(found, name)
    except AttributeError:
        raise _Missing(name) from None


def _parameters_of(method: Any) -> list[str] | None:
    """Return the names of a method's parameters without the first, or None if they are unknown."""
    try:
        return [*inspect.signature(method).parameters][1:]
    except (TypeError, ValueError):
        return None


def _codes_of_class(owner: type) -> Iterator[tuple[str, CodeType]]:
    """Yield the methods of a class and of its bases in the same library, and the functions within the methods."""
    library = owner.__module__.partition(".")[0]
    for each in owner.__mro__:
        if each.__module__.partition(".")[0] == library:
            for name, value in vars(each).items():
                for function in _functions(value):
                    yield from ((name, code) for code in _nested(function.__code__))


def _codes_of_module(owner: ModuleType) -> Iterator[tuple[str, CodeType]]:
    """Yield the functions and methods that a module defines."""
    for name, value in vars(owner).items():
        if getattr(value, "__module__", None) == owner.__name__:
            if isinstance(value, type):
                yield from _codes_of_class(value)
            for function in _functions(value):
                yield from ((name, code) for code in _nested(function.__code__))


def _functions(value: Any) -> Iterator[FunctionType]:
    """Yield the functions behind a member of a class."""
    if isinstance(value, property):
        candidates = [value.fget, value.fset, value.fdel]
    else:
        candidates = [getattr(value, "__func__", getattr(value, "func", value))]
    for each in candidates:
        function = inspect.unwrap(each) if callable(each) else None
        if isinstance(function, FunctionType):
            yield function


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _loads(codes: Iterable[CodeType], receiver: str) -> Iterator[str]:
    for code in codes:
        yield from (each.name for each in _accesses(code) if each.receiver == receiver and not each.is_store)


def _globals(codes: Iterable[CodeType]) -> Iterator[str]:
    for code in codes:
        yield from code.co_names


def _accesses(code: CodeType) -> Iterator[_Access]:
    """Yield the attributes that a function reads and sets, each with the name of its receiver.

    ``self.conn.state`` reads ``conn`` of ``self`` and ``state`` of ``conn``. The bytecode is there without the source.
    """
    receiver = ""
    for each in dis.get_instructions(code):
        if each.opname in ("LOAD_ATTR", "LOAD_METHOD", "STORE_ATTR"):
            yield _Access(receiver, each.argval, each.opname == "STORE_ATTR")
            receiver = each.argval
        elif "LOAD_FAST" in each.opname or each.opname == "LOAD_DEREF":
            # Python 3.13 and newer load two variables with one instruction.
            receiver = each.argval if isinstance(each.argval, str) else each.argval[-1]
        elif each.opname not in ("COPY", "EXTENDED_ARG"):
            receiver = ""

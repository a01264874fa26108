"""Check whether a library still has, calls and reads the names on which the gateway relies."""

from __future__ import annotations

import dis
import functools
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
    """Names of one class or module of a library, as words."""

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
    #: The gateway's replacements for objects of the library: the attribute, and the members that the library may use.
    lends: Mapping[str, str] = field(default_factory=dict)

    @property
    def library(self) -> str:
        """The name of the package."""
        return _package(self.owner)


class Fault(NamedTuple):
    """A difference between a library and the names that the gateway relies on."""

    library: str
    #: ``has no``, for example; ``name`` completes the phrase.
    problem: str
    name: str


class _Access(NamedTuple):
    """An attribute in the code of a method, with the name of its receiver."""

    method: str
    receiver: str
    name: str
    is_store: bool


def parameters(overrides: str) -> dict[str, list[str]]:
    """Parse :attr:`Reliance.overrides`."""
    return {name: re.findall(r"\w+", listed) for name, listed in re.findall(r"(\w+)\(([^)]*)\)", overrides)}


def faults(reliance: Reliance) -> Iterator[Fault]:
    """Compare a library with the names of one class or module."""
    try:
        owner = _find(reliance.owner)
    except _Missing as missing:
        yield Fault(reliance.library, "has no", str(missing))
        return
    user = reliance.library
    overrides, sets = parameters(reliance.overrides), reliance.sets.split()
    if isinstance(owner, ModuleType):
        known, used = {*dir(owner)}, _globals(owner)
    else:
        accesses = _accesses(owner)
        known = {*dir(owner), *getattr(owner, "__dataclass_fields__", ())}
        known |= {each.name for each in accesses if each.receiver == "self" and each.is_store}
        running = [each for each in accesses if each.method not in reliance.replaces.split()]
        used = _loads(running, "self")
        for attribute, members in reliance.lends.items():
            for name in sorted(_loads(running, attribute) - {*members.split()}):
                yield Fault(user, "now uses", f"{owner.__name__}.{attribute}.{name}")
    if reliance.called_through:
        caller, _, attribute = reliance.called_through.rpartition(".")
        user = _package(caller)
        try:
            used = _loads(_accesses(_find(caller)), attribute)
        except _Missing:  # reported with the caller's own names
            used = {*overrides, *sets}

    for name in [*overrides, *reliance.uses.split(), *sets, *reliance.documented.split()]:
        path = f"{owner.__name__}.{name}"
        if name not in known:
            yield Fault(reliance.library, "has no", path)
        elif name not in used and (name in overrides or name in sets):
            yield Fault(user, "no longer uses", path)
        elif name in overrides and _parameters_of(getattr(owner, name, None)) != overrides[name]:
            yield Fault(reliance.library, "has other parameters for", path)


def describe(found: Iterable[Fault]) -> str:
    """Write faults as a phrase: ``uvicorn 0.54.0 has no A.b, A.c; websockets 17.4 no longer uses D.e``."""
    phrases = []
    for (library, problem), names in groupby(sorted(set(found)), lambda fault: fault[:2]):
        phrases.append(f"{library} {version(library)} {problem} {', '.join(fault.name for fault in names)}")
    return "; ".join(phrases)


def _package(path: str) -> str:
    return path.partition(":")[0].partition(".")[0]


class _Missing(Exception):
    """The name of a class or module that a library lacks."""


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


def _globals(module: ModuleType) -> set[str]:
    """Return the names in the functions of a module, global variables among them."""
    own = [value for value in vars(module).values() if getattr(value, "__module__", None) == module.__name__]
    return {name for value in own for function in _functions(value) for name in function.__code__.co_names}


def _loads(accesses: Iterable[_Access], receiver: str) -> set[str]:
    """Return the attributes of a receiver that are read."""
    return {each.name for each in accesses if each.receiver == receiver and not each.is_store}


@functools.cache
def _accesses(owner: type) -> list[_Access]:
    """Return the attributes in the methods of a class and of its bases in the same library."""
    library = _package(owner.__module__)
    return [
        _Access(name, *access)
        for each in owner.__mro__
        if _package(each.__module__) == library
        for name, value in vars(each).items()
        for function in _functions(value)
        for access in _accesses_in(function.__code__)
    ]


def _functions(value: Any) -> Iterator[FunctionType]:
    """Yield the functions behind a member of a class or module."""
    if isinstance(value, property):
        candidates = [value.fget, value.fset, value.fdel]
    else:  # a function, a static method or a class method, or a cached property
        candidates = [getattr(value, "__func__", getattr(value, "func", value))]
    for each in candidates:
        function = inspect.unwrap(each) if callable(each) else None
        if isinstance(function, FunctionType):
            yield function


def _accesses_in(code: CodeType) -> Iterator[tuple[str, str, bool]]:
    """Yield receiver, name and whether it is set, for every attribute in a function and in the functions within it.

    ``self.conn.state`` reads ``conn`` of ``self``, and ``state`` of ``conn``. Bytecode is there even without source.
    """
    receiver = ""
    for each in dis.get_instructions(code):
        if each.opname in ("LOAD_ATTR", "LOAD_METHOD", "STORE_ATTR"):
            yield receiver, each.argval, each.opname == "STORE_ATTR"
            receiver = each.argval
        elif "LOAD_FAST" in each.opname or each.opname == "LOAD_DEREF":
            # Python 3.13 and newer load two variables with one instruction.
            receiver = each.argval if isinstance(each.argval, str) else each.argval[-1]
        elif each.opname not in ("COPY", "EXTENDED_ARG"):
            receiver = ""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _accesses_in(constant)

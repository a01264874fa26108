"""Contracts that clients were made for, compared with the services of now: what breaks whom. Pure.

A contract file is JSON: ``format`` ("nuropb-contract/1"), ``client`` (a name, for the output), ``services`` as
``describe`` shows them, and ``topics`` (patterns). Members that are not known are ignored, so a file may say more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from ..exceptions import SettingsError
from ..topics import covers

__all__ = ["FORMAT", "Break", "ContractFile", "MethodContract", "breaks", "contract_of", "read_contract"]

FORMAT: Final = "nuropb-contract/1"
#: Bytes of a file.
MAX_SIZE: Final = 16 << 20
_ANY: Final = frozenset({"", "any", "Any", "object"})
#: Types that take the values of another one.
_WIDER: Final = frozenset({("int", "float"), ("list", "tuple"), ("tuple", "list"), ("list", "set"), ("tuple", "set")})


class ParameterContract(msgspec.Struct, omit_defaults=True):
    """A parameter: its type as NuroPb writes it, and its default."""

    type: str = "any"
    default: Any = None


class ParametersContract(msgspec.Struct, omit_defaults=True):
    """The parameters of a method, and the names of those that are required."""

    properties: dict[str, ParameterContract] = {}
    required: list[str] = []


class MethodContract(msgspec.Struct, omit_defaults=True):
    """A method."""

    parameters: ParametersContract = msgspec.field(default_factory=ParametersContract)


class ServiceContract(msgspec.Struct, omit_defaults=True):
    """A service."""

    version: Any = None
    methods: dict[str, MethodContract] = {}


class ContractFile(msgspec.Struct):
    """The services and topics that a client uses."""

    format: str = FORMAT
    client: str = ""
    services: dict[str, ServiceContract] = {}
    topics: list[str] = []


class Break(msgspec.Struct, frozen=True):
    """A difference: the client, the method or topic, and the fact. A warning breaks no client by itself."""

    client: str
    name: str
    fact: str
    is_warning: bool = False


def read_contract(data: bytes, name: str) -> ContractFile:
    """Read a contract file. Raises SettingsError, which names the file by ``name``, for anything else."""
    if len(data) > MAX_SIZE:
        raise SettingsError(f"{name}: {len(data)} bytes; expected at most {MAX_SIZE}")
    try:
        contract = msgspec.json.decode(data, type=ContractFile)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SettingsError(f"{name}: no contract ({error}); expected a file of 'contract export'") from None
    if contract.format != FORMAT:
        raise SettingsError(f"{name}: another format than {FORMAT}; expected a file of 'contract export'")
    contract.client = contract.client or name
    return contract


def contract_of(
    described: Mapping[str, Any], *, client: str = "", only: Iterable[str] = (), topics: Iterable[str] = ()
) -> ContractFile:
    """Make the contract of a client from the answer to ``describe``; ``only`` names the methods that it uses.

    Raises SettingsError for a method of ``only`` that is not described.
    """
    services = msgspec.convert(described["services"], type=dict[str, ServiceContract], strict=False)
    names = list(only)
    if names:
        chosen: dict[str, ServiceContract] = {}
        for name in names:
            service, _, method = name.rpartition(".")
            found = services.get(service)
            if found is None or method not in found.methods:
                raise SettingsError(f"{name}: no method that the token may call")
            kept = chosen.setdefault(service, ServiceContract(version=found.version))
            kept.methods[method] = found.methods[method]
        services = chosen
    return ContractFile(client=client, services=services, topics=list(topics))


def breaks(before: ContractFile, now: ContractFile) -> list[Break]:
    """Return the differences that break the client of ``before``, or may, in the order of its methods and topics."""
    return [*_services(before, now), *_topics(before, now)]


def _services(before: ContractFile, now: ContractFile) -> Iterator[Break]:
    for service, used in sorted(before.services.items()):
        found = now.services.get(service)
        if found is None:
            yield Break(before.client, service, "the service is gone, does not answer, or may not be called any more")
            continue
        for method, contract in sorted(used.methods.items()):
            name = f"{service}.{method}"
            if method not in found.methods:
                yield Break(before.client, name, "the method is gone, or may not be called any more")
                continue
            for fact, is_warning in _parameters(contract.parameters, found.methods[method].parameters):
                yield Break(before.client, name, fact, is_warning)


def _parameters(before: ParametersContract, now: ParametersContract) -> Iterator[tuple[str, bool]]:
    takes_any = "kwargs" in now.properties
    for name, used in sorted(before.properties.items()):
        found = now.properties.get(name)
        if found is None:
            if not takes_any and name not in ("args", "kwargs"):
                yield f"the parameter {name} is gone: calls that pass it fail", False
            continue
        if not _takes(found.type, used.type):
            yield f"the parameter {name} is {found.type}, and was {used.type}", False
        was_required, is_required = name in before.required, name in now.required
        if is_required and not was_required:
            yield f"the parameter {name} is required: calls without it fail", False
        elif not is_required and not was_required and found.default != used.default:
            yield f"the default of the parameter {name} is another one", True
    for name in now.required:
        if name not in before.properties:
            yield f"the new parameter {name} is required: all calls fail", False


def _takes(now: str, before: str) -> bool:
    return now == before or now in _ANY or (before, now) in _WIDER


def _topics(before: ContractFile, now: ContractFile) -> Iterator[Break]:
    for topic in before.topics:
        if not any(covers(pattern, topic) for pattern in now.topics):
            yield Break(before.client, topic, "the topic may not be subscribed to any more")

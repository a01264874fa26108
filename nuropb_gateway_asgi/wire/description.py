"""The descriptions that services give of themselves (``nuropb_describe``). Pure.

NuroPb has no registry and no push: the gateway asks for a description when a service is first called, and again once
the description is old. Only the description says which methods need encryption, so the first call to a service waits
for it.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

__all__ = [
    "CATCH_ALL",
    "FRESH_SECONDS",
    "MAX_AGE_SECONDS",
    "Description",
    "MethodInfo",
    "describe_for_clients",
    "parse_description",
]

#: A description older than this is renewed in the background when the service is called again.
MAX_AGE_SECONDS: Final = 60.0
#: A description older than this may lack a new method or have an old key, and a message under a wrong key makes a
#: nuropb 0.1.8 service fail for good.
FRESH_SECONDS: Final = 5.0
#: NuroPb describes ``*args`` and ``**kwargs`` like other parameters of any type; only their usual names differ.
CATCH_ALL: Final = frozenset({"args", "kwargs"})
_ANYTHING: Final = ("any", "Any")


class MethodInfo(Struct, frozen=True):
    """A method of a service. ``parameters`` is NuroPb's description of them, unchanged."""

    description: str | None = None
    requires_encryption: bool = False
    parameters: dict[str, Any] = {}


class Description(Struct, frozen=True):
    """The description of a service. ``methods`` is None when the service could not describe itself."""

    service: str
    fetched_at: float
    methods: dict[str, MethodInfo] | None = None
    description: str | None = None
    version: Any = None
    public_key: str | None = None
    #: Two descriptions in a row had different keys: the service has several instances, each with a key of its own. A
    #: message may reach any of them, and an instance with another key would fail for good.
    keys_differ: bool = False
    #: The service is a gateway, this one or another; its methods (send to users, revoke) are for services.
    is_gateway: bool = False

    @property
    def encrypts(self) -> bool:
        """Whether some method requires encryption."""
        return self.methods is not None and any(method.requires_encryption for method in self.methods.values())


class _Described(Struct):
    methods: dict[str, MethodInfo]
    description: str | None = None
    service_version: Any = None
    public_key: str | None = None
    #: Any: a service that puts something else there can still be described.
    nuropb_gateway: Any = None


_decode = msgspec.json.Decoder(_Described).decode


def parse_description(service: str, result: bytes | Raw, fetched_at: float) -> Description:
    """Read the result of ``nuropb_describe``. An unreadable one makes a description without methods."""
    try:
        described = _decode(result)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Description(service, fetched_at)
    return Description(
        service,
        fetched_at,
        methods={name: info for name, info in described.methods.items() if not name.startswith("_")},
        description=described.description,
        version=described.service_version,
        public_key=described.public_key,
        is_gateway=described.nuropb_gateway is True,
    )


def describe_for_clients(description: Description, methods: list[str]) -> dict[str, Any]:
    """Return the part of a description that is about ``methods``, in the shape for clients.

    NuroPb lists properties as pairs and calls ``*args`` and ``**kwargs`` required. Here properties are an object, and
    parameters with these two names are optional.
    """
    infos = description.methods or {}
    return {
        "description": description.description,
        "version": description.version,
        "methods": {
            name: {
                "description": infos[name].description,
                "parameters": _parameters(infos[name].parameters),
                "requires_encryption": infos[name].requires_encryption,
            }
            for name in methods
        },
    }


def _parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    listed = parameters.get("properties")
    pairs = listed.items() if isinstance(listed, dict) else listed if isinstance(listed, list) else ()
    names = parameters.get("required")
    required = []
    properties: dict[str, Any] = {}
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            continue
        name, spec = pair[0], pair[1] if isinstance(pair[1], dict) else {}
        properties[name] = {"type": spec.get("type") or "any"}
        if name in CATCH_ALL and properties[name]["type"] in _ANYTHING:
            continue
        if isinstance(names, list) and name in names:
            required.append(name)
        else:
            properties[name]["default"] = spec.get("default")
    return {"type": "object", "properties": properties, "required": required}

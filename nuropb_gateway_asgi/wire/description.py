"""What the services of the mesh say of themselves (``nuropb_describe``), kept for a while. Pure.

NuroPb has no registry and no push: a description is asked for when a service is first called and again once it is
old. Which methods need encryption is known from nowhere else, so the first call to a service waits for it.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

__all__ = [
    "FRESH_SECONDS",
    "MAX_AGE_SECONDS",
    "Description",
    "MethodInfo",
    "describe_for_clients",
    "parse_description",
]

#: After this a description is renewed, in the background, when the service is called again.
MAX_AGE_SECONDS: Final = 60.0
#: A method that is not in a description older than this may have come since, and a key may have changed: a message
#: under a wrong key makes a nuropb 0.1.8 service fail for good.
FRESH_SECONDS: Final = 5.0
#: By their usual names alone can ``*args`` and ``**kwargs`` be told from other parameters that may be anything.
_CATCH_ALL: Final = ("args", "kwargs")
_ANYTHING: Final = ("any", "Any")


class MethodInfo(Struct, frozen=True):
    """One method. ``parameters`` is NuroPb's description of them, as it came."""

    description: str | None = None
    requires_encryption: bool = False
    parameters: dict[str, Any] = {}


class Description(Struct, frozen=True):
    """One service. ``methods`` is None when the service could not describe itself: then nothing is known of it."""

    service: str
    fetched_at: float
    methods: dict[str, MethodInfo] | None = None
    description: str | None = None
    version: Any = None
    public_key: str | None = None
    #: Two descriptions in a row had different keys: several instances, each with one of its own. Which of them a
    #: message gets to cannot be said, and the wrong one would fail for good.
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
    """A description from the result of ``nuropb_describe``; one without methods if it cannot be read."""
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
    """The part of a description that names ``methods``, in the shape in which clients get it.

    NuroPb lists properties as pairs and calls ``*args`` and ``**kwargs`` required; here they are an object, and what
    takes anything is required by nobody, as far as its name tells.
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
        if name in _CATCH_ALL and properties[name]["type"] in _ANYTHING:
            continue
        if isinstance(names, list) and name in names:
            required.append(name)
        else:
            properties[name]["default"] = spec.get("default")
    return {"type": "object", "properties": properties, "required": required}

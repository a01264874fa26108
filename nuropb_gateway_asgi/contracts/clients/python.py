"""The module for Python. It uses ``nuropb_gateway_asgi.client``."""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Collection
from typing import Final

from .model import Method, Model, Parameter, Service, Types, comment_lines, distinct, service_text, words_of

__all__ = ["write_python"]

_TYPES: Final = {
    "integer": "int",
    "number": "float",
    "string": "str",
    "boolean": "bool",
    "array": "Sequence[Any]",
    "object": "Mapping[str, Any]",
    "null": "None",
}
_LINE_LENGTH: Final = 120
#: What annotations within a class are made of. A method of such a name would hide it from those that follow.
_HIDEABLE: Final = ("Any", "CallOptions", "Mapping", "Sequence", "bool", "float", "int", "str")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HEAD: Final = '''\
"""A client of a NuroPb gateway%s, made by ``nuropb-gateway gen-client --lang py``.

It is for whoever had the token that it was made with. Make it anew instead of changing it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypedDict

from nuropb_gateway_asgi.client import Client, GatewayEvent, Subscription

#: The topic patterns that may be subscribed to; what one of them covers may be as well.
TOPICS: Final[tuple[str, ...]] = %s
%s

class CallOptions(TypedDict, total=False):
    """How a call is to be made; see ``Client.request``."""

    timeout: float | None
    idempotent: bool
    retries: int
    trace_id: str | None


class _Unset(enum.Enum):
    UNSET = "unset"


_UNSET: Final = _Unset.UNSET


def _given(params: Mapping[str, object]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not _UNSET}
'''
_GATEWAY: Final = '''\
class Gateway:
    """All services, by one client: ``async with connect(url, token=token) as client: Gateway(client)``."""

    def __init__(self, client: Client) -> None:
        self.client = client
%(assignments)s
    async def command(
        self, service: str, method: str, params: Mapping[str, Any] | None = None, options: CallOptions | None = None
    ) -> None:
        """Call a method for its effect: returns once the mesh has taken the command, not when it has run."""
        await self.client.command(service, method, params, **(options or CallOptions()))

    def subscribe(
        self,
        topics: str | Sequence[str],
        callback: Callable[[GatewayEvent], object] | None = None,
        *,
        buffer: int = 1000,
    ) -> Subscription:
        """Receive events, by a callback or by iterating over the result."""
        return self.client.subscribe(topics, callback, buffer=buffer)
'''


def write_python(model: Model) -> str:
    """The module's text."""
    names = [service.name for service in model.services]
    classes = distinct(names, _pascal)
    attributes = distinct(names, _snake, ("client", "command", "subscribe", *keyword.kwlist))
    hidden = sorted({each.name for service in model.services for each in service.methods}.intersection(_HIDEABLE))
    topics = ", ".join(map(_string, model.topics)) + ("," if len(model.topics) == 1 else "")
    version = f" {model.version}" if re.fullmatch(r"[\w.+-]+", model.version) else ""
    aliases = "".join(f"_{name} = {name}\n" for name in hidden if name != "CallOptions")
    parts = [_HEAD % (version, f"({topics})", aliases)]
    if "CallOptions" in hidden:
        parts[0] += "\n\n_CallOptions = CallOptions\n"
    parts += [_class(service, classes[service.name]) for service in model.services]
    assignments = "".join(f"        self.{attributes[name]} = {classes[name]}(client)\n" for name in names)
    parts.append(_GATEWAY % {"assignments": assignments})
    return "\n\n".join(parts)


def _pascal(name: str) -> str:
    text = "".join(word[0].upper() + word[1:] for word in words_of(name))
    return f"{'_' if text[:1].isdigit() else ''}{text or '_'}Service"


def _snake(name: str) -> str:
    text = "_".join(word.lower() for word in words_of(name))
    return f"{'_' if text[:1].isdigit() else ''}{text or '_'}"


def _string(text: str) -> str:
    # JSON's escapes are Python's, but for a pair of surrogates, which are one character here.
    return json.dumps(text) if text.isascii() else repr(text)


def _doc(text: str, indent: str) -> str:
    lines = [line.replace("\\", "\\\\").replace('"""', '\\"\\"\\"') for line in comment_lines(text)]
    if not lines:
        return ""
    if lines[-1].endswith('"'):
        lines[-1] += " "
    if len(lines) == 1:
        return f'{indent}"""{lines[0]}"""\n'
    inner = "".join(f"{indent}{line}".rstrip() + "\n" for line in lines[1:])
    return f'{indent}"""{lines[0]}\n{inner}{indent}"""\n'


def _class(service: Service, name: str) -> str:
    methods = distinct((each.name for each in service.methods), str, keyword.kwlist)
    hidden = {each.name for each in service.methods}.intersection(_HIDEABLE)
    text = [f"class {name}:\n{_doc(service_text(service), '    ')}\n"]
    text.append("    def __init__(self, client: Client) -> None:\n        self._client = client\n")
    text += [f"\n{_method(service.name, each, methods[each.name], hidden)}" for each in service.methods]
    return "".join(text)


def _method(service: str, method: Method, name: str, hidden: Collection[str]) -> str:
    arguments = distinct((each.name for each in method.parameters), _argument, ("self", *keyword.kwlist))
    any_, options = _known("Any", hidden), _known("CallOptions", hidden)
    signature = ["self", f"_options: {options} | None = None", "/"]
    if arguments:
        signature += ["*", *(_parameter(each, arguments[each.name], hidden) for each in method.parameters)]
    if method.is_open:
        signature.append(f"**_more: {any_}")
    line = f"    async def {name}({', '.join(signature)}) -> {any_}:\n"
    if len(line) > _LINE_LENGTH:
        inner = "".join(f"        {each},\n" for each in signature)
        line = f"    async def {name}(\n{inner}    ) -> {any_}:\n"
    given = [f"{_string(each.name)}: {arguments[each.name]}" for each in method.parameters]
    given += ["**_more"] if method.is_open else []
    params = f"        _params = _given({{{', '.join(given)}}})\n"
    if len(params) > _LINE_LENGTH:
        inner = "".join(f"                {each},\n" for each in given)
        params = f"        _params = _given(\n            {{\n{inner}            }}\n        )\n"
    called = f"{_string(service)}, {_string(method.name)}, {'_params' if given else '{}'}"
    doc, params = _doc(method.description, "        "), params if given else ""
    return f"{line}{doc}{params}        return await self._client.request({called}, **(_options or CallOptions()))\n"


def _argument(name: str) -> str:
    word = name if _NAME.fullmatch(name) else "".join(c if c.isascii() and c.isalnum() else "_" for c in name)
    # An underscore in front is for what is not the service's.
    return f"arg{word}" if word.startswith("_") or word[:1].isdigit() else word


def _parameter(parameter: Parameter, name: str, hidden: Collection[str]) -> str:
    type_ = _union(parameter.types, hidden)
    return f"{name}: {type_}" if parameter.required else f"{name}: {type_} | _Unset = _UNSET"


def _union(types: Types, hidden: Collection[str]) -> str:
    spelled = dict.fromkeys(_TYPES[each] for each in types) or ("Any",)
    return " | ".join(re.sub(r"[A-Za-z]+", lambda match: _known(match[0], hidden), each) for each in spelled)


def _known(name: str, hidden: Collection[str]) -> str:
    return f"_{name}" if name in hidden else name

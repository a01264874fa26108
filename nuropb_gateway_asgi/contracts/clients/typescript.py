"""The module for TypeScript. Its types are those of ``nuropb-gateway-client``."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Final

from .model import Method, Model, Parameter, Service, Types, comment_lines, distinct, service_text, words_of

__all__ = ["write_typescript"]

_TYPES: Final = {
    "integer": "number",
    "number": "number",
    "string": "string",
    "boolean": "boolean",
    "array": "readonly unknown[]",
    "object": "Record<string, unknown>",
    "null": "null",
}
#: Names that mean something in every class. An object with a `then` is taken for a promise.
_NO_MEMBERS: Final = frozenset(
    {
        "constructor",
        "then",
        "toString",
        "toLocaleString",
        "toJSON",
        "valueOf",
        "hasOwnProperty",
        "isPrototypeOf",
        "propertyIsEnumerable",
    }
)
#: Wildcards for any number of words in one pattern, of which each is written out with and without.
_MAX_ALTERNATIVES: Final = 4
_IDENTIFIER = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*")
_HEAD: Final = """\
// A client of a NuroPb gateway%s, made by `nuropb-gateway gen-client --lang ts`.
// It is for whoever had the token that it was made with. Make it anew instead of changing it.

import type { CallOptions, Client, GatewayEvent, SubscribeOptions, Subscription } from "nuropb-gateway-client";
"""
_GATEWAY: Final = """\
/** All services, by one client: `new Gateway(connect(url, { getToken }))`. */
export class Gateway {
  readonly client: Client;
%(fields)s
  constructor(client: Client) {
    this.client = client;
%(assignments)s  }

  /** Call a method for its effect: fulfilled once the mesh has taken the command, not when it has run. */
  command<Service extends keyof Params, Method extends keyof Params[Service] & string>(
    service: Service,
    method: Method,
    params: Params[Service][Method] & object,
    options?: CallOptions,
  ): Promise<void> {
    return this.client.command(service, method, params, options);
  }

  /** Receive events, by a callback or by iterating over the result. */
  subscribe<Event = unknown>(
    topics: Topic | readonly Topic[],
    callback?: ((event: GatewayEvent<Event>) => void) | null,
    options?: SubscribeOptions,
  ): Subscription<Event> {
    return this.client.subscribe<Event>(topics, callback, options);
  }
}
"""


def write_typescript(model: Model) -> str:
    """The module's text."""
    names = [service.name for service in model.services]
    classes = distinct(names, _pascal)
    fields = distinct(names, _camel, {"client", "command", "subscribe", *_NO_MEMBERS})
    parts = [_HEAD % (f" {model.version}" if re.fullmatch(r"[\w.+-]+", model.version) else ""), _topics(model.topics)]
    for service in model.services:
        parts += (_params(service, classes[service.name]), _class(service, classes[service.name]))
    members = "".join(f"  {json.dumps(name)}: {classes[name].removesuffix('Service')}Params;\n" for name in names)
    about = "/** The parameters of all methods, by service and method. */"
    parts.append(f"{about}\nexport interface Params {{\n{members}}}\n")
    parts.append(
        _GATEWAY
        % {
            "fields": "".join(f"  readonly {fields[name]}: {classes[name]};\n" for name in names),
            "assignments": "".join(f"    this.{fields[name]} = new {classes[name]}(client);\n" for name in names),
        }
    )
    return "\n".join(parts)


def _pascal(name: str) -> str:
    text = "".join(word[0].upper() + word[1:] for word in words_of(name))
    return f"{'_' if text[:1].isdigit() else ''}{text or '_'}Service"


def _camel(name: str) -> str:
    text = _pascal(name).removesuffix("Service")
    return text[0].lower() + text[1:]


def _doc(text: str, indent: str = "") -> str:
    lines = [line.replace("*/", "*\\/") for line in comment_lines(text)]
    if not lines:
        return ""
    if len(lines) == 1:
        return f"{indent}/** {lines[0]} */\n"
    inner = "".join(f"{indent} * {line}".rstrip() + "\n" for line in lines)
    return f"{indent}/**\n{inner}{indent} */\n"


# --- topics -------------------------------------------------------------------------------------------------------


def _topics(topics: tuple[str, ...]) -> str:
    alternatives = list(dict.fromkeys(each for topic in topics for each in _alternatives(topic)))
    # What is within `string` needs no mention; and a type of nothing is `never`.
    listed = ["string"] if "string" in alternatives else alternatives or ["never"]
    known = ", ".join(json.dumps(topic) for topic in topics)
    return (
        "/** The topic patterns that may be subscribed to; what one of them covers may be as well. */\n"
        f"export const TOPICS: readonly Topic[] = [{known}];\n"
        f"export type Topic = {' | '.join(listed)};\n"
    )


def _alternatives(pattern: str) -> Iterator[str]:
    """The types of topics and patterns that are within ``pattern``: each # is there or not."""
    words = pattern.split(".")
    if words.count("#") > _MAX_ALTERNATIVES:  # each doubles them
        yield "string"
        return
    choices = [((word,), ()) if word == "#" else ((word,),) for word in words]
    for chosen in itertools.product(*choices):
        left = [word for part in chosen for word in part]
        if left in (["#"], ["*"]):
            yield "string"
        elif any(word in ("#", "*") for word in left):
            yield "`" + ".".join("${string}" if word in ("#", "*") else _literal(word) for word in left) + "`"
        elif left:
            yield json.dumps(".".join(left))


def _literal(word: str) -> str:
    return json.dumps(word)[1:-1].replace('\\"', '"').replace("`", "\\`").replace("$", "\\$")


# --- services -----------------------------------------------------------------------------------------------------


def _params(service: Service, name: str) -> str:
    members = "".join(f"{_doc(each.description, '  ')}  {each.name}: {_type(each)};\n" for each in service.methods)
    lines = f"/** The parameters of the methods of {_shown(service.name)}. */"
    return f"{lines}\nexport interface {name.removesuffix('Service')}Params {{\n{members}}}\n"


def _shown(name: str) -> str:
    return name.replace("*/", "*\\/")


def _type(method: Method) -> str:
    members = "; ".join(_member(each) for each in method.parameters)
    if not method.is_open:
        return f"{{ {members} }}" if members else "Record<string, unknown>"
    return f"{{ {members} }} & Record<string, unknown>" if members else "Record<string, unknown>"


def _member(parameter: Parameter) -> str:
    name = parameter.name if _IDENTIFIER.fullmatch(parameter.name) else json.dumps(parameter.name)
    return f"{name}{'' if parameter.required else '?'}: {_union(parameter.types)}"


def _union(types: Types) -> str:
    return " | ".join(dict.fromkeys(_TYPES[each] for each in types)) or "unknown"


def _class(service: Service, name: str) -> str:
    methods = distinct((each.name for each in service.methods), str, _NO_MEMBERS)
    params = f"{name.removesuffix('Service')}Params"
    text = [f"{_doc(service_text(service))}export class {name} {{\n"]
    text.append("  readonly #client: Client;\n\n  constructor(client: Client) {\n    this.#client = client;\n  }\n")
    for each in service.methods:
        empty = "" if any(parameter.required for parameter in each.parameters) else " = {}"
        called = f"{json.dumps(service.name)}, {json.dumps(each.name)}, params, options"
        text.append(
            f"\n{_doc(each.description, '  ')}"
            f'  {methods[each.name]}<Result = unknown>(params: {params}["{each.name}"]{empty}, options?: CallOptions)'
            f": Promise<Result> {{\n    return this.#client.request<Result>({called});\n  }}\n"
        )
    return "".join([*text, "}\n"])

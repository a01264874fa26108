from __future__ import annotations

import itertools
import json
import math
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Raw

from nuropb_gateway_asgi import protocol
from nuropb_gateway_asgi.exceptions import ProtocolError
from nuropb_gateway_asgi.protocol import (
    PING,
    SUBPROTOCOL,
    Ack,
    Authorize,
    Cancel,
    ClientFrame,
    CloseCode,
    Command,
    Decoder,
    Describe,
    ErrorCode,
    Failure,
    Glance,
    Ping,
    Pong,
    Request,
    Resume,
    Subscribe,
    Unsubscribe,
    check_limits,
    encode_call,
    encode_error,
    encode_event,
    encode_failure,
    encode_json,
    encode_pong,
    encode_response,
    encode_subscribe,
    encode_topics,
    nests_deeper,
    on_one_line,
)

FRAMES = {
    "request": Request,
    "command": Command,
    "describe": Describe,
    "subscribe": Subscribe,
    "unsubscribe": Unsubscribe,
    "cancel": Cancel,
    "authorize": Authorize,
    "resume": Resume,
    "ack": Ack,
    "ping": Ping,
    "pong": Pong,
}
TYPES = f"type: must be one of {', '.join(FRAMES)}"
ID = "payload.id: must be 1 to 64 printable ASCII characters"
TRACE_ID = "payload.trace_id: must be at most 128 printable characters"
SERVICE = "payload.service: must be 1 to 255 printable ASCII characters without spaces"
METHOD = "payload.method: must be a name of at most 255 ASCII letters, digits and underscores"
PRIVATE = "payload.method: names that start with an underscore are private to the service"
TIMEOUT = "payload.timeout: must be greater than 0 seconds"
CALL = {"service": "orders", "method": "get"}


def frame(kind: Any, payload: Any) -> str:
    return json.dumps({"type": kind, "payload": payload})


def call(**members: Any) -> str:
    return frame("request", CALL | members)


def request_with_params(params: str) -> str:
    return f'{{"type":"request","payload":{{"service":"s","method":"m","params":{params}}}}}'


def refusal(data: str | bytes, **limits: int) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        Decoder(**limits).decode(data)
    return caught.value


def attempt(data: str | bytes, **limits: int) -> ClientFrame | ProtocolError:
    try:
        return Decoder(**limits).decode(data)
    except ProtocolError as error:
        return error


# --- a plain reference for the limits ---------------------------------------------------------------------------


class NotAllowed(Exception):
    pass


def _integer(text: str) -> int:
    if len(text) > 128 or not (-(2**63) <= int(text) < 2**64 or int(text) == int(Decimal(repr(float(text))))):
        raise NotAllowed
    return int(text)


def _number(text: str) -> float:
    if len(text) > 128 or math.isinf(float(text)):
        raise NotAllowed
    return float(text)


def _constant(text: str) -> float:
    raise NotAllowed


def _depth(value: Any) -> int:
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


def is_within_limits(text: str | bytes, max_depth: int) -> bool:
    """Check every number and every level, slowly and plainly, also in members that are given twice."""
    try:
        value = json.loads(
            text,
            object_pairs_hook=lambda pairs: [member for _, member in pairs],
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_constant,
        )
    except NotAllowed:
        return False
    return _depth(value) <= max_depth


def same(one: Any, other: Any) -> bool:
    """Compare as JSON, because True equals 1 in Python."""
    return json.dumps(one) == json.dumps(other)


def decode(data: str | bytes, max_depth: int = 32) -> ClientFrame | None:
    """Decode ``data``, and check all promises for accepted and for refused frames."""
    accepted = attempt(data, max_depth=max_depth)
    if isinstance(accepted, ProtocolError):
        assert accepted.description
        assert accepted.description.isprintable()
        assert str(accepted) == accepted.description
        return None
    assert is_within_limits(data, max_depth)
    sent = json.loads(data)
    assert type(accepted) is FRAMES[sent["type"]]
    payload = sent.get("payload", {})
    if isinstance(accepted, Ping):
        assert same(json.loads(bytes(accepted.payload) or b"{}"), payload)
    elif not isinstance(accepted, Pong):
        for name in accepted.__struct_fields__:
            value = getattr(accepted, name)
            if name == "params":
                params = json.loads(bytes(value))
                assert isinstance(params, dict)
                assert same(params, payload.get("params", {}))
            else:
                assert value == payload.get(name, 0 if name == "received" else None)
    return accepted


# --- frames from a client ---------------------------------------------------------------------------------------

ACCEPTED = [
    # text, the members of the frame that are not the default
    (frame("request", CALL), Request, {"service": "orders", "method": "get"}),
    (
        '{"type":"request","payload":{"service":"a.b","method":"c_1","params":{"x":[1]},"id":"7","trace_id":"t é",'
        '"timeout":2}}',
        Request,
        {"service": "a.b", "method": "c_1", "params": b'{"x":[1]}', "id": "7", "trace_id": "t é", "timeout": 2.0},
    ),
    (frame("command", CALL | {"id": "i d"}), Command, {"service": "orders", "method": "get", "id": "i d"}),
    ('{"type":"describe"}', Describe, {}),
    (frame("describe", {"service": "orders", "id": "7"}), Describe, {"service": "orders", "id": "7"}),
    (frame("subscribe", {"topics": []}), Subscribe, {"topics": []}),
    (frame("subscribe", {"topics": ["a.*", "#"], "id": "7"}), Subscribe, {"topics": ["a.*", "#"], "id": "7"}),
    (frame("unsubscribe", {"topics": ["a.*"]}), Unsubscribe, {"topics": ["a.*"]}),
    (frame("cancel", {"id": "7"}), Cancel, {"id": "7"}),
    (frame("authorize", {"token": "abc", "trace_id": ""}), Authorize, {"token": "abc", "trace_id": ""}),
    ('{"type":"ping"}', Ping, {"payload": b""}),
    ('{"type":"ping","payload":null}', Ping, {"payload": b"null"}),
    ('{"type":"ping", "payload" : [1, 2] }', Ping, {"payload": b"[1, 2]"}),
    ('{"type":"pong"}', Pong, {}),
    ('{"type":"pong","payload":{"any":1}}', Pong, {}),
]


@pytest.mark.parametrize(("text", "kind", "members"), ACCEPTED)
@pytest.mark.parametrize("encoded", [False, True])
def test_a_frame_is_decoded_to_its_struct(text: str, kind: type, members: dict[str, Any], encoded: bool) -> None:
    accepted = Decoder().decode(text.encode() if encoded else text)
    assert type(accepted) is kind
    expected = {"params": b"{}"} if kind in (Request, Command) else {}
    found = {name: getattr(accepted, name) for name in accepted.__struct_fields__}
    found = {name: bytes(value) if isinstance(value, Raw) else value for name, value in found.items()}
    assert {name: value for name, value in found.items() if value is not None} == expected | members


@pytest.mark.parametrize(
    "payload",
    [
        CALL | {"context": {"user_id": "root"}, "correlation_id": "c", "reply_to": "q", "encrypted": True},
        CALL | {"token": "t", "topics": ["#"], "headers": {"nuropb_type": "event"}},
    ],
)
def test_members_that_a_client_may_not_set_are_ignored(payload: dict[str, Any]) -> None:
    accepted = decode(frame("request", payload))
    assert accepted == Request("orders", "get", Raw(b"{}"))
    decoded = json.loads(frame("request", payload)) | {"context": 1, "correlation_id": 2}
    assert decode(json.dumps(decoded)) == accepted


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        ('"params":{"a":1}', '"params":{"b":2}', b'{"b":2}'),
        ('"params":{"a":1}', '"par\\u0061ms":{"b":2}', b'{"b":2}'),
        ('"params":[]', '"params":{}', b"{}"),
    ],
)
def test_of_a_member_that_is_given_twice_the_last_one_counts(first: str, second: str, kept: bytes) -> None:
    accepted = decode(f'{{"type":"request","payload":{{"service":"s","method":"m",{first},{second}}}}}')
    assert isinstance(accepted, Request)
    assert bytes(accepted.params) == kept


def test_a_frame_of_two_types_is_refused() -> None:
    for one, other in itertools.permutations(FRAMES, 2):
        payload = '"payload":{"service":"s","method":"m","topics":[],"id":"1","token":"t","received":1}'
        assert refusal(f'{{"type":"{one}",{payload},"type":"{other}"}}').description == TYPES
        assert refusal(f'{{{payload},"type":"{one}","type":"{other}"}}').description == TYPES


def test_spaces_and_the_order_of_members_do_not_matter() -> None:
    text = ' {\t"payload" :\r\n{ "method":"m" , "params" : {"a" : 1 } ,"service":"s"} , "type" : "request" } '
    accepted = decode(text)
    assert isinstance(accepted, Request)
    assert bytes(accepted.params) == b'{"a" : 1 }'


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "{", '{"type":"pi', "not json", '{"type":"ping"} x', '{"type":"ping"}{}', '\ufeff{"type":"ping"}'),
        *(f'{{"type":"ping","payload":{value}}}' for value in ("NaN", "-Infinity", "01", "1.", "'a'", '"\\x"', "[1,]")),
        *(f'{{"type":"ping","payload":"{value}"}}' for value in ("\\ud800", "\n", "\0", "\\ud800\\u0041", "\\")),
        '{"type":"ping","ignored":nan}',
        '{"type":"request","payload":{"service":"s","method":"m","params":{"a":Infinity}}}',
    ],
)
def test_invalid_json_is_refused(text: str) -> None:
    description = refusal(text).description
    assert description.startswith("Error decoding JSON: ")
    assert description[21:22].islower()
    assert decode(text.encode()) is None


REFUSED = [
    # text, description
    ("null", "Not a frame: expected object, got null"),
    ("5", "Not a frame: expected object, got int"),
    ('"request"', "Not a frame: expected object, got str"),
    ("[]", "Not a frame: expected object, got array"),
    ("{}", "Not a frame: object missing required field type"),
    ('{"type":null}', TYPES),
    ('{"type":5}', TYPES),
    ('{"type":"response"}', TYPES),
    ('{"type":"Request"}', TYPES),
    ('{"type":["request"]}', TYPES),
    *((f'{{"type":"{kind}"}}', "Not a frame: object missing required field payload") for kind in list(FRAMES)[:2]),
    *((f'{{"type":"{kind}"}}', "Not a frame: object missing required field payload") for kind in list(FRAMES)[3:7]),
    *((frame(kind, None), "payload: expected object, got null") for kind in list(FRAMES)[:7]),
    *((frame(kind, [1]), "payload: expected object, got array") for kind in list(FRAMES)[:7]),
    *((frame(kind, {"method": "m"}), "payload: object missing required field service") for kind in list(FRAMES)[:2]),
    *((frame(kind, {"service": "s"}), "payload: object missing required field method") for kind in list(FRAMES)[:2]),
    (frame("subscribe", {}), "payload: object missing required field topics"),
    (frame("unsubscribe", {}), "payload: object missing required field topics"),
    (frame("cancel", {}), "payload: object missing required field id"),
    (frame("authorize", {}), "payload: object missing required field token"),
    # ill-typed members
    (call(service=5), "payload.service: expected str, got int"),
    (call(service=None), "payload.service: expected str, got null"),
    (call(method=["get"]), "payload.method: expected str, got array"),
    (call(id=7), "payload.id: expected str | null, got int"),
    (call(trace_id={}), "payload.trace_id: expected str | null, got object"),
    (call(timeout="5"), "payload.timeout: expected float | null, got str"),
    (call(timeout=True), "payload.timeout: expected float | null, got bool"),
    (frame("cancel", {"id": None}), "payload.id: expected str, got null"),
    (frame("authorize", {"token": 5}), "payload.token: expected str, got int"),
    (frame("describe", {"service": []}), "payload.service: expected str | null, got array"),
    (frame("subscribe", {"topics": "a"}), "payload.topics: expected array, got str"),
    (frame("subscribe", {"topics": ["a", 5]}), "payload.topics[1]: expected str, got int"),
    # params
    *((request_with_params(text), "payload.params: expected object") for text in ("null", "[]", '"{}"', "1", "true")),
    (frame("command", CALL | {"params": [{}]}), "payload.params: expected object"),
    # names
    (call(service=""), SERVICE),
    (call(service="a b"), SERVICE),
    (call(service="é"), SERVICE),
    (call(service="a\n"), SERVICE),
    (call(service="a" * 256), SERVICE),
    (frame("describe", {"service": ""}), SERVICE),
    (frame("describe", {"service": "a b"}), SERVICE),
    (call(method=""), METHOD),
    (call(method="a.b"), METHOD),
    (call(method="a-b"), METHOD),
    (call(method="1a"), METHOD),
    (call(method="é"), METHOD),
    (call(method="ᵃ"), METHOD),
    (call(method="a\n"), METHOD),
    (call(method="a" * 256), METHOD),
    (call(method="_"), PRIVATE),
    (call(method="_handle_event_"), PRIVATE),
    (call(method="__class__"), PRIVATE),
    (frame("command", CALL | {"method": "_start"}), PRIVATE),
    # ids
    (call(id=""), ID),
    (call(id="a" * 65), ID),
    (call(id="é"), ID),
    (call(id="a\n"), ID),
    (call(id="a\x7f"), ID),
    (frame("cancel", {"id": ""}), ID),
    (frame("subscribe", {"topics": [], "id": ""}), ID),
    (call(trace_id="a" * 129), TRACE_ID),
    (call(trace_id="a\r"), TRACE_ID),
    (call(trace_id="a\u202e"), TRACE_ID),
    (frame("authorize", {"token": "t", "trace_id": "\0"}), TRACE_ID),
    # times
    (call(timeout=0), TIMEOUT),
    (call(timeout=-1.5), TIMEOUT),
    (call(timeout=-0.0), TIMEOUT),
    ('{"type":"request","payload":{"service":"s","method":"m","timeout":1e-999}}', TIMEOUT),
    (
        '{"type":"request","payload":{"service":"s","method":"m","timeout":1e999}}',
        "payload.timeout: number out of range",
    ),
    # topics
    (frame("subscribe", {"topics": [""]}), "payload.topics: empty"),
    (frame("subscribe", {"topics": ["a", "b*"]}), "payload.topics: a word that mixes * or # with other characters"),
    (frame("unsubscribe", {"topics": ["a" * 256]}), "payload.topics: longer than 255 bytes"),
    (frame("subscribe", {"topics": ["a"] * 101}), "payload.topics: more than 100"),
    (frame("unsubscribe", {"topics": [""] * 101}), "payload.topics: more than 100"),
    # limits
    (
        request_with_params('{"a":%s}' % ("[" * 30 + "]" * 30)),
        "Error decoding JSON: nested more than 32 levels deep",
    ),
    (request_with_params('{"a":18446744073709551616}'), "Error decoding JSON: an integer does not fit 64 bits"),
    (request_with_params('{"a":-9223372036854775809}'), "Error decoding JSON: an integer does not fit 64 bits"),
    (request_with_params('{"a":1e999}'), "Error decoding JSON: a number is out of range"),
    (request_with_params('{"a":0.%s}' % ("1" * 127)), "Error decoding JSON: a number has more than 128 characters"),
    (f'{{"type":"ping","payload":{2**64}}}', "Error decoding JSON: an integer does not fit 64 bits"),
    ('{"type":"pong","ignored":[1E+400]}', "Error decoding JSON: a number is out of range"),
]


NO_TEXT = [
    r'{"type":"request","payload":{"id":"7","service":"s","method":"m","params":{"a":"ok \ud83d"}}}',
    r'{"type":"request","payload":{"id":"7","service":"s","method":"m","params":{"\udc00":1}}}',
    r'{"type":"request","payload":{"id":"7","service":"s\ud83d","method":"m"}}',
    r'{"type":"request","payload":{"id":"7","trace_id":"\ud83d","service":"s","method":"m"}}',
    r'{"type":"subscribe","payload":{"id":"7","topics":["a.\ud83d"]}}',
    '{"type":"request","payload":{"id":"7","service":"s","method":"m","params":{"a":"\ud83d"}}}',
]


@pytest.mark.parametrize("text", NO_TEXT)
def test_a_string_that_is_no_text_does_not_hide_the_id(text: str) -> None:
    assert refusal(text).id == "7"


@pytest.mark.parametrize("number", ["100000000000000000000", "-100000000000000000000", "36893488147419103000", "1e+21"])
def test_a_finite_double_is_accepted_as_javascript_writes_it(number: str) -> None:
    request = decode(request_with_params(f'{{"a":{number}}}'))
    assert isinstance(request, Request)
    assert bytes(request.params) == b'{"a":%b}' % number.encode()


@pytest.mark.parametrize(("text", "description"), REFUSED)
def test_an_invalid_frame_is_refused_with_the_name_of_the_field(text: str, description: str) -> None:
    assert refusal(text).description == description
    assert decode(text.encode(errors="surrogatepass")) is None


@pytest.mark.parametrize(
    "data",
    [
        b"\xff",
        b'{"type":"ping","payload":"\xff"}',
        '{"type":"ping","payload":"\ud800"}'.encode(errors="surrogatepass"),
        b'{"type":"ping","payload":"\xc0\x80"}',  # an overlong NUL
        b'{"type":"request","payload":{"service":"s","method":"m","params":{"\xff":1}}}',
        '{"type":"ping"}'.encode("utf-16"),
    ],
)
def test_invalid_utf8_is_refused_also_in_params(data: bytes) -> None:
    assert refusal(data).description == "Error decoding JSON: not valid UTF-8"
    assert refusal(data.decode(errors="surrogateescape")).description.startswith("Error decoding JSON: ")


LONGEST = [
    # the longest accepted text
    call(service="a" * 255),
    call(method="a" * 255),
    call(id="~" * 64),
    call(trace_id="é" * 128),
    call(timeout=5e-324),
    call(timeout=1.7976931348623157e308),
    frame("subscribe", {"topics": ["a" * 255]}),
    frame("subscribe", {"topics": ["a"] * 100}),
    request_with_params('{"a":%s}' % ("[" * 29 + "]" * 29)),
    request_with_params('{"a":[18446744073709551615,-9223372036854775808]}'),
    request_with_params('{"a":[1e308,-1E+308,1e-999,0e999,1e0000000000000000000000000008]}'),
    request_with_params('{"a":0.%s}' % ("1" * 126)),
]


@pytest.mark.parametrize("text", LONGEST)
def test_a_limit_itself_is_allowed(text: str) -> None:
    assert decode(text) is not None


DEEP = 100_000


@pytest.mark.parametrize(
    ("template", "description"),
    [
        ("%s", None),
        ('{"type":%s}', None),
        ('{"type":"ping","payload":%s}', None),
        ('{"type":"ping","ignored":%s}', None),
        ('{"ignored":%s,"type":"ping"}', None),
        ('{"type":"request","payload":{"service":"s","method":"m","params":{"a":%s}}}', None),
        ('{"type":"request","payload":{"id":%s}}', "payload.id: expected str | null, got "),
        ('{"type":"request","payload":%s}', "payload: expected object, got array"),
    ],
)
@pytest.mark.parametrize(
    "value",
    [
        "[" * DEEP,
        "[" * DEEP + "]" * DEEP,
        '{"a":' * DEEP,
        '{"a":' * DEEP + "1" + "}" * DEEP,
        '[{"a":' * DEEP + "1" + "}]" * DEEP,
        "[" * 500 + "]" * 500,
    ],
)
def test_no_depth_is_deep_enough_to_break_the_decoder(template: str, value: str, description: str | None) -> None:
    error = refusal(template % value)
    assert description is None or error.description.startswith(("Error decoding JSON: ", "payload: ", description))


@pytest.mark.parametrize("digits", [20, 128, 129, 4300, 4301, 60_000])
@pytest.mark.parametrize("form", ["%s", "-%s", "0.%s", "1e%s", "1E+%s", "%se1", "%s.0"])
@pytest.mark.parametrize(
    "template",
    [
        request_with_params('{"a":%s}'),
        '{"type":"request","payload":{"service":"s","method":"m","timeout":%s}}',
        '{"type":"request","payload":{"service":5,"method":"m","id":%s,"trace_id":%s}}',
        '{"type":%s}',
        "%s",
    ],
)
def test_no_number_is_long_enough_to_break_the_decoder(template: str, form: str, digits: int) -> None:
    decode(template.replace("%s", form % ("9" * digits)))


# --- the ids of a broken frame ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "id_", "trace_id"),
    [
        (call(service=5, id="7", trace_id="t"), "7", "t"),
        (call(method="_x", id="7"), "7", None),
        (call(service="", trace_id="t"), None, "t"),
        (call(id="", trace_id="t"), None, "t"),
        (call(id="7", trace_id="\0"), "7", None),
        (call(id=7, trace_id="t"), None, "t"),
        (call(id="7", trace_id=["t"]), "7", None),
        (frame("nonsense", {"id": "7"}), "7", None),
        ('{"payload":{"id":"7"}}', "7", None),
        (call(timeout=0, id="7"), "7", None),
        (frame("subscribe", {"topics": ["a*"], "id": "7"}), "7", None),
        (request_with_params('{"a":1e999},"id":"7"'), "7", None),
        ('{"type":"request","payload":["7"]}', None, None),
        ('{"type":"nonsense"}', None, None),
        ('{"type":"request","payload":{"id":"7"', None, None),
        ('{"type":"request","payload":{"id":"7","x":%s' % ("[" * DEEP), None, None),
        ('{"type":"nonsense","payload":{"id":%s' % ("[" * DEEP), None, None),
    ],
)
def test_a_refusal_has_the_ids_of_the_frame_that_are_sound(text: str, id_: str | None, trace_id: str | None) -> None:
    for data in (text, text.encode()):
        error = refusal(data)
        assert (error.id, error.trace_id) == (id_, trace_id)


# --- nothing of the client is quoted ----------------------------------------------------------------------------

CANARY = "canary"
SOUND: dict[str, dict[str, Any]] = {
    "request": CALL | {"params": {"a": 1}, "id": "7", "trace_id": "t", "timeout": 1.0},
    "command": CALL | {"params": {"a": 1}, "id": "7", "trace_id": "t"},
    "describe": {"service": "orders", "id": "7"},
    "subscribe": {"topics": ["a.b"], "id": "7"},
    "unsubscribe": {"topics": ["a.b"], "id": "7"},
    "cancel": {"id": "7"},
    "authorize": {"token": "t", "id": "7"},
    "ping": {"a": 1},
    "pong": {"a": 1},
}
SPOILED = [
    CANARY + "\0",
    CANARY * 100,
    f"_{CANARY}",
    f"{CANARY}*",
    [CANARY],
    {CANARY: CANARY},
    {CANARY: {"type": CANARY}},
    [f"{CANARY}#", 5, {CANARY: 2**70}],
]


def test_a_description_never_quotes_the_client() -> None:
    refused = 0
    for kind, payload in SOUND.items():
        texts = [frame(kind, payload | {name: value}) for name in [*payload, CANARY] for value in SPOILED]
        texts += [frame(kind, value) for value in SPOILED]
        texts += [frame(value, payload) for value in SPOILED]
        texts += [json.dumps({CANARY: value, "payload": payload}) for value in SPOILED]
        texts += [text[: text.rindex(CANARY) + len(CANARY)] for text in texts]  # cut off in the middle
        texts += [f"{text}{CANARY}" for text in texts]
        texts += [f"{CANARY}{text}" for text in texts]
        texts += [text.replace(CANARY, f"{CANARY}\ud800") for text in texts]
        for text in texts:
            error = attempt(text)
            if isinstance(error, ProtocolError):
                refused += 1
                assert CANARY not in error.description
    assert refused > 1000


def test_a_token_is_not_shown() -> None:
    accepted = Decoder().decode(frame("authorize", {"token": CANARY, "id": "7"}))
    assert repr(accepted) == "Authorize(id='7', token=<hidden>)"


# --- fuzzing ----------------------------------------------------------------------------------------------------

ATOMS = [
    *("null", "true", "false", "0", "-0", "1", "-1", "1.5", "1e5", "1E-5", '""', '"a"', "[]", "{}"),
    *("1e999", "-1e999", "1E+999", "1.5e400", "1e-999", "0e999", "1e308", "1.8e308", "1e0001", "1e+000308"),
    *("NaN", "Infinity", "-Infinity", "nan", "01", "1.", ".5", "+1", "--1", "0x10", "1e", "'a'", "tru"),
    *(str(sign * 2**bits + more) for sign in (1, -1) for bits in (53, 63, 64) for more in (-1, 0, 1)),
    *("9" * 18, "9" * 19, "-" + "9" * 18, "-" + "9" * 19, "9" * 20, "9" * 128, "9" * 129, "9" * 5000),
    *("0." + "9" * 19, "0." + "9" * 126, "0." + "9" * 127, "-0." + "9" * 126, "9" * 30 + "e1", "1" * 300 + ".5"),
    *(r'"\""', r'"\\"', r'"\\\""', r'"[[["', r'"]]]"', r'"{\"a\":["', '"' + "9" * 30 + '"', '"1e999"', r'"\u005b"'),
    *(r'"\ud83d\ude00"', r'"\ud800"', r'"\u0000"', '"\0"', '"\n"', '"é😀"', r'"\/"', r'"\x"', '"', "", " "),
]
hostile_json = st.recursive(
    st.sampled_from(ATOMS),
    lambda children: (
        st.lists(children, max_size=4).map(lambda items: f"[{','.join(items)}]")
        | st.lists(st.tuples(st.sampled_from(['"a"', '"\\u0061"', r'"\\\"["', '"payload"']), children), max_size=3).map(
            lambda pairs: f"{{{','.join(f'{key}:{value}' for key, value in pairs)}}}"
        )
        | st.tuples(children, st.integers(1, 40)).map(lambda pair: "[" * pair[1] + pair[0] + "]" * pair[1])
    ),
    max_leaves=12,
)
#: JSON that every peer reads in the same way: integers of 64 bits, and no NaN.
plain_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=10,
)
sound_frames = st.sampled_from(list(SOUND)).flatmap(
    lambda kind: st.builds(
        lambda params: frame(kind, SOUND[kind] | {"params": params}),
        st.dictionaries(st.text(max_size=5), plain_json, max_size=3),
    )
)
#: Members of a frame and of its payload, in any order, twice or not at all, and with any JSON as the value.
names = st.sampled_from(["service", "method", "params", "id", "trace_id", "timeout", "topics", "token", "meth\\u006fd"])
values = st.sampled_from(['"s"', '"_m"', '{"a":1}', "2.5", '["a.*"]', "null"]) | hostile_json
members = st.builds('"{}":{}'.format, names, values)
payloads = st.lists(members, max_size=5).map(lambda pairs: f"{{{','.join(pairs)}}}")
#: The members that all types of frames require together, and then optional ones.
full_payloads = st.builds(
    '{{"id":"7","token":"t","topics":[],"method":"m","service":"s"{}}}'.format,
    st.just("") | members.map(lambda member: f",{member}") | values.map(lambda value: f',"params":{{"a":{value}}}'),
)
types = st.sampled_from(list(FRAMES)).map('"type":"{}"'.format)
made_up_frames = st.lists(
    types | members | st.builds('"payload":{}'.format, payloads | full_payloads), max_size=4, unique=True
).map(lambda pairs: f"{{{','.join(pairs)}}}") | st.builds('{{{},"payload":{}}}'.format, types, full_payloads)
snippets = st.sampled_from([b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"\0", b"\xff", b"\\u", b"1e999", b"NaN"])


@given(st.binary() | st.text())
def test_arbitrary_data_is_decoded_or_refused(data: bytes | str) -> None:
    decode(data)


@given(sound_frames, st.data())
def test_a_mutated_frame_is_decoded_or_refused(text: str, data: st.DataObject) -> None:
    encoded = text.encode()
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(encoded)))
        end = data.draw(st.integers(start, min(start + 5, len(encoded))))
        encoded = encoded[:start] + data.draw(snippets | st.binary(max_size=3)) + encoded[end:]
    decode(encoded)


@given(sound_frames)
def test_a_sound_frame_is_decoded(text: str) -> None:
    assert decode(text) is not None


@given(made_up_frames, st.integers(2, 34))
def test_a_made_up_frame_is_decoded_or_refused(text: str, max_depth: int) -> None:
    decode(text, max_depth)


@given(hostile_json, st.sampled_from([request_with_params('{"a":%s}'), '{"type":"ping","payload":%s}', "%s"]))
def test_params_get_through_unchanged_or_not_at_all(value: str, template: str) -> None:
    decode(template.replace("%s", value))


@given(hostile_json, st.integers(1, 45))
def test_the_limits_are_those_of_the_plain_reference(text: str, max_depth: int) -> None:
    try:
        json.loads(text)
    except ValueError:  # no JSON at all, or an integer of thousands of digits
        return
    if "N" not in text and "Infinity" not in text:
        assert (check_limits(text.encode(), max_depth) is None) == is_within_limits(text, max_depth)


@given(plain_json, st.integers(1, 8))
@example({"]": ["}", {'\\"[': [1]}]}, 3)
def test_the_levels_of_a_text_are_those_of_its_value(value: Any, max_depth: int) -> None:
    text = json.dumps(value).encode()
    assert nests_deeper(text, max_depth) is not is_within_limits(text, max_depth)


@given(plain_json)
def test_plain_json_is_within_the_limits(value: Any) -> None:
    assert check_limits(json.dumps(value).encode(), 32) is None
    assert check_limits(json.dumps(value, ensure_ascii=False).encode(), 32) is None


# --- at a glance ------------------------------------------------------------------------------------------------

GLANCES = [
    # message, type, id, trace_id
    ('{"type":"request","payload":{"id":"1","trace_id":"t","service":5}}', "request", "1", "t"),
    ('{"payload":{"trace_id":"t","id":"1"},"type":"anything"}', "anything", "1", "t"),
    ('{"type":"pong"}', "pong", None, None),
    ('{"type":"ping","payload":{}}', "ping", None, None),
    ('{"type":5,"payload":{"id":"1"}}', None, "1", None),
    ('{"type":"request","payload":{"id":"","trace_id":"\\n"}}', "request", None, None),
    ('{"type":"request","payload":{"id":"é","trace_id":"é"}}', "request", None, "é"),
    ('{"type":"request","payload":{"id":1,"trace_id":{"a":1}}}', "request", None, None),
    ('{"type":"ping","payload":5}', None, None, None),
    ('{"type":"ping","payload":[{"id":"1"}]}', None, None, None),
    ("{}", None, None, None),
    ("[]", None, None, None),
    ("null", None, None, None),
    ("", None, None, None),
    ('{"type":"request"', None, None, None),
    ('{"type":"request"} x', None, None, None),
    ('{"payload":{"id":"1","params":' + "[" * 5000, None, None, None),
    ("\ud800", None, None, None),
]


@pytest.mark.parametrize(("message", "kind", "id_", "trace_id"), GLANCES)
def test_a_message_at_a_glance(message: str, kind: str | None, id_: str | None, trace_id: str | None) -> None:
    assert Decoder().glance(message) == Glance(kind, id_, trace_id)
    assert Decoder().glance(message.encode(errors="surrogatepass")) == Glance(kind, id_, trace_id)


@given(made_up_frames | sound_frames | st.binary() | st.text())
def test_a_glance_sees_the_ids_that_decoding_finds(message: str | bytes) -> None:
    glance = Decoder().glance(message)
    found = attempt(message)
    if isinstance(found, ProtocolError):
        # A glance does not look into a message that is no JSON at all, such as one with half of a surrogate pair.
        is_readable = glance != (None, None, None)
        assert (found.id, found.trace_id) in ((glance.id, glance.trace_id), (None, None)) or not is_readable
    elif not isinstance(found, Ping | Pong | Ack):
        assert glance.id == found.id
        assert glance.trace_id == getattr(found, "trace_id", None) or isinstance(found, Cancel)
        assert glance.type == type(found).__name__.lower()


# --- size -------------------------------------------------------------------------------------------------------


@given(st.text(max_size=12) | st.binary(max_size=12), st.integers(0, 40))
def test_the_size_of_a_message_is_counted_in_bytes(data: str | bytes, max_size: int) -> None:
    encoded = data.encode(errors="surrogatepass") if isinstance(data, str) else data
    assert Decoder(max_size=max_size).is_too_big(data) == (len(encoded) > max_size)


def test_the_defaults_are_those_of_the_settings() -> None:
    assert (Decoder().max_size, Decoder().max_depth) == (65536, 32)


# --- codes ------------------------------------------------------------------------------------------------------

ERRORS = [
    # code, NuroPb's class, retryable
    ("bad_request", "NuropbMessageError", False),
    ("invalid_params", "NuropbValidationError", False),
    ("unauthenticated", "NuropbAuthenticationError", False),
    ("permission_denied", "NuropbAuthorizationError", False),
    ("method_not_found", "NuropbHandlingError", False),
    ("duplicate_id", "NuropbMessageError", False),
    ("service_unavailable", "NuropbNotDeliveredError", True),
    ("mesh_unavailable", "NuropbTransportError", True),
    ("timeout", "NuropbTimeoutError", False),
    ("cancelled", "NuropbException", False),
    ("too_many_requests", "NuropbException", True),
    ("payload_too_large", "NuropbMessageError", False),
    ("deprecated", "NuropbDeprecatedError", False),
    ("service_error", "NuropbHandlingError", False),
    ("internal", "NuropbException", False),
]


CODES = {code.value: code for code in ErrorCode}


def test_the_error_codes_are_those_of_the_protocol() -> None:
    assert [(code.value, code.nuropb_class, code.retryable) for code in ErrorCode] == ERRORS


@pytest.mark.parametrize("code", ErrorCode)
def test_an_error_code_is_its_text(code: ErrorCode) -> None:
    assert str(code) == f"{code}" == code.value == code.name.lower()


CLOSES = [
    # code, name, reconnect
    (1000, "NORMAL", False),
    (1003, "UNSUPPORTED_DATA", False),
    (1007, "INVALID_UTF8", False),
    (1009, "MESSAGE_TOO_BIG", False),
    (1011, "INTERNAL_ERROR", True),
    (1012, "SERVICE_RESTART", True),
    (1013, "TRY_AGAIN_LATER", True),
    (4001, "DRAINING", True),
    (4005, "TOKEN_EXPIRED", True),
    (4008, "SLOW_CONSUMER", True),
    (4012, "NO_PONG", True),
    (4029, "TOO_MANY_REQUESTS", True),
    (4501, "BAD_REQUEST", False),
    (4502, "AUTHORISATION_TIMEOUT", False),
    (4503, "DISCONNECTED", False),
    (4504, "CONNECTION_LIMIT", False),
    (4505, "SUBPROTOCOL_NOT_ACCEPTABLE", False),
    (4507, "PERMISSION_DENIED", False),
    (4509, "TOO_MANY_ERRORS", False),
    (4510, "INVALID_TOKEN", False),
    (4511, "TOKEN_REVOKED", False),
    (4513, "ORIGIN_NOT_ALLOWED", False),
]


def test_the_close_codes_are_those_of_the_protocol() -> None:
    assert [(code.value, code.name, code.reconnect) for code in CloseCode] == CLOSES


def test_the_constants_are_those_of_the_protocol() -> None:
    assert SUBPROTOCOL == "nuropb.v1"
    assert json.loads(PING) == {"type": "ping"}


# --- frames from the gateway ------------------------------------------------------------------------------------

texts = st.text(st.characters(codec="utf-8"), max_size=20)
maybe = st.none() | texts
retry = st.none() | st.integers(0, 10**6)


def parsed(text: str) -> Any:
    """Parse as a browser does: UTF-8, without Python's constants, and one line."""
    assert "\n" not in text
    return json.loads(text.encode().decode(), parse_constant=_constant)


def ids(id_: str | None, trace_id: str | None) -> dict[str, str]:
    return {name: text for name, text in (("id", id_), ("trace_id", trace_id)) if text is not None}


@given(maybe, maybe, plain_json)
def test_a_response_has_the_ids_that_were_given_a_result_and_no_error(
    id_: str | None, trace_id: str | None, result: Any
) -> None:
    expected = {"type": "response", "payload": ids(id_, trace_id) | {"result": result, "error": None}}
    assert same(parsed(encode_response(id_, trace_id, json.dumps(result).encode())), expected)
    assert same(parsed(encode_response(id_, trace_id, Raw(json.dumps(result, ensure_ascii=False).encode()))), expected)


@given(maybe, maybe, st.sampled_from(ERRORS), texts, texts, retry)
def test_a_failure_has_no_result_and_an_error_of_five_members(
    id_: str | None,
    trace_id: str | None,
    error: tuple[str, str, bool],
    description: str,
    class_name: str,
    retry_after_ms: int | None,
) -> None:
    code, default_class_name, retryable = error
    failure = Failure(CODES[code], description, class_name, retry_after_ms)
    members = {
        "error": class_name or default_class_name,
        "description": description,
        "code": code,
        "retryable": retryable,
        "retry_after_ms": retry_after_ms,
    }
    expected = {"type": "response", "payload": ids(id_, trace_id) | {"result": None, "error": members}}
    assert same(parsed(encode_failure(id_, trace_id, failure)), expected)


@given(st.sampled_from(ERRORS), texts, texts, retry)
def test_an_error_that_belongs_to_no_frame_is_flat(
    error: tuple[str, str, bool], description: str, class_name: str, retry_after_ms: int | None
) -> None:
    code, default_class_name, retryable = error
    expected: dict[str, Any] = {
        "type": "error",
        "error": class_name or default_class_name,
        "description": description,
        "code": code,
        "retryable": retryable,
    }
    if retry_after_ms is not None:
        expected["retry_after_ms"] = retry_after_ms
    assert same(parsed(encode_error(Failure(CODES[code], description, class_name, retry_after_ms))), expected)


@given(texts, plain_json, maybe)
def test_an_event_has_its_topic_and_the_trace_id_that_was_given(topic: str, event: Any, trace_id: str | None) -> None:
    trace = {} if trace_id is None else {"trace_id": trace_id}
    expected = {"type": "event", "payload": {"topic": topic, "event": event} | trace}
    assert same(parsed(encode_event(topic, json.dumps(event).encode(), trace_id)), expected)


def test_an_event_needs_no_trace_id() -> None:
    assert encode_event("hello", Raw(b"{}")) == '{"type":"event","payload":{"topic":"hello","event":{}}}'


@given(plain_json)
def test_a_pong_has_the_payload_of_the_ping(payload: Any) -> None:
    accepted = Decoder().decode(frame("ping", payload))
    assert isinstance(accepted, Ping)
    assert same(parsed(encode_pong(accepted.payload)), {"type": "pong", "payload": payload})


def test_a_ping_without_a_payload_gets_a_pong_without_one() -> None:
    accepted = Decoder().decode(PING)
    assert isinstance(accepted, Ping)
    assert encode_pong(accepted.payload) == '{"type":"pong"}'


@given(st.lists(texts))
def test_the_topics_of_a_connection_are_a_list(topics: list[str]) -> None:
    assert json.loads(encode_topics(topics)) == {"topics": topics}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_json_does_not_have_become_null(value: float) -> None:
    assert encode_json({"value": value}) == b'{"value":null}'


# --- frames made of requests over HTTP ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["request", "command"])
def test_a_call_with_separate_parameters_is_one_frame(kind: Any) -> None:
    text = encode_call(kind, "orders", "get", b'{"a": [1, "\\u00e9"]}', id_="1", trace_id="t")
    call = Decoder().decode(text)
    assert isinstance(call, FRAMES[kind])
    assert isinstance(call, Request | Command)
    assert (call.id, call.trace_id, call.service, call.method) == ("1", "t", "orders", "get")
    assert json.loads(bytes(call.params)) == {"a": [1, "é"]}


def test_a_call_may_have_no_parameters_and_a_time() -> None:
    call = Decoder().decode(encode_call("request", "orders", "get", b"", id_="1", trace_id="t", timeout=7))
    assert isinstance(call, Request)
    assert (bytes(call.params), call.timeout) == (b"{}", 7.0)


@pytest.mark.parametrize(
    "params",
    [b"{", b'{}{"a":1}', b'{},"service":"other"', b'{}},"x":{', b" ", b"\xff", b'"\xff"', b"{}\x00"],
)
def test_parameters_that_are_not_one_value_become_no_frame(params: bytes) -> None:
    with pytest.raises(ProtocolError, match="Error decoding JSON") as caught:
        encode_call("request", "orders", "get", params, id_="1", trace_id="t")
    assert (caught.value.id, caught.value.trace_id) == ("1", "t")


@pytest.mark.parametrize("levels", [100, 3000, 30_000])
def test_parameters_that_are_nested_too_deeply_become_no_frame(levels: int) -> None:
    params = b'{"a":' + b"[" * levels + b"]" * levels + b"}"
    with pytest.raises(ProtocolError):  # now or, as Python 3.13 goes deeper, when it is decoded
        Decoder().decode(encode_call("request", "orders", "get", params, id_="1", trace_id="t"))


@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:\\ \n01enul', max_size=40).map(str.encode), texts, texts)
def test_parameters_and_names_never_add_to_a_frame(params: bytes, service: str, method: str) -> None:
    try:
        text = encode_call("request", service, method, params, id_="1", trace_id="t")
    except ProtocolError:
        return
    frame = json.loads(text)
    assert frame.keys() == {"type", "payload"}
    assert frame["payload"].keys() == {"id", "trace_id", "service", "method", "params"}
    assert (frame["payload"]["service"], frame["payload"]["method"]) == (service, method)
    assert same(frame["payload"]["params"], json.loads(params or b"{}"))


@given(st.lists(texts))
def test_a_subscription_has_the_topics_that_were_named(topics: list[str]) -> None:
    frame = json.loads(encode_subscribe(topics, id_="1", trace_id="t"))
    assert frame == {"type": "subscribe", "payload": {"id": "1", "trace_id": "t", "topics": topics}}


@given(st.recursive(st.none() | texts, lambda each: st.lists(each) | st.dictionaries(texts, each)))
def test_a_frame_on_one_line_is_the_same_frame(value: Any) -> None:
    for indent in (None, 1, " \r"):
        text = json.dumps(value, indent=indent, ensure_ascii=False)
        line = on_one_line(text)
        assert not {"\r", "\n"} & set(line)
        assert json.loads(line) == json.loads(text)


def test_names_that_are_refused_are_not_kept() -> None:
    kept = protocol._accept_names.cache_info().currsize
    for number in range(100):
        refusal(call(service=f"{number}" * 1000))
        refusal(call(method=f"m{number}" * 1000))
    assert protocol._accept_names.cache_info().currsize == kept

"""The parts of the benchmark that measure nothing: what is said to servers, and what is made of the figures."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.dialects import DIALECTS, TOPIC, Kind, Said, make_dialect
from benchmarks.plan import FULL, QUICK, SPARE_FILES, within
from benchmarks.report import numbers, replaced, report
from benchmarks.samples import (
    Ratio,
    cpu_per_thousand,
    histogram,
    median,
    percentile,
    percentile_of,
    pooled_percentile,
    rate,
    ratio,
    share_of_a_core,
)
from benchmarks.targets import verdicts
from benchmarks.tokens import ALGORITHMS, make_keys, make_signer
from nuropb_gateway_asgi import JWTAuthenticator


def sample(cpu: float | None = 0.5, *, count: int = 1000, seconds: float = 2.0, wait: float = 0.01) -> dict[str, Any]:
    shares = {"p50": wait, "p99": 2 * wait, "p99.9": 3 * wait}
    used = {"clients": 0.25, "service": 0.1, "broker": 0.2} | ({} if cpu is None else {"server": cpu})
    return {
        "count": count,
        "seconds": seconds,
        "cpu": used,
        "others": 1.0,
        "latencies": histogram([wait] * 10),
        **shares,
    }


# --- how much is measured ---------------------------------------------------------------------------------------


def test_a_plan_has_no_more_connections_than_a_process_may_have() -> None:
    assert within(FULL, FULL.most_connections + SPARE_FILES) == (FULL, [])
    plan, left_out = within(FULL, 5000 + SPARE_FILES)
    assert (plan.idle, plan.audiences, plan.growth[-1], left_out) == ((1000, 5000), (1000, 5000), 5000, [10000])
    assert plan.most_connections == 5000
    plan, left_out = within(FULL, 4096)
    assert (plan.idle, plan.audiences, plan.growth) == ((1000,), (1000,), (10, 100, 1000))
    assert left_out == [5000, 10000]
    with pytest.raises(ValueError, match="may open 1024 files, and 1200 are the least"):
        within(QUICK, 1024)


# --- figures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([7.0], 0.5, 7.0),
        ([1.0, 2.0, 3.0, 4.0], 0.5, 2.0),
        ([1.0, 2.0, 3.0], 0.5, 2.0),
        ([float(number) for number in range(1, 101)], 0.99, 99.0),
        ([float(number) for number in range(1, 101)], 0.999, 100.0),
        ([1.0, 2.0], 0.0, 1.0),
    ],
)
def test_a_percentile_is_one_of_the_values(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == expected


def test_a_percentile_of_histograms_is_that_of_all_their_values() -> None:
    parts = [[0.001] * 900 + [0.01] * 99, [0.001] * 1000 + [0.5]]
    pooled = [histogram(part) for part in parts]
    assert percentile_of(pooled, 0.5) == pytest.approx(0.001, rel=0.01)
    assert percentile_of(pooled, 0.99) == pytest.approx(0.01, rel=0.01)
    assert percentile_of(pooled, 1.0) == pytest.approx(0.5, rel=0.01)
    assert percentile_of([], 0.5) is None
    assert percentile_of([{}], 0.5) is None


def test_a_sample_has_its_costs_and_its_rate() -> None:
    assert cpu_per_thousand(sample(0.5, count=2000)) == 0.25
    assert rate(sample(count=300, seconds=1.5)) == 200
    assert share_of_a_core("server")(sample(0.5)) == 0.25


def test_what_is_in_the_broker_has_no_costs_of_its_own() -> None:
    assert cpu_per_thousand(sample(None)) is None
    assert share_of_a_core("server")(sample(None)) is None
    turns = [{"gateway": {"1": sample()}, "stomp": {"1": sample(None)}}]
    assert median(turns, "stomp", "1", cpu_per_thousand) is None
    assert ratio(turns, "gateway", "stomp", "1", cpu_per_thousand) is None
    assert median(turns, "stomp", "1", rate) == 500


def test_a_ratio_is_the_median_of_the_ratios_within_turns_not_the_ratio_of_the_medians() -> None:
    own, theirs = [1.0, 8.0, 3.0], [2.0, 4.0, 12.0]
    turns = [{"a": {"1": sample(one)}, "b": {"1": sample(other)}} for one, other in zip(own, theirs, strict=True)]
    assert ratio(turns, "a", "b", "1", cpu_per_thousand) == Ratio(0.5, 0.25, 2.0)


def test_a_ratio_may_be_that_of_two_cells() -> None:
    turns = [{"a": {"10": sample(2.0), "1000": sample(3.0)}}]
    assert ratio(turns, "a", "a", "1000", cpu_per_thousand, base_cell="10") == Ratio(1.5, 1.5, 1.5)


def test_who_was_not_measured_has_no_figures() -> None:
    turns = [{"a": {"1": sample()}}]
    assert median(turns, "b", "1", rate) is None
    assert median(turns, "a", "2", rate) is None
    assert ratio(turns, "a", "b", "1", rate) is None
    assert pooled_percentile(turns, "b", "1", 0.5) is None


# --- the report -------------------------------------------------------------------------------------------------

CELLS = ("1", "32", "400", "half")


def results(**better: float) -> dict[str, Any]:
    """Of a run in which this gateway costs 0.3 and takes 10 ms, and all others cost 1 and take 25 ms."""
    load = {name: {cell: sample(1.0, wait=0.025) for cell in CELLS} for name in ("nuropb_gw", "moleculer-io", "echo")}
    load["web-stomp"] = {cell: sample(None) for cell in CELLS}
    load["gateway"] = {cell: sample(better.get("cpu", 0.3), count=2000) for cell in CELLS}
    load["gateway-uvicorn"] = {cell: sample(better.get("cpu", 0.3), count=2000) for cell in CELLS}
    load["limit-mesh"] = {cell: sample(0.1, count=2000) for cell in CELLS}
    sizes = {"process": 50.0 * 2**20, "1000": 12.0 * 1024}
    costs = {"gateway": 1.2, "gateway-uvicorn": 1.2, "echo": 1.0, "nuropb_gw": 2.0, "limit-mesh": 0.8}
    sent = {name: {"1000": sample(cost)} for name, cost in costs.items()}
    calls = {name: {"1": sample(cost), "32": sample(cost)} for name, cost in (("gateway", 1.0), ("fastapi", 3.0))}
    streams = {name: {"1000": sample(cost)} for name, cost in (("gateway", 1.0), ("sse-starlette", 2.0))}
    held = {"gateway": {**sizes, "1000": 20.0 * 1024}, "sse-starlette": {**sizes, "1000": 40.0 * 1024}}
    begun = {name: {"start": sample(cost, count=1)} for name, cost in (("gateway", 1.0), ("nuropb_gw", 1.5))}
    growth = {"gateway": {"10": sample(1.0), "100": sample(0.9), "5000": sample(better.get("growth", 1.1))}}
    titles = {"gateway": "this gateway", "nuropb_gw": "nuropb_gw", "moleculer-io": "moleculer-io"}
    return {
        "parts": {
            "load": {"turns": [load]},
            "memory": {"gateway": sizes, "echo": {**sizes, "1000": 25.0 * 1024}},
            "connect": {
                "turns": [{name: {"HS256": sample()} for name in ("gateway", "nuropb_gw", "echo", "limit")}],
            },
            "fan-out": {"turns": [sent]},
            "growth": {"turns": [growth]},
            "http": {"turns": [{**calls, "moleculer-web": calls["fastapi"]}]},
            "streams": {"turns": [streams], "memory": held},
            "start": {"turns": [begun]},
            "workers": {"turns": [{"workers-1": {"400": sample()}, "workers-2": {"400": sample(count=1500)}}]},
        },
        "titles": {
            **titles,
            "web-stomp": "Web STOMP",
            "echo": "floor",
            "limit": "limit",
            "limit-mesh": "limit over RabbitMQ",
            "fastapi": "FastAPI",
            "sse-starlette": "sse-starlette",
            "workers-1": "1 worker",
            "workers-2": "2 workers",
        },
        "left_out": {"another": "it needs something else"},
        "command": "make bench",
        "took": 90.0,
        "turns": 1,
        "other_turns": 1,
        "seconds": 2.0,
        "size": 64,
        "cpus": 2,
        "machine": "a machine",
        "versions": ["CPython 3"],
    }


def test_every_target_is_met_or_missed() -> None:
    judged = list(verdicts(results()["parts"]))
    assert [each.met for each in judged] == [True] * len(judged)
    assert {each.wanted for each in judged} == {
        "at most 0.25",
        "at most 0.33",
        "at most 1",
        "at most 1.02",
        "at most 1.1",
        "at most 1.15",
        "at most 1.2",
        "at most 1.3",
        "at most 14",
        "at most 2",
        "at least 2",
        "below 1",
    }
    missed = [each.what for each in verdicts(results(cpu=3.0, growth=1.3)["parts"]) if not each.met]
    assert len(missed) == 7
    assert all(what.startswith("CPU per request") for what in missed)


def test_a_target_that_was_not_measured_is_neither_met_nor_missed() -> None:
    everything = results()["parts"]
    turn = everything["load"]["turns"][0]
    del turn["moleculer-io"], everything["growth"]
    assert {each.met for each in verdicts(everything)} == {True, None}
    assert {each.met for each in verdicts({})} == {None}


def test_growth_is_judged_by_the_worst_number_of_connections() -> None:
    (growth,) = [each for each in verdicts(results(growth=1.3)["parts"]) if "with up to" in each.what]
    assert growth == (
        "CPU per request with up to 5000 connections, to that with 10",
        "at most 1.15",
        Ratio(1.3, 1.3, 1.3),
        False,
    )


def test_the_report_has_all_parts_and_what_they_were_made_with() -> None:
    text = "\n".join(report(results(cpu=3.0), "pictures"))
    for title in (
        "Targets",
        "Requests",
        "Idle connections",
        "Accepting connections",
        "Fan-out",
        "Growth",
        "Calls over HTTP",
        "Server-Sent Events",
        "Start",
        "Workers",
        "This run",
    ):
        assert f"### {title}\n" in text
    assert "| CPU per request, 1 in flight, to nuropb_gw's | at most 0.33 | 1.50 | **missed** |" in text
    assert "| Web STOMP | - | - | - | 500 |" in text
    assert "| this gateway | 50.0 | 12.0 |" in text
    assert "| this gateway | 1.000 | 0.900, x 0.90 | 1.100, x 1.10 |" in text
    assert "- Left out: another, because it needs something else" in text
    assert "![Memory per idle connection by contender](pictures/memory.png)" in text
    assert "![" not in "\n".join(report(results()))


def test_the_report_of_one_part_has_no_others() -> None:
    only = results()
    only["parts"] = {"memory": only["parts"]["memory"]}
    titles = [line for line in report(only) if line.startswith("### ")]
    assert titles == ["### Targets", "### Idle connections", "### This run"]


def test_the_numbers_for_the_readme_are_those_of_the_same_run() -> None:
    assert list(numbers(results())) == [
        "Medians of one run of `make bench` on a machine.",
        "",
        "|  | this gateway | nuropb_gw | moleculer-io | floor |",
        "|---|---:|---:|---:|---:|",
        *(f"| CPU for 1 000 requests, {cell} in flight | 0.15 s | 1.00 s | 1.00 s | 1.00 s |" for cell in CELLS[:3]),
        "| Memory for each of 1000 idle connections | 12 KiB | - | - | 25 KiB |",
        "| CPU to bring an event to each of 1000 connections | 1200 µs | 2000 µs | - | 1000 µs |",
        "",
    ]


def test_only_what_is_between_the_marks_is_replaced() -> None:
    text = "before\n<!-- results -->\n\nold\n\n<!-- end of results -->\nafter\n"
    new = replaced(text, "results", ["", "one", "two", ""])
    assert new == "before\n<!-- results -->\n\none\ntwo\n\n<!-- end of results -->\nafter\n"
    assert replaced(new, "results", ["one", "two"]) == new
    with pytest.raises(ValueError, match="<!-- results -->"):
        replaced("before\n<!-- end of results -->", "results", [])
    with pytest.raises(ValueError, match="<!-- end of results -->"):
        replaced("<!-- results -->\n", "results", [])


# --- what is said -----------------------------------------------------------------------------------------------

PARAMS = {"number": 7, "text": "xyz"}


def stomp(command: str, *headers: str, body: str = "") -> bytes:
    return "\n".join((command, *headers, "", body)).encode() + b"\x00\n"


def response(**payload: Any) -> bytes:
    return json.dumps(
        {"type": "response", "payload": {"trace_id": "7", "error": None, "result": None, **payload}}
    ).encode()


def event(topic: str) -> bytes:
    return json.dumps({"type": "event", "payload": {"topic": topic, "event": PARAMS}}).encode()


REPLY = json.dumps({"tag": "response", "result": PARAMS, "error": None})
FAILED = json.dumps({"tag": "response", "result": None, "error": {"error": "NuropbException"}})
OPENED, ANSWER, EVENT = Said(Kind.OPENED), Said(Kind.ANSWER, 7, PARAMS), Said(Kind.EVENT, 0, PARAMS)


@pytest.mark.parametrize(
    ("dialect", "text", "said"),
    [
        ("gateway", event("hello"), OPENED),
        ("gateway", response(result=PARAMS), ANSWER),
        ("gateway", response(error={"code": "timeout"}), Said(Kind.WRONG)),
        ("gateway", event(TOPIC), EVENT),
        ("gateway", b'{"type":"ping"}', Said(Kind.SEND, 0, '{"type":"pong"}')),
        ("gateway", b'{"type":"error","error":"JSONDecodeError"}', Said(Kind.WRONG)),
        ("nuropb_gw", response(result=PARAMS), ANSWER),
        ("socket.io", b'0{"sid":"a","pingInterval":25000}', Said(Kind.NOTHING)),
        ("socket.io", b'40{"sid":"b"}', OPENED),
        ("socket.io", b'44{"message":"invalid token"}', Said(Kind.WRONG)),
        ("socket.io", f"437[null,{json.dumps(PARAMS)}]".encode(), ANSWER),
        ("socket.io", b"437[null]", Said(Kind.ANSWER, 7, None)),
        ("socket.io", b'437[{"name":"ServiceNotFoundError"}]', Said(Kind.WRONG)),
        ("socket.io", f'42["{TOPIC}",{json.dumps(PARAMS)}]'.encode(), EVENT),
        ("socket.io", b'42["another",{}]', Said(Kind.WRONG)),
        ("socket.io", b"2", Said(Kind.SEND, 0, "3")),
        ("calls", json.dumps(PARAMS).encode(), ANSWER),
        ("calls", b"null", Said(Kind.NOTHING)),
        ("calls", b'{"error":"timeout"}', Said(Kind.WRONG)),
        ("events", json.dumps({"topic": "hello", "event": {}}).encode(), Said(Kind.NOTHING)),
        ("events", json.dumps({"topic": TOPIC, "event": PARAMS}).encode(), EVENT),
        ("events", json.dumps({"topic": "closed", "event": {}}).encode(), Said(Kind.WRONG)),
        ("stomp", stomp("CONNECTED", "version:1.2"), OPENED),
        ("stomp", stomp("MESSAGE", "destination:/queue/x", "correlation-id:7", body=REPLY), ANSWER),
        ("stomp", stomp("MESSAGE", "destination:/queue/x", "correlation-id:7", body=FAILED), Said(Kind.WRONG)),
        ("stomp", stomp("MESSAGE", f"destination:/topic/{TOPIC}", body=json.dumps(PARAMS)), EVENT),
        ("stomp", stomp("RECEIPT", "receipt-id:7"), Said(Kind.ANSWER, 7, None)),
        ("stomp", stomp("ERROR", "message:Bad CONNECT"), Said(Kind.WRONG)),
    ],
)
def test_what_a_server_says_is_understood(dialect: str, text: bytes, said: Said) -> None:
    assert make_dialect(dialect, "bench", "bench.publish").read(text) == said


def test_the_echo_server_is_answered_by_what_was_asked() -> None:
    echo = make_dialect("echo", "bench", "bench.publish")
    greeting = echo.greet("token")
    assert greeting is not None
    assert echo.read(greeting.encode()) == OPENED
    assert echo.read(echo.request(7, PARAMS).encode()) == ANSWER
    assert echo.read(echo.broadcast(7, PARAMS).encode()) == EVENT


@pytest.mark.parametrize("name", DIALECTS)
def test_each_server_is_asked_for_the_same_in_its_own_words(name: str) -> None:
    dialect = make_dialect(name, "bench", "bench.publish")
    message = dialect.request(7, PARAMS)
    assert json.dumps(PARAMS) in message
    assert "bench" in message
    if not dialect.path.startswith(("/rpc", "/events")):  # on which answers come in the order of the calls
        assert "7" in message.replace(json.dumps(PARAMS), "")


def test_the_gateway_alone_is_given_the_token_in_a_header() -> None:
    for name in ("gateway", "nuropb_gw"):
        assert make_dialect(name, "bench", "x.y").headers("a-token") == ("Authorization: Bearer a-token",)
    assert make_dialect("socket.io", "bench", "x.y").greet("a-token") == '40{"token": "a-token"}'


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_tokens_are_those_that_a_gateway_takes(algorithm: str) -> None:
    signing, verifying = make_keys(algorithm)
    authenticate = JWTAuthenticator(key=verifying, algorithms=[algorithm])
    identity = await authenticate(make_signer(algorithm, signing)("user-1"))
    assert identity is not None
    assert identity.user_id == "user-1"
    other, _ = make_keys(algorithm)
    assert await authenticate(make_signer(algorithm, other)("user-1")) is None

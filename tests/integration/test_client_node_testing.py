"""The gateway in memory of the JavaScript package, in Node: one process for all of its behaviour."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.test_client_node import run

PROGRAM = """
import { connect } from "nuropb-gateway-client";
import { Failure, mockGateway } from "nuropb-gateway-client/testing";

const told = {};
const fails = (promise) => promise.then(() => "no error", (error) => `${error.name}: ${error.message}`);
const gateway = mockGateway();
gateway.mock("orders", {
  create: ({ item }) => (item === "beer" ? new Failure("invalid_params", "sold out") : { number: 1, item }),
  later: async () => (await null, "later"),
  throws: () => { throw new TypeError("oops"); },
  never: new Promise(() => {}),
  list: [],
});
const alice = gateway.connect("alice");
told.answer = await alice.request("orders", "create", { item: "tea", n: 2 });
told.called = [gateway.called("orders.create", { n: 2, item: "tea" }).userId, gateway.calls.length];
told.later = await alice.request("orders", "later");
told.failure = await fails(alice.request("orders", "create", { item: "beer" }));
told.thrown = await fails(alice.request("orders", "throws"));
told.method = await fails(alice.request("orders", "destroy"));
told.service = await fails(alice.request("ordes", "create"));
await alice.command("orders", "list");
told.command = (await gateway.untilCalled("orders.list")).kind;
const cancelled = new AbortController();
const never = fails(alice.request("orders", "never", {}, { signal: cancelled.signal }));
await gateway.untilCalled("orders.never");
cancelled.abort(new Error("enough"));
told.cancelled = await never;
try {
  gateway.called("orders.create", { item: "milk" });
} catch (error) {
  told.missing = error.message;
}

const bob = gateway.connect("bob");
const heard = { alice: [], bob: [] };
const one = alice.subscribe("orders.*", ({ event }) => heard.alice.push(event));
const other = bob.subscribe("users.#", ({ event }) => heard.bob.push(event));
await Promise.all([one.ready, other.ready]);
gateway.publish("orders.created", 1);
gateway.publish("users.bob", 2);
await alice.request("orders", "list");
await bob.request("orders", "list");
told.heard = heard;
told.gap = await new Promise((resolve) => (one.on("gap", ({ reason }) => resolve(reason)), gateway.gap()));

gateway.meshIsAway = true;
told.mesh = await fails(alice.request("orders", "list"));
gateway.meshIsAway = false;
const back = gateway.connect("carol", { backoff: { base: 0, cap: 0 } });
await back.request("orders", "list");
gateway.cut();
told.back = await back.request("orders", "list", {}, { idempotent: true });

told.refused = await fails(gateway.connect("bad").request("orders", "list"));
const own = connect("ws://anything/ws", { WebSocket: gateway.WebSocket, token: "dave", tokenIn: "subprotocol" });
await own.request("orders", "list");
told.subprotocol = gateway.called("orders.list").userId;
told.described = Object.keys((await own.describe("orders")).services.orders.methods).length;
own.close();
gateway.close();
console.log(JSON.stringify(told));
"""


@pytest.fixture(scope="module")
async def told() -> dict[str, Any]:
    said: dict[str, Any] = await run(PROGRAM, begin="")
    return said


async def test_calls_are_answered_by_values_functions_and_failures(told: dict[str, Any]) -> None:
    assert told["answer"] == {"number": 1, "item": "tea"}
    assert told["later"] == "later"
    assert told["failure"] == "InvalidParams: sold out"
    assert told["thrown"] == "ServiceError: TypeError: oops"
    assert told["cancelled"] == "Error: enough"


async def test_a_call_of_nothing_tells_which_mocks_there_are(told: dict[str, Any]) -> None:
    assert "orders has no method destroy; there are: create, later" in told["method"]
    assert told["service"] == "ServiceUnavailable: No service ordes is mocked; there are: orders"


async def test_calls_are_kept_and_found(told: dict[str, Any]) -> None:
    assert told["called"] == ["alice", 1]
    assert told["command"] == "command"
    assert (
        'orders.create was not called with {"item":"milk"}; calls: orders.create {"item":"tea","n":2}'
        in told["missing"]
    )


async def test_events_reach_their_subscribers_alone(told: dict[str, Any]) -> None:
    assert told["heard"] == {"alice": [1], "bob": [2]}
    assert told["gap"] == "overflow"


async def test_a_mesh_that_is_away_and_cut_connections_are_seen_by_clients(told: dict[str, Any]) -> None:
    assert told["mesh"].startswith("MeshUnavailable: ")
    assert told["back"] == []


async def test_tokens_are_names_and_may_be_refused(told: dict[str, Any]) -> None:
    assert told["refused"].startswith("ConnectionClosed: ")
    assert told["subprotocol"] == "dave"
    assert told["described"] == 5

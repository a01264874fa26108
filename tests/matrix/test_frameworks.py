"""The hooks for React, and the recipes of docs/clients.md for Vue and Svelte, as they are written there."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.kit.processes import ROOT

from .projects import Project, make_project

FAKES = (ROOT / "clients" / "js" / "tests" / "fakes.js").read_text()
BEGIN = """
import { connect } from "nuropb-gateway-client";
import { FakeSocket, settled } from "./fakes.mjs";
globalThis.WebSocket = FakeSocket;
const sent = (type) => FakeSocket.all.flatMap((each) => each.sent).filter((frame) => frame.type === type);
const topics = (type) => sent(type).flatMap(({ payload }) => payload.topics);
const event = (topic, value) => FakeSocket.last.receive("event", { topic, event: value });
const told = (value) => console.log("told " + JSON.stringify(value));
"""
REACT = """
import { StrictMode, createElement } from "react";
import TestRenderer, { act } from "react-test-renderer";
import { useEvents, useGateway, useOwnEvents, useRequest } from "nuropb-gateway-client/react";

globalThis.IS_REACT_ACT_ENVIRONMENT = true;
console.error = () => {}; // the renderer for tests is deprecated
const seen = [];
let shown, reload;
function Page({ topic }) {
  const { gateway, state } = useGateway("ws://gateway/ws", { token: "t" });
  const { result, reload: again } = useRequest(gateway, "orders", "list");
  useEvents(gateway, topic, ({ event }) => seen.push(`${topic} ${event}`));
  useOwnEvents(gateway, "own", ({ event }) => seen.push(`own ${event}`));
  reload = again;
  shown = [state?.name ?? null, result ?? null];
  return null;
}
const page = (topic) => createElement(StrictMode, null, createElement(Page, { topic }));
const during = (run) => act(async () => { await run(); await settled(); });

let root;
await during(() => { root = TestRenderer.create(page("a.*")); });
await during(() => FakeSocket.last.greet());
await during(() => { FakeSocket.last.answer("subscribe"); FakeSocket.last.answer("request", [1]); });
const first = [...shown];
await during(() => event("a.b", 1));
await during(() => root.update(page("b.*")));
await during(() => { FakeSocket.last.answer("subscribe"); event("b.c", 2); event("a.b", 3); event("own", 4); });
await during(() => reload());
await during(() => FakeSocket.last.answer("request", [1, 2]));
const second = [...shown];
await during(() => root.unmount());
const closed = FakeSocket.all.every((each) => each.closedWith !== null);
told([first, second, seen, topics("unsubscribe"), closed]);
process.exit();
"""


def recipe(title: str) -> str:
    """Return the code of a recipe, and check that it has ten lines at most."""
    text = (ROOT / "docs" / "clients.md").read_text()
    (code,) = re.findall(rf"^\*\*{title}\*\*.*?^```js\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(code.splitlines()) <= 10
    return str(code)


async def run(project: Project, program: str) -> Any:
    project.write("fakes.mjs", FAKES)
    project.write("program.mjs", BEGIN + program)
    output = await project.node("program.mjs")
    (line,) = [each for each in output.splitlines() if each.startswith("told ")]
    return json.loads(line.removeprefix("told "))


@pytest.mark.parametrize("version", ["18.2.0", "18.3.1", "19.0.0", "19.3.1"])
async def test_the_hooks_call_and_hear_events_while_a_component_is_mounted(version: str) -> None:
    project = await make_project(f"react-{version}", react=version, react_test_renderer=version)
    first, second, seen, unsubscribed, closed = await run(project, REACT)
    assert first == ["open", [1]]
    assert second == ["open", [1, 2]]
    assert seen == ["a.* 1", "b.* 2", "own 4"]
    assert unsubscribed == ["a.*"]  # then the client is closed
    assert closed


async def test_the_recipe_for_vue_hears_events_until_its_scope_ends() -> None:
    project = await make_project("vue", vue="3.5.45")
    project.write("recipe.mjs", recipe("Vue"))
    program = """
import { effectScope, nextTick, ref } from "vue";
import { useEvents } from "./recipe.mjs";

const gateway = connect("ws://gateway/ws", { token: "t" });
const topic = ref("a.*");
const seen = [];
const scope = effectScope();
scope.run(() => useEvents(gateway, topic, ({ event }) => seen.push(event)));
await settled();
FakeSocket.last.greet();
FakeSocket.last.answer("subscribe");
await settled();
event("a.b", 1);
topic.value = "b.*";
await nextTick();
FakeSocket.last.answer("subscribe");
event("a.b", 2);
event("b.c", 3);
scope.stop();
event("b.c", 4);
told([seen, topics("subscribe"), topics("unsubscribe")]);
gateway.close();
"""
    assert await run(project, program) == [[1, 3], ["a.*", "b.*"], ["a.*", "b.*"]]


async def test_the_recipe_for_svelte_is_a_store_that_subscribes_while_it_is_used() -> None:
    project = await make_project("svelte", svelte="5.57.3")
    project.write("recipe.mjs", recipe("Svelte"))
    program = """
import { events, state } from "./recipe.mjs";

const gateway = connect("ws://gateway/ws", { token: "t" });
await settled();
FakeSocket.last.greet();
const before = topics("subscribe");
const seen = [], states = [];
const stop = events(gateway, "a.*").subscribe((event) => seen.push(event?.event ?? null));
const forget = state(gateway).subscribe(({ name }) => states.push(name));
FakeSocket.last.answer("subscribe");
event("a.b", 1);
stop();
event("a.b", 2);
gateway.close();
forget();
told([before, seen, states, topics("subscribe"), topics("unsubscribe")]);
"""
    told = await run(project, program)
    assert told == [[], [None, 1], ["open", "closed"], ["a.*"], ["a.*"]]

"""Tests of applications with ``nuropb-gateway-client/testing``, run by Vitest and Jest while their timers are faked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .projects import Project, make_project

#: ``timers`` is vi or jest.
SUITE = """
beforeEach(() => timers.useFakeTimers());
afterEach(() => timers.useRealTimers());

test("a call is answered", async () => {
  const gateway = mockGateway();
  gateway.mock("orders", {
    create: ({ item }) => (item === "beer" ? new Failure("invalid_params", "sold out") : { number: 1 }),
    later: async () => (await null, "later"),
  });
  const client = gateway.connect("alice");
  expect(await client.request("orders", "create", { item: "tea" })).toEqual({ number: 1 });
  expect(gateway.called("orders.create", { item: "tea" }).userId).toBe("alice");
  expect(await client.request("orders", "later")).toBe("later");
  await expect(client.request("orders", "create", { item: "beer" })).rejects.toThrow("sold out");
  await client.command("orders", "later");
  expect((await gateway.untilCalled("orders.later")).kind).toBe("command");
  gateway.close();
});

test("an event is heard", async () => {
  const gateway = mockGateway();
  const client = gateway.connect("alice");
  const heard = [];
  await client.subscribe("orders.*", ({ event }) => heard.push(event)).ready;
  gateway.publish("orders.created", 1);
  gateway.mock("orders", { list: [] });
  await client.request("orders", "list");
  expect(heard).toEqual([1]);
  gateway.close();
});

test("a deadline comes when the test moves the clock", async () => {
  const gateway = mockGateway();
  gateway.mock("orders", { never: new Promise(() => {}) });
  const client = gateway.connect("alice");
  const failed = expect(client.request("orders", "never", {}, { timeout: 30 })).rejects.toThrow();
  await gateway.untilCalled("orders.never");
  await timers.advanceTimersByTimeAsync(60_000);
  await failed;
  gateway.close();
});

test("a cut connection comes back when the test moves the clock", async () => {
  const gateway = mockGateway();
  gateway.mock("orders", { list: [1] });
  const client = gateway.connect("alice");
  await client.request("orders", "list");
  gateway.cut();
  const again = client.request("orders", "list", {}, { retries: 9 });
  await timers.advanceTimersByTimeAsync(60_000);
  expect(await again).toEqual([1]);
  gateway.close();
});
"""
IMPORTS = 'import { Failure, mockGateway } from "nuropb-gateway-client/testing";'
REQUIRED = 'const { Failure, mockGateway } = require("nuropb-gateway-client/testing");'


async def vitest() -> Project:
    project = await make_project("vitest", vitest="4.1.12")
    timers = 'import { afterEach, beforeEach, expect, test, vi as timers } from "vitest";'
    project.write("orders.test.js", "\n".join((timers, IMPORTS, SUITE)))
    return project


async def jest() -> Project:
    project = await make_project("jest", jest="30.5.2")
    project.write("orders.test.js", "\n".join(("const timers = jest;", REQUIRED, SUITE)))
    return project


def outcome(output: str) -> dict[str, str]:
    """Return the state of each test by its name, from the report that both programs write."""
    report: dict[str, Any] = json.loads(output)
    return {each["title"]: each["status"] for file in report["testResults"] for each in file["assertionResults"]}


@pytest.mark.parametrize("runner", ["vitest", "jest"])
async def test_a_suite_with_fake_timers_passes(runner: str) -> None:
    project = await (vitest() if runner == "vitest" else jest())
    if runner == "vitest":
        command = (
            "node",
            project.program("vitest", "vitest.mjs"),
            "run",
            "--reporter=json",
            "--outputFile=report.json",
        )
    else:
        command = ("node", project.program("jest", "bin/jest.js"), "--ci", "--json", "--outputFile=report.json")
    status, output = await project.run(*command)
    assert status == 0, output
    assert set(outcome((project.folder / "report.json").read_text()).values()) == {"passed"}

"""The client in React Native: bundled by its Metro, compiled by its Hermes, with its own URL, WebSocket and signals.

Node runs the bundle, and its WebSocket stands for the native part of React Native's.
"""

from __future__ import annotations

import json

import pytest

from tests.kit.gateways import run_gateway

from .projects import Project, make_project

PRELUDE = """
// A thread with Node's own classes.
const NATIVE = `
  const { parentPort } = require("node:worker_threads");
  const sockets = new Map();
  const commands = {
    connect(url, protocols, id) {
      const socket = new WebSocket(url, protocols);
      const emit = (name, event) => parentPort.postMessage([name, { id, ...event }]);
      sockets.set(id, socket);
      socket.onopen = () => emit("websocketOpen", { protocol: socket.protocol });
      socket.onmessage = ({ data }) => emit("websocketMessage", { type: "text", data });
      socket.onclose = ({ code, reason }) => emit("websocketClosed", { code, reason });
    },
    send: (text, id) => sockets.get(id).send(text),
    close: (code, reason, id) => sockets.get(id).close(code, reason),
  };
  parentPort.on("message", ([name, ...given]) => commands[name](...given));
`;
const { Worker } = process.getBuiltinModule("node:worker_threads");
const native = new Worker(NATIVE, { eval: true });
native.on("message", ([name, event]) => globalThis.emitDeviceEvent(name, event));
const modules = {
  WebSocketModule: {
    connect(url, protocols, options, id) {
      globalThis.urls = [...(globalThis.urls ?? []), url];
      native.postMessage(["connect", url, protocols, id]);
    },
    send: (text, id) => native.postMessage(["send", text, id]),
    close: (code, reason, id) => native.postMessage(["close", code, reason, id]),
    addListener() {},
    removeListeners() {},
  },
  PlatformConstants: { getConstants: () => ({ reactNativeVersion: {}, isTesting: true }) },
};
globalThis.__turboModuleProxy = (name) => modules[name] ?? null;
globalThis.__fbBatchedBridgeConfig = { remoteModuleConfig: [] };
for (const name of ["URL", "WebSocket", "AbortController", "AbortSignal", "ReadableStream", "location", "crypto"]) {
  Object.defineProperty(globalThis, name, { value: undefined, writable: true, configurable: true });
}
"""
APPLICATION = """
import "./prelude";
import emitter from "react-native/Libraries/EventEmitter/RCTDeviceEventEmitter";
import WebSocket from "react-native/Libraries/WebSocket/WebSocket";
import { URL } from "react-native/Libraries/Blob/URL";
import { AbortController } from "SIGNALS";

Object.assign(globalThis, { URL, WebSocket, AbortController });
globalThis.emitDeviceEvent = (name, event) => emitter.emit(name, event);
const { connect } = require("nuropb-gateway-client");
const { json } = require("nuropb-gateway-client/json");

(async () => {
  const gateway = connect(process.env.GATEWAY, { getToken: () => "alice", ...json({ bigint: true, bytes: true }) });
  const sum = await gateway.request("demo", "add", { a: 2, b: 3 }, { idempotent: true });
  const bytes = await gateway.request("demo", "echo", { bytes: new Uint8Array([1, 2]), n: 2n ** 63n - 1n });
  const controller = new AbortController();
  const aborted = gateway.request("demo", "sleep", { seconds: 5 }, { signal: controller.signal });
  controller.abort();
  const name = await aborted.catch((error) => error.name);
  let topic;
  for await (const event of gateway.subscribe("demo.tick")) {
    topic = event.topic;
    break;
  }
  console.log(JSON.stringify([sum, String(bytes.n), [...bytes.bytes], name, topic, globalThis.urls.length]));
  gateway.close();
  process.exit();
})().catch((error) => {
  console.log(String(error.stack), error.cause);
  process.exit(1);
});
"""
BUNDLE = """
const Metro = require("metro");
const { getDefaultConfig, mergeConfig } = require("@react-native/metro-config");
const config = mergeConfig(getDefaultConfig(__dirname), { resetCache: true, maxWorkers: 1, reporter: { update() {} } });
const options = { entry: "application.js", platform: "android", dev: false, minify: MINIFY, out: "built/client.js" };
Metro.loadConfig({}, config)
  .then((loaded) => Metro.runBuild(loaded, options))
  .then(() => process.exit(), (error) => { console.log(error); process.exit(1); });
"""
JEST = """
const { connect, matches } = require("nuropb-gateway-client");
test("the client is there", () => {
  expect(matches("a.*", "a.b")).toBe(true);
  expect(typeof connect).toBe("function");
});
"""


#: The module of React Native's AbortController: another package until some version.
SIGNALS = "abort-controller/dist/abort-controller"
OWN_SIGNALS = "react-native/src/private/webapis/dom/abort-api/AbortController"


async def application(version: str) -> Project:
    more = {"hermes_compiler": "*"} if version >= "0.83" else {}
    project = await make_project(
        f"react-native-{version}",
        react_native=version,
        **{"react-native__metro_config": version, "react-native__babel_preset": version},
        **more,
    )
    project.write("babel.config.js", 'module.exports = { presets: ["module:@react-native/babel-preset"] };')
    project.write("prelude.js", PRELUDE)
    is_own = (project.folder / "node_modules" / f"{OWN_SIGNALS}.js").exists()
    project.write("application.js", APPLICATION.replace("SIGNALS", OWN_SIGNALS if is_own else SIGNALS))
    project.write("built/.keep", "")
    return project


@pytest.mark.parametrize("minify", ["false", "true"])
@pytest.mark.parametrize("version", ["0.79.7", "0.82.1", "0.88.1"])
async def test_the_client_calls_and_hears_events_in_a_bundle_that_hermes_compiles(version: str, minify: str) -> None:
    project = await application(version)
    project.write("bundle.js", BUNDLE.replace("MINIFY", minify))
    await project.node("bundle.js")
    (compiler,) = list(project.folder.glob("node_modules/**/hermesc/linux64-bin/hermesc"))[:1]
    compiler.chmod(0o755)
    status, output = await project.run(str(compiler), "-emit-binary", "-O", "-out", "built/bytecode", "built/client.js")
    assert (status, " error: " in output) == (0, False), output
    async with run_gateway() as gateway:
        script = f"process.env.GATEWAY = {json.dumps(gateway.site.ws())}; require('./built/client.js')"
        answer = json.loads((await project.node("--eval", script)).splitlines()[-1])
    assert answer == [5, str(2**63 - 1), [1, 2], "AbortError", "demo.tick", 1]


async def test_jest_runs_the_client_in_commonjs() -> None:
    project = await make_project("jest", jest="30.5.2")
    project.write("client.test.js", JEST)
    await project.node(project.program("jest", "bin/jest.js"), "--ci", "--silent")

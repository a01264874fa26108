"""Shared tabs in bundles: each bundler finds the worker, or one error says how; no bundle runs twice."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from tests.kit.browser import Browser, Profile
from tests.kit.gateways import Site, make_gateway, run_gateway, serve
from tests.kit.javascript import node
from tests.kit.processes import run_process
from tests.servers.javascript import CLIENT
from tests.servers.rabbitmq import free_port

from .projects import MATRIX, Project, make_project

APPLICATION = """
import { ConnectionClosed, connect } from "nuropb-gateway-client/shared";

globalThis.application = { ConnectionClosed, connect, runs: (globalThis.application?.runs ?? 0) + 1 };
if (typeof document === "undefined") new BroadcastChannel("runs").postMessage("in a worker");
"""
PAGE = '<!doctype html><title>A bundle</title><link rel="icon" href="data:,">'
WEBPACK = """
const path = require("node:path");
module.exports = {
  mode: "production",
  entry: "./application.js",
  output: { path: path.resolve("built"), filename: "client.js", publicPath: "auto" },
};
"""


async def vite(version: str) -> Project:
    project = await make_project(f"vite-{version}", vite=version)
    project.write("application.js", APPLICATION)
    project.write("index.html", f'{PAGE}<script type="module" src="/application.js"></script>')
    options = {"base": "./", "build": {"outDir": "built", "rollupOptions": {"output": {"entryFileNames": "client.js"}}}}
    project.write("vite.config.mjs", f"export default {json.dumps(options)}")
    await project.node(project.program("vite", "bin/vite.js"), "build", "--logLevel", "error")
    return project


async def webpack() -> Project:
    project = await make_project("webpack", webpack="5.113.0", webpack_cli="7.3.1")
    project.write("application.js", APPLICATION)
    project.write("webpack.config.cjs", WEBPACK)
    await project.node(project.program("webpack-cli", "bin/cli.js"), "--config", "webpack.config.cjs")
    project.write("built/index.html", f'{PAGE}<script defer src="client.js"></script>')
    return project


async def esbuild(format_: str) -> Project:
    project = await make_project("esbuild", esbuild="0.28.2")
    project.write("application.js", APPLICATION)
    status, output = await project.run(
        project.program(".bin", "esbuild"),
        *("application.js", "--bundle", "--minify", "--outfile=built/client.js", f"--format={format_}"),
    )
    assert status == 0, output
    kind = 'type="module"' if format_ == "esm" else "defer"
    project.write("built/index.html", f'{PAGE}<script {kind} src="client.js"></script>')
    return project


async def rollup() -> Project:
    project = await make_project("rollup", rollup="4.68.8", rollup__plugin_node_resolve="16.0.3")
    project.write("application.js", APPLICATION)
    plugin = ("--plugin", "@rollup/plugin-node-resolve")
    await project.node(
        project.program("rollup", "dist/bin/rollup"),
        *("application.js", "--file", "built/client.js", "--format", "es", *plugin),
    )
    project.write("built/index.html", f'{PAGE}<script type="module" src="client.js"></script>')
    return project


@contextlib.asynccontextmanager
async def stage(browser: Browser, built: Path) -> AsyncIterator[tuple[Site, Profile]]:
    """Serve a bundle and a gateway from one origin."""
    gateway = make_gateway()
    app = Starlette(routes=[Mount("/built", StaticFiles(directory=built, html=True))])
    gateway.mount(app, "/gateway")
    async with serve(app) as site, browser.profile() as profile:
        yield site, profile


def clean(built: Path) -> None:
    """Check that no file of a bundle has a path of this machine."""
    texts = {each.name: each.read_text() for each in built.rglob("*") if each.is_file()}
    assert [name for name, text in texts.items() if str(MATRIX) in text or "file://" in text] == []


CONNECT = """(async () => {
  globalThis.warnings = [];
  globalThis.messages = [];
  new BroadcastChannel("runs").onmessage = ({ data }) => messages.push(data);
  console.warn = (...said) => warnings.push(said.map(String).join(" "));
  try {
    globalThis.gateway = application.connect("/gateway/ws", { getToken: () => "alice", shared: true, ...OPTIONS });
  } catch (error) {
    return [error.name, error.message];
  }
  return [await gateway.request("demo", "add", { a: 2, b: 3 }), application.runs, messages, warnings.join()];
})()"""


def connect(**options: object) -> str:
    return CONNECT.replace("OPTIONS", json.dumps({**options, "backoff": {"base": 10}}))


FINDERS = {
    "vite 8": lambda: vite("8.4.0"),
    "vite 7": lambda: vite("7.3.8"),
    "vite 6": lambda: vite("6.4.6"),
    "webpack": webpack,
}


@pytest.mark.parametrize("bundler", FINDERS)
async def test_tabs_of_a_bundle_share_a_connection_without_any_option(browser: Browser, bundler: str) -> None:
    project = await FINDERS[bundler]()
    built = project.folder / "built"
    clean(built)
    async with stage(browser, built) as (site, profile):
        tabs = [await profile.open(site.http("/built/")) for _ in range(2)]
        for tab in tabs:
            assert await tab.evaluate(connect()) == [5, 1, [], ""]
        sessions = {await tab.evaluate("gateway.hello.session_id") for tab in tabs}
        assert len(sessions) == 1


@pytest.mark.parametrize("version", ["8.4.0", "7.3.8"])
async def test_tabs_of_vites_development_server_share_a_connection(browser: Browser, version: str) -> None:
    project = await make_project(f"vite-{version}", vite=version)
    project.write("application.js", APPLICATION)
    project.write("index.html", f'{PAGE}<script type="module" src="/application.js"></script>')
    port = free_port()
    async with run_gateway() as gateway, browser.profile() as profile:
        proxy = {"/gateway": {"target": gateway.site.http(), "ws": True, "rewriteWsOrigin": True}}
        options = {"server": {"port": port, "host": "127.0.0.1", "strictPort": True, "proxy": proxy}}
        options["optimizeDeps"] = {"exclude": ["nuropb-gateway-client"]}
        rewrite = "config.server.proxy['/gateway'].rewrite = (path) => path.replace('/gateway', '');"
        project.write("vite.config.mjs", f"const config = {json.dumps(options)}; {rewrite} export default config;")
        command = (*node(), project.program("vite", "bin/vite.js"))
        async with run_process(*command, cwd=project.folder, environment={"NO_COLOR": "1"}) as server:
            await server.line(r"Local:")
            sessions = set()
            for _ in range(2):
                tab = await profile.open(f"http://127.0.0.1:{port}/")
                assert await tab.evaluate(connect()) == [5, 1, [], ""]
                sessions.add(await tab.evaluate("gateway.hello.session_id"))
            assert len(sessions) == 1


async def test_a_bundle_of_esbuild_that_is_no_module_says_how_to_find_the_worker(browser: Browser) -> None:
    project = await esbuild("iife")
    built = project.folder / "built"
    clean(built)
    async with stage(browser, built) as (site, profile):
        tab = await profile.open(site.http("/built/"))
        name, message = await tab.evaluate(connect())
        assert (name, "nuropb-gateway-worker.js" in message, "workerUrl" in message) == ("TypeError", True, True)
        await with_the_workers_file(built, site, profile)


@pytest.mark.parametrize("bundler", ["esbuild", "rollup"])
async def test_a_module_without_its_worker_says_how_to_find_it(browser: Browser, bundler: str) -> None:
    project = await (esbuild("esm") if bundler == "esbuild" else rollup())
    built = project.folder / "built"
    clean(built)
    async with stage(browser, built) as (site, profile):
        tab = await profile.open(site.http("/built/"))
        answer, runs, messages, warning = await tab.evaluate(connect())
        assert (answer, runs, messages) == (5, 1, [])
        assert "Serve node_modules/nuropb-gateway-client/dist/nuropb-gateway-worker.js" in warning
        await with_the_workers_file(built, site, profile)


async def with_the_workers_file(built: Path, site: Site, profile: Profile) -> None:
    """Check that two tabs share a connection as soon as the file is where the error says."""
    (built / "worker.js").write_bytes((CLIENT / "dist" / "nuropb-gateway-worker.js").read_bytes())
    sessions = set()
    for _ in range(2):
        tab = await profile.open(site.http("/built/"))
        assert await tab.evaluate(connect(workerUrl="/built/worker.js")) == [5, 1, [], ""]
        sessions.add(await tab.evaluate("gateway.hello.session_id"))
    assert len(sessions) == 1


async def test_a_bundle_of_the_gateways_own_module_that_is_called_client_js_runs_once(browser: Browser) -> None:
    project = await make_project("esbuild", esbuild="0.28.2")
    project.write("application.js", APPLICATION.replace("/shared", "/client.js"))
    await project.run(
        project.program(".bin", "esbuild"),
        *("application.js", "--bundle", "--outfile=built/client.js", "--format=esm"),
    )
    project.write("built/index.html", f'{PAGE}<script type="module" src="client.js"></script>')
    async with stage(browser, project.folder / "built") as (site, profile):
        tab = await profile.open(site.http("/built/"))
        answer, runs, messages, warning = await tab.evaluate(connect())
        assert (answer, runs, messages) == (5, 1, [])
        assert "client-worker.js" in warning

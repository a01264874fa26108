"""The types of the package, with compilers from 5.0 on and every way to resolve modules."""

from __future__ import annotations

import pytest

from tests.integration.test_client_node import USE_OF_TYPES

from .projects import make_project

COMPILERS = ["5.0.4", "5.2.2", "5.4.5", "5.6.3", "5.9.3", "6.0.3", "7.0.2"]
RESOLUTIONS = ["node10", "node16", "nodenext", "bundler"]
USE_OF_HOOKS = """
import { useEvents, useGateway, useRequest } from "nuropb-gateway-client/react";

export function useOrders(token: string | undefined): number[] | undefined {
  const { gateway, state } = useGateway("/ws", { token });
  const orders = useRequest<number[]>(gateway, "orders", "list");
  useEvents<{ n: number }>(gateway, "orders.*", ({ event }) => event.n.toFixed(), { onGap: undefined });
  return state?.name === "open" ? orders.result : undefined;
}
"""


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("version", COMPILERS)
async def test_the_types_pass_with_every_compiler(version: str, resolution: str) -> None:
    if resolution == "node10" and version.startswith("7."):
        return  # it has no node10 any more
    project = await make_project(f"typescript-{version}", typescript=version)
    is_node = resolution.startswith("node") and resolution != "node10"
    project.write("module.mts" if is_node else "module.ts", USE_OF_TYPES)
    project.write("hooks.ts", USE_OF_HOOKS)
    files = ["hooks.ts", "module.mts" if is_node else "module.ts"]
    if is_node:
        project.write("commonjs.cts", USE_OF_TYPES.replace("/shared", ""))
        files.append("commonjs.cts")
    options = ["--module", resolution if is_node else "esnext", "--moduleResolution", resolution, "--target", "es2022"]
    if version.startswith("6.") and resolution == "node10":
        options += ["--ignoreDeprecations", "6.0"]
    strict = ["--noEmit", "--strict", "--exactOptionalPropertyTypes", "--skipLibCheck", "false"]
    status, output = await project.run("node", project.program("typescript", "bin/tsc"), *options, *strict, *files)
    assert (status, output) == (0, "")

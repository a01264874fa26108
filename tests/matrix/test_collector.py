"""The gateway's spans in a real collector: Rotel, which PyPI has, with OpenTelemetry's own launcher and exporters.

`make matrix` puts them into an environment of their own, by the commands of docs/deployment.md, "Traces".
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.kit.processes import ROOT, SECRET, Process, run_process, token_of
from tests.kit.traces import CLIENT_SPAN, TRACE_ID
from tests.servers.processes import unavailable
from tests.servers.rabbitmq import free_port

ENVIRONMENT: Final = ROOT / ".venv-collector"
SECONDS: Final = 60.0


@contextlib.asynccontextmanager
async def run_collector(folder: Path) -> AsyncIterator[tuple[Process, dict[str, str]]]:
    """Run a collector that prints each span; yield it with the exporter's settings for each of its two protocols."""
    (program, *_) = (*ENVIRONMENT.glob("lib/python*/site-packages/rotel/rotel-agent"), None)
    if program is None:
        unavailable("rotel is not in .venv-collector: `make matrix` installs it")
    grpc, http = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    addresses = ("--otlp-grpc-endpoint", grpc, "--otlp-http-endpoint", http)
    printing = ("--exporter", "blackhole", "--debug-log", "traces", "--debug-log-verbosity", "detailed")
    files = ("--pid-file", str(folder / "pid"), "--log-file", str(folder / "log"))
    async with run_process(str(program), "start", *addresses, *printing, *files) as collector:
        await collector.line("Starting Rotel")
        yield collector, {"grpc": f"http://{grpc}", "http/protobuf": f"http://{http}"}


def spans_of(collector: Process) -> dict[str, dict[str, str]]:
    """Return the spans that the collector has printed, by their names: their fields and attributes."""
    found: dict[str, dict[str, str]] = {}
    for text in re.split(r"^Span #\d+$", collector.output, flags=re.MULTILINE)[1:]:
        # The events of a span follow its own fields, and have names, too.
        fields = dict(reversed(re.findall(r"^ +(?:-> )?([\w .]+?) *: (.*)$", text, re.MULTILINE)))
        found[fields["Name"]] = fields
    return found


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_a_call_is_a_span_of_the_clients_trace_in_a_collector(protocol: str, tmp_path: Path) -> None:
    port = free_port()
    command = ("opentelemetry-instrument", "nuropb-gateway", "serve", "--port", str(port))
    programs = (str(ENVIRONMENT / "bin" / command[0]), str(ENVIRONMENT / "bin" / command[1]), *command[2:])
    settings = {"TRACING": "on", "HTTP": "on", "MESH_URL": "embedded://demo", "EXPOSE": "demo.*", "JWT_KEY": SECRET}
    async with run_collector(tmp_path) as (collector, addresses):
        environment = {
            "OTEL_SERVICE_NAME": "nuropb-gateway",
            "OTEL_EXPORTER_OTLP_ENDPOINT": addresses[protocol],
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_LOGS_EXPORTER": "none",
        }
        async with run_process(*programs, settings=settings, environment=environment) as gateway:
            await gateway.line("The gateway is at")  # it listens only after "Application startup complete"
            headers = {"Authorization": f"Bearer {token_of('alice')}", "traceparent": CLIENT_SPAN}
            async with httpx.AsyncClient(trust_env=False, timeout=SECONDS) as http:
                answer = await http.post(f"http://127.0.0.1:{port}/rpc/demo/whoami", headers=headers, json={})
            assert answer.json()["trace_id"] == TRACE_ID
            await collector.line("nuropb.service_seconds: Double")
    spans = spans_of(collector)
    for name in ("token check", "demo/whoami"):
        assert (spans[name]["Trace ID"], spans[name]["Parent ID"]) == (TRACE_ID, CLIENT_SPAN.split("-")[2])
    assert spans["demo/whoami"]["Kind"] == "SPAN_KIND_SERVER"
    assert spans["demo/whoami"]["rpc.response.status_code"] == "Str(ok)"
    assert "service.name: Str(nuropb-gateway)" in collector.output
